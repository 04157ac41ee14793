"""Defaults of checkpoints that were distilled to few steps, which their pipelines' signatures know nothing of.

A card next to the weights goes before these. Each is what the model's own page on the Hub calls it with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .anatomy import denoiser_name


@dataclass(frozen=True)
class Kind:
    """Checkpoints of a ``pipeline`` class whose name has ``word`` (a pattern) in it, or whose configuration, the
    pipeline's or its denoiser's, says so: ``config`` is a field of it and the value there.

    ``source``: where ``steps`` and ``guidance`` are from. With guidance 0 (or 1, as its formula goes) a step is one
    forward, not two.
    """

    pipeline: str
    word: str
    steps: int
    guidance: float
    source: str
    config: tuple[str, Any] | None = None


KINDS = (
    Kind("StableDiffusionPipeline", "turbo", 1, 0.0, "https://huggingface.co/stabilityai/sd-turbo"),
    Kind("StableDiffusionXLPipeline", "turbo", 1, 0.0, "https://huggingface.co/stabilityai/sdxl-turbo"),
    Kind("StableDiffusionXLPipeline", "lightning", 4, 0.0, "https://huggingface.co/ByteDance/SDXL-Lightning"),
    Kind(
        "StableDiffusion3Pipeline",
        "turbo",
        4,
        0.0,
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo",
    ),
    Kind(
        "FluxPipeline",
        "schnell",
        4,
        0.0,
        "https://huggingface.co/black-forest-labs/FLUX.1-schnell",
        ("guidance_embeds", False),
    ),
    Kind(
        "Flux2KleinPipeline",
        "klein-(4|9)b$",
        4,
        1.0,
        "https://huggingface.co/black-forest-labs/FLUX.2-klein-4B",
        ("is_distilled", True),
    ),
    Kind("ZImagePipeline", "turbo", 8, 0.0, "https://huggingface.co/Tongyi-MAI/Z-Image-Turbo/discussions/158"),
    Kind("QwenImagePipeline", "lightning", 8, 1.0, "https://huggingface.co/lightx2v/Qwen-Image-Lightning"),
)
STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?", re.IGNORECASE)
"""As checkpoints that come for several numbers of steps have it in their names: ``sdxl_lightning_4step``."""


def usual(pipe: Any, name: str) -> dict[str, Any]:
    """``num_inference_steps`` and ``guidance_scale`` of a distilled model; empty for any other."""
    for kind in KINDS:
        if kind.pipeline == type(pipe).__name__ and (_named(kind, name) or _configured(kind, pipe)):
            found = STEPS.search(name)
            steps = int(found[1]) if found and int(found[1]) else kind.steps
            return {"num_inference_steps": steps, "guidance_scale": kind.guidance}
    return {}


def _named(kind: Kind, name: str) -> bool:
    return re.search(kind.word, name.rstrip("/"), re.IGNORECASE) is not None


def _configured(kind: Kind, pipe: Any) -> bool:
    if kind.config is None:
        return False
    field, value = kind.config
    denoiser = getattr(pipe, denoiser_name(pipe))
    return any(config.get(field) is value for config in (pipe.config, denoiser.config))
