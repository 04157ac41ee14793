"""The seam and the other stand-ins: wrappers that replace the components of one task's pipeline.

The seam replaces the denoiser, so that calls of many tasks can share a forward. Every other network is replaced by a
wrapper that runs it in the compute thread, a tokenizer by one that locks it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .faults import free_memory, out_of_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from .compute import Compute

T = TypeVar("T")


class StandIn(torch.nn.Module):
    """Wraps a component of one task's pipeline: every attribute is the component's, only calls differ.

    ``__class__`` too is the component's, because pipelines test their components with isinstance.
    """

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)  # not a submodule, or its weights would be moved and counted twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_inner"])

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        inner: torch.nn.Module = self.__dict__["_inner"]
        return inner.parameters(recurse)


class Seam(StandIn):
    """Replaces the denoiser. ``through`` makes the call for this task: see :class:`.calls.TaskCalls`."""

    def __init__(self, denoiser: torch.nn.Module, through: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__(denoiser)
        object.__setattr__(self, "_through", through)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_through"](args, kwargs)


class OnComputeThread(StandIn):
    """Replaces any other network (text encoder, VAE, safety checker) and runs it in the compute thread.

    A VAE that runs out of memory is switched to tiling and tried once more.
    """

    METHODS = frozenset({"encode", "decode", "get_text_features", "get_image_features", "generate"})

    def __init__(self, inner: torch.nn.Module, compute: Compute) -> None:
        super().__init__(inner)
        object.__setattr__(self, "_compute", compute)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self.__dict__["_inner"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        if name not in self.METHODS:
            return attribute
        return lambda *args, **kwargs: self._run(attribute, args, kwargs)

    def _run(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        compute: Compute = self.__dict__["_compute"]
        return compute.run(lambda: self._work(work, args, kwargs))

    @torch.inference_mode()
    def _work(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        inner = self.__dict__["_inner"]
        tile = getattr(inner, "enable_tiling", None)
        if tile is not None:  # a VAE, which may be kept in float32 while the rest is not (loading.tune)
            dtype = next((one.dtype for one in args if isinstance(one, torch.Tensor)), inner.dtype)
            args = tuple(_as_floating(value, inner.dtype) for value in args)
        try:
            output = work(*args, **kwargs)
            return output if tile is None else _distribution_as(output, dtype)
        except Exception as fault:
            if not out_of_memory(fault) or tile is None:
                raise
        free_memory()  # after the except clause, whose traceback kept the failed try's tensors alive
        tile()  # from now on decodes in tiles: slower, but with less memory
        return _distribution_as(work(*args, **kwargs), dtype)


def _as_floating(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _distribution_as(output: T, dtype: torch.dtype) -> T:
    """Casts what a VAE encoded to the dtype of its input, which is the denoiser's. Decoded pictures are unchanged."""
    distribution: Any = getattr(output, "latent_dist", None)
    if distribution is None or distribution.parameters.dtype == dtype:
        return output
    converted: T = type(output)(latent_dist=type(distribution)(distribution.parameters.to(dtype)))  # type: ignore[call-arg]
    return converted


class LockedTokenizer:
    """Locks a tokenizer: fast tokenizers keep padding state between calls, which two threads would corrupt."""

    def __init__(self, inner: Any, lock: threading.Lock) -> None:
        self._inner, self._lock = inner, lock

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        # Methods too: `tokenize`, for one, also changes the state.
        return LockedTokenizer(attribute, self._lock) if inspect.ismethod(attribute) else attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._inner(*args, **kwargs)
