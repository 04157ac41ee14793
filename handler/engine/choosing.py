"""What makes this network's forwards fast on this device: chosen by timing them, never assumed.

Only on CUDA is anything timed. On a CPU the choice is always the same, so that workers of a fleet draw the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ModelUnavailable
from ..logs import logger
from .attention import dispatches, installed, own_attention, use_attention
from .capture import CudaRecorder
from .graphed import Graphed
from .layers import compiled, plain, uncompiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..settings import Settings
    from .batcher import Batcher

LARGE = 100_000_000
"""Parameters of a large denoiser. Such use channels-last on a CPU; the small built-in one is slower with it."""
FASTER = 0.97
"""Something is chosen if a forward takes at most this part of the time without it."""
GRAPHS_SHARE = 0.3
"""Of the device's free memory, for recordings."""


@dataclass(frozen=True)
class Choice:
    """``attention``: diffusers' name of a backend, empty for the model's own; ``fused``: queries, keys and values of a
    UNet by one product.
    """

    channels_last: bool = False
    attention: str = ""
    fused: bool = False
    graphs: bool = False
    compiled: bool = False


def first_choice(denoiser: Any, settings: Settings, device: torch.device, dtype: str) -> Choice:
    """What a network is loaded with, before anything is timed.

    Raises ModelUnavailable for a setting that this network or this device cannot follow.
    """
    on_cuda = device.type == "cuda"
    if settings.graphs == "1" and not on_cuda:
        raise ModelUnavailable(f"GRAPHS=1: CUDA alone has graphs, and the device is {device.type}")
    named = settings.attention if settings.attention != "auto" else ""
    return Choice(
        channels_last=is_unet(denoiser) and is_large(denoiser) and not on_cuda and dtype == "bfloat16",
        attention=named,
        graphs=settings.graphs == "1",
        compiled=settings.compile == "1",
    )


def choose(first: Choice, batcher: Batcher, settings: Settings, seconds: Callable[[Choice], float | None]) -> Choice:
    """The fastest of the choices that settings leave open, each against the best one before it.

    ``seconds``: what forwards take with a choice, None if it cannot be used here.
    """
    steps = list(_open(first, batcher, settings))
    best, fastest = first, seconds(first) if steps else None
    for step in steps:
        tried = replace(best, **step)
        took = seconds(tried)
        if took is not None and (fastest is None or took <= fastest * FASTER):
            best, fastest = tried, took
    return best


def _open(first: Choice, batcher: Batcher, settings: Settings) -> Iterator[dict[str, Any]]:
    """What may be changed, one after the other; graphs before compilation, which matters less with them."""
    if batcher.device.type != "cuda":
        return
    network: Any = batcher.denoiser
    if is_unet(network):
        yield {"channels_last": not first.channels_last}
        if hasattr(network, "fuse_qkv_projections"):
            yield {"fused": True}
    if settings.attention == "auto" and dispatches(network):
        yield from ({"attention": name} for name in installed())
    if settings.graphs == "auto":
        yield {"graphs": True}
    if settings.compile == "auto" and getattr(network, "_repeated_blocks", None):
        yield {"compiled": True}


def apply(choice: Choice, batcher: Batcher, settings: Settings) -> None:
    """Lays the layers round the network. Call it in the compute thread. Raises as the libraries do."""
    network: Any = batcher.denoiser
    if batcher.graphs is not None:
        batcher.graphs.forget()
    if is_unet(network):
        network.to(memory_format=torch.channels_last if choice.channels_last else torch.contiguous_format)
    if choice.attention:
        use_attention(network, choice.attention)
    else:
        own_attention(network)
    if choice.fused:
        network.fuse_qkv_projections()
    else:
        _unfuse(network)
    uncompiled(network)
    batcher.forward = compiled(network, settings) if choice.compiled else plain(network)
    batcher.graphs, batcher.relief = None, lambda _: False
    if choice.graphs:
        if hooked(network):
            logger.warning("forwards of this network are not recorded", fault="it has hooks")
            return
        free, _ = torch.cuda.mem_get_info(batcher.device)
        batcher.forward = batcher.graphs = Graphed(
            batcher.forward, CudaRecorder(batcher.device), int(GRAPHS_SHARE * free)
        )
        batcher.relief = batcher.graphs.relieve


def _unfuse(network: Any) -> None:
    """Takes back ``fuse_qkv_projections``, and what it made, which diffusers' own way leaves there."""
    if not getattr(network, "original_attn_processors", None):
        return
    network.unfuse_qkv_projections()
    network.original_attn_processors = None
    for module in network.modules():
        if getattr(module, "fused_projections", False):
            module.fused_projections = False
            for name in [name for name in ("to_qkv", "to_kv") if hasattr(module, name)]:
                delattr(module, name)


def hooked(network: torch.nn.Module) -> bool:
    """Whether anything else runs at its forwards (as offloading does), which a recording would not repeat."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
        for module in network.modules()
    )


def is_large(network: torch.nn.Module) -> bool:
    """Whether its forwards, and not what surrounds them, are what takes time."""
    return sum(weights.numel() for weights in network.parameters()) >= LARGE


def is_unet(network: torch.nn.Module) -> bool:
    """Whether memory format matters to it: to networks of convolutions."""
    return "unet" in type(network).__name__.lower()
