"""Attention backends of transformers, by diffusers' dispatcher. Those that would download a kernel are left out."""

from __future__ import annotations

from typing import Any

from diffusers.models import attention_dispatch

from ..errors import ModelUnavailable

DOWNLOADED = "_hub"
EXACT = ("_native_cudnn", "_native_flash", "flash", "_flash_3", "xformers")
"""Those that compute the same sum in another order. ``sage`` and the like round to fewer bits: they are for who names
them."""


def names() -> list[str]:
    """The backends that ``ATTENTION`` may name."""
    known = [one.value for one in attention_dispatch.AttentionBackendName]
    return sorted(name for name in known if not name.endswith(DOWNLOADED))


def installed() -> list[str]:
    """Those of the exact ones whose package is here."""
    return [name for name in EXACT if _is_installed(name)]


def use_attention(denoiser: Any, name: str) -> None:
    """Sets the backend, for the whole process.

    Raises ModelUnavailable for one that is unknown, not installed, or would do nothing in this network.
    """
    if name not in names():
        raise ModelUnavailable(f"ATTENTION={name}: must be auto or one of {', '.join(names())}")
    if not dispatches(denoiser):
        kind = type(denoiser).__name__
        raise ModelUnavailable(f"ATTENTION={name} would do nothing: {kind} does not choose among attention backends")
    try:
        denoiser.set_attention_backend(name)
    except (RuntimeError, ImportError, ValueError) as fault:
        raise ModelUnavailable(f"ATTENTION={name} cannot be used here: {fault}") from fault


def own_attention(denoiser: Any) -> None:
    """Takes back what :func:`use_attention` did."""
    if dispatches(denoiser):
        denoiser.reset_attention_backend()
        default = attention_dispatch.AttentionBackendName(attention_dispatch.DIFFUSERS_ATTN_BACKEND)
        attention_dispatch._AttentionBackendRegistry.set_active_backend(default)


def _is_installed(name: str) -> bool:
    try:
        attention_dispatch._check_attention_backend_requirements(attention_dispatch.AttentionBackendName(name))
    except (RuntimeError, ImportError, ValueError):
        return False
    return True


def dispatches(denoiser: Any) -> bool:
    """Whether the network's attention goes through the dispatcher: its processors then name a backend."""
    return any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in denoiser.modules())
