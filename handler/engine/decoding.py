"""Decodes latents: those of several tasks that wait together at once, and never long in the way of others' steps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from .batcher import Batcher
from .merging import call_of, merge, split
from .seam import as_floating, checked

if TYPE_CHECKING:
    from .compute import Compute
    from .merging import Call

UNUSED = "generator"
"""An argument that pipelines give to every VAE, each task its own; only one that decodes at random would use it. The
proof shows whether it does."""


class Decoder:
    """``decode`` of a VAE, for all tasks. Each call is one task's; the arguments are those of the VAE's own."""

    def __init__(self, vae: Any, compute: Compute) -> None:
        @functools.wraps(vae.decode)
        def decode(*args: Any, **kwargs: Any) -> Any:
            return vae.decode(*args, **kwargs)

        self.batcher = Batcher(vae, compute, decode)
        self.batcher.merging = False
        self.batcher.patience = self.batcher.most_patience = 0.0
        self.batcher.relief = self._tile
        self._vae, self._compute, self._tiled = vae, compute, False
        _give_way_within(vae, compute)
        compute.serve(self.batcher)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises NotFinite for a picture that would be black."""
        dtype = next((one.dtype for one in args if isinstance(one, torch.Tensor)), self._vae.dtype)
        args = tuple(as_floating(value, self._vae.dtype) for value in args)
        if self.batcher.merging:
            kwargs = {name: value for name, value in kwargs.items() if name != UNUSED}
        return checked(self.batcher.call(object(), args, kwargs).output, dtype)

    def prove(self, allowed: float) -> bool:
        """Merges from now on, if two together are what each is alone. ``allowed``: what rounding explains, of the
        pictures' range. Call it after a picture was drawn.
        """
        last = self.batcher.last_call
        if last is not None and last.merges:
            self.batcher.merging = self._compute.run(lambda: self._apart(last)) <= allowed
        return self.batcher.merging

    @torch.inference_mode()
    def _apart(self, call: Call) -> float:
        """The largest difference between two latents decoded together and each alone."""
        arguments = {name: value for name, value in call.arguments.items() if name != UNUSED}
        one = call_of(None, arguments)
        other = call_of(None, {name: -value if _is_latent(value) else value for name, value in arguments.items()})
        alone = [self._vae.decode(**call.arguments), self._vae.decode(**other.arguments)]
        both = split(self._vae.decode(**merge([one, other])), [one.rows, other.rows])
        return max(float((_picture(a) - _picture(b)).abs().max()) for a, b in zip(alone, both, strict=True))

    def _tile(self, calls: int) -> bool:
        """A single decode that has too little memory is done in tiles from now on: slower, but with less of it."""
        if calls > 1 or self._tiled or not hasattr(self._vae, "enable_tiling"):
            return False
        self._vae.enable_tiling()
        self._tiled = True
        return True


def _is_latent(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _picture(output: Any) -> torch.Tensor:
    picture: torch.Tensor = output[0] if isinstance(output, tuple) else output.sample
    return picture.float()


def _give_way_within(vae: torch.nn.Module, compute: Compute) -> None:
    """Before each block of the decoder, which takes as long as several steps, forwards that wait are run."""
    for block in getattr(getattr(vae, "decoder", None), "up_blocks", []):
        for part in getattr(block, "resnets", [block]):
            part.register_forward_pre_hook(lambda *_: compute.give_way())
