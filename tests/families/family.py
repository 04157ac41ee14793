"""A family: a tiny pipeline of one class of diffusers, with random weights, and what a call of it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Family:
    """``extra`` holds what a stock call needs besides prompt, size, steps and seed; empty wherever possible."""

    name: str
    build: Callable[[], Any]
    size: tuple[int, int]
    steps: int = 3
    extra: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    fixed_steps: bool = False
    """Whether the pipeline takes the steps of ``steps`` and no other number."""

    def call(self, prompt: str = "a red fox", seed: int = 0) -> dict[str, Any]:
        """The arguments of a stock call."""
        width, height = self.size
        return {
            "prompt": prompt,
            "width": width,
            "height": height,
            "num_inference_steps": self.steps,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "np",
            **self.extra,
        }


def enliven(*models: torch.nn.Module) -> None:
    """Give every matrix random values that keep the scale of what passes through it.

    Some models start with output layers or gates of zeros: their pictures would depend neither on prompt nor on seed.
    """
    for model in models:
        model.eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.numel():
                inputs = parameter[0].numel()
                embeds = parameter.shape[0] > 100
                torch.nn.init.normal_(parameter, std=1.0 if embeds else inputs**-0.5)


def sharpen(denoiser: torch.nn.Module) -> None:
    """Let tokens attend to few others: among hundreds of padding tokens those of the prompt would weigh nothing."""
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name.endswith(("norm_k.weight", "norm_added_k.weight")):
                parameter.mul_(4)
