"""bfloat16 against float32 on the CPU: what a step of the built-in model takes, and how near the pictures are.

A step is one round of the stock pipeline's loop: the denoiser with guidance (two rows for each picture) and scheduler.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from handler.settings import Settings

from .report import Report, in_fresh_process

DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8)
STEPS = 24
PROMPTS = [f"a {thing} on a blue background" for thing in ("red apple", "fox", "sailboat", "panda", "owl")]
PICTURES = [(prompt, seed) for prompt in PROMPTS for seed in (7, 8)]


def measure(dtype: str, file: Path) -> dict[str, Any]:
    """Median seconds of a step for each batch; the pictures go to ``file`` as bytes [10, height, width, 3]."""
    import torch

    from handler.engine.loading import load_pipeline

    pipe, card = load_pipeline(Settings(device="cpu", dtype=dtype))

    def draw(pictures: list[tuple[str, int]]) -> tuple[list[Any], float]:
        ends: list[float] = []

        def at_end(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            ends.append(time.perf_counter())
            return values

        output = pipe(
            [prompt for prompt, _ in pictures],
            num_inference_steps=STEPS,
            guidance_scale=card.defaults.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in pictures],
            callback_on_step_end=at_end,
        )
        return output.images, statistics.median(np.diff(ends[1:]).tolist())

    alone = [draw([picture]) for picture in PICTURES]
    np.save(file, np.stack([np.asarray(images[0]) for images, _ in alone]))
    steps = {1: statistics.median(seconds for _, seconds in alone[1:])}
    for batch in BATCHES[1:]:
        steps[batch] = min(draw(PICTURES[:batch])[1] for _ in range(3))
    return {"steps": steps}


def psnr(one: Any, other: Any) -> float:
    """Peak signal to noise in dB of two arrays of bytes; infinity for equal ones."""
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def main() -> None:
    """Prints the table."""
    report = Report("dtypes")
    with tempfile.TemporaryDirectory() as folder:
        files = {dtype: Path(folder, f"{dtype}.npy") for dtype in DTYPES}
        took = [in_fresh_process("tests.benchmarks.dtypes", dtype, str(file))["steps"] for dtype, file in files.items()]
        drawn = [np.load(file) for file in files.values()]
    for batch in BATCHES:
        full, half = (steps[str(batch)] * 1000 for steps in took)
        report.add(f"float32, batch {batch}", full, "ms a step")
        report.add(f"bfloat16, batch {batch}", half, "ms a step", ("float32", full))
    near = [psnr(one, other) for one, other in zip(*drawn, strict=True)]
    report.add(f"PSNR of {len(near)} pictures of the same seeds, median", statistics.median(near), "dB")
    report.add("the farthest of them", min(near), "dB")
    report.show()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
