"""A pipeline with a ControlNet: both networks' calls are merged, and the pictures are those of each task alone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from handler.engine.compute import Compute
from handler.engine.loading import load_pipeline
from handler.engine.running import PipelineEngine
from handler.settings import Settings


class Unwatched:
    def begins(self, running: object) -> None:
        """Keeps nothing."""

    def at_step(self, step: int, steps: int) -> None:
        """Watches nothing."""


def test_controlnet_calls_are_merged_like_the_denoisers() -> None:
    base, card = load_pipeline(Settings(dtype="float32"))
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8, 8))
    for name, weights in control.named_parameters():  # its last layers are born zero, and would control nothing
        if "controlnet" in name:
            torch.nn.init.normal_(weights, std=0.02)
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    calls: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(at)),
            "num_inference_steps": 3 + at,
            "guidance_scale": 2.0 + at,
            "output_type": "np",
        }
        for at, prompt in enumerate(["fox", "owl", "pizza", "ghost"])
    ]

    def seeded(at: int) -> dict[str, Any]:
        return {**calls[at], "generator": torch.Generator().manual_seed(at)}

    alone = []
    for at in range(4):
        own = copy.copy(pipe)
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        alone.append(own(**seeded(at)).images)
    engine = PipelineEngine(pipe, card, Compute(), capacity=4)
    together: list[Any] = [None] * 4

    def run(at: int) -> None:
        together[at] = engine.run(seeded(at), Unwatched()).pictures

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(np.abs(one - other).max() <= 1 / 255 for one, other in zip(together, alone, strict=True))
    assert engine.controlnet is not None
    assert engine.controlnet.calls == engine.batcher.calls == 3 + 4 + 5 + 6
    assert engine.controlnet.forwards < engine.controlnet.calls
    engine.close()
