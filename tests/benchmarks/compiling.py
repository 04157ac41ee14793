"""What compilation does: seconds of a task with the denoiser's blocks compiled and without, and how pictures differ.

The model is that of ``MODEL_ID``, the built-in one by default; eight prompts, each drawn alone. On a CPU it needs a C++
compiler. ``WRITE=1`` puts the figures onto the card next to a model that lies in a folder.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from handler.cli.output import save
from handler.contract.card import Compiled
from handler.contract.health import card_beside
from handler.contract.request import GenerationRequest
from handler.engine.choosing import Choice
from handler.engine.proof import NoObserver, pixels
from handler.engine.starting import start
from handler.logs import logger
from handler.settings import Settings

from .report import Report

if TYPE_CHECKING:
    from handler.engine.running import PipelineEngine

PROMPTS = ("a fox", "two owls at night", "the sea", "a red apple", "a house on a hill", "one cat", "snow", "a rocket")


def drawn(engine: PipelineEngine) -> tuple[list[Any], float]:
    """Pictures of the prompts (0 to 1), and the median seconds of one."""
    pictures, seconds = [], []
    for seed, prompt in enumerate(PROMPTS):
        request = engine.card.resolve(GenerationRequest(prompt=prompt, seed=seed))
        began = time.perf_counter()
        pictures.append(pixels(engine.run(engine.arguments(request) | {"output_type": "np"}, NoObserver()).pictures))
        seconds.append(time.perf_counter() - began)
    return pictures, statistics.median(seconds)


def main() -> None:
    """Prints the table."""
    report = Report("compile")
    logger.setLevel("ERROR")
    settings = replace(Settings.load(), compile="0")
    engine = start(settings)
    plain = engine.used or Choice()
    eager, without = drawn(engine)
    began = time.perf_counter()
    engine.use(replace(plain, compiled=True), settings)
    drawn(engine)
    report.add("seconds of the first eight pictures, compilation included", time.perf_counter() - began, "s")
    compiled, took = drawn(engine)
    report.add(f"a task alone, compiled ({engine.card.id}, {engine.card.dtype})", took, "s", ("as it is", without))
    apart = [float(np.mean((one - other) ** 2)) for one, other in zip(eager, compiled, strict=True)]
    ratios = [float("inf") if error == 0 else -10 * np.log10(error) for error in apart]
    report.add("PSNR of pictures, least of eight", min(ratios), "dB")
    report.add("the same, median", statistics.median(ratios), "dB")
    largest = max(float(np.abs(one - other).max()) for one, other in zip(eager, compiled, strict=True))
    report.add("largest difference of a pixel", 255 * largest, "of 255")
    if os.environ.get("WRITE") == "1":
        where = Path(settings.model_source)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "a CPU"
        psnr = round(min(ratios), 1) if min(ratios) < float("inf") else 999.0
        told = Compiled(device=device, dtype=engine.card.dtype, time=round(took / without, 3), psnr=psnr)
        card = engine.card.model_copy(update={"compiled": told})
        report.remark(f"written: {save(card_beside(where), f'{card.model_dump_json(indent=2)}'.encode())}")
    engine.close()
    report.show()
