"""The engine alone: mixed tasks through the seam against a sequential loop over the stock pipeline.

Each contestant runs in a fresh process. The loop has it easy: one thread, the main one, loads and runs everything.
``make bench ONLY=gpu`` does it on a GPU.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from handler.contract.request import GenerationRequest
from handler.logs import logger
from handler.settings import Settings

from .report import Report, in_fresh_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.engine.running import PipelineEngine

TASKS = int(os.environ.get("TASKS", "24"))
STEPS, GUIDANCE = (8, 32), (1.5, 9.0)
THINGS = ("red apple", "fox", "sailboat", "panda", "owl", "green apple", "cat", "umbrella")
PLACES = ("blue", "teal", "white", "yellow", "pink")


class Unwatched:
    """An observer that neither keeps nor stops anything."""

    def begins(self, snapshot: object) -> None:
        """Keeps nothing."""

    def at_step(self, step: int, steps: int) -> None:
        """Watches nothing."""


def mixed() -> list[GenerationRequest]:
    """The same tasks in every process."""
    draw = random.Random(20240607)
    return [
        GenerationRequest(
            prompt=f"a {draw.choice(THINGS)} on a {draw.choice(PLACES)} background",
            num_inference_steps=draw.randint(*STEPS),
            guidance_scale=round(draw.uniform(*GUIDANCE), 1),
            seed=draw.randrange(2**31),
        )
        for _ in range(TASKS)
    ]


def together(engine: PipelineEngine, works: list[Callable[[], Any]]) -> dict[str, Any]:
    """All works at once, each in a thread and a place of its own, as the handler does; all must end well."""
    results: list[Any] = [None] * len(works)

    def one(at: int) -> None:
        with engine.slot():
            results[at] = works[at]()

    count, calls = engine.batcher.forwards, engine.batcher.calls
    threads = [threading.Thread(target=one, args=(at,), name="task") for at in range(len(works))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if any(result is None for result in results):
        raise RuntimeError("a task failed")
    return {
        "rate": len(works) / seconds,
        "forwards": engine.batcher.forwards - count,
        "calls": engine.batcher.calls - calls,
        "in_flight": engine.capacity,
        "dtype": engine.card.dtype,
        "pictures": [result.pictures[0] for result in results],
    }


def in_turn(works: list[Callable[[], Any]]) -> dict[str, Any]:
    """One after the other in this thread."""
    began = time.perf_counter()
    outputs = [work() for work in works]
    return {"rate": len(works) / (time.perf_counter() - began), "pictures": [output.images[0] for output in outputs]}


def seam(dtype: str) -> dict[str, Any]:
    """The built-in model through the engine, which has warmed up and measured its capacity at its start."""
    from handler.engine.starting import start

    logger.setLevel("ERROR")
    engine = start(Settings(device="cpu", dtype=dtype))
    requests = [engine.card.resolve(request) for request in mixed()]
    return together(engine, [partial(engine.develop, request, Unwatched()) for request in requests])


def loop(dtype: str) -> dict[str, Any]:
    """The built-in model through the stock pipeline, laid out as diffusers loads it, and warmed up as well."""
    import torch

    from handler.engine.loading import load_pipeline
    from handler.engine.running import arguments

    pipe, card = load_pipeline(Settings(device="cpu", dtype=dtype))
    pipe.unet.to(memory_format=torch.contiguous_format)
    requests = [card.resolve(request) for request in mixed()]
    pipe(**arguments(requests[0].model_copy(update={"num_inference_steps": 3}), card, pipe))
    return in_turn([partial(pipe, **arguments(request, card, pipe)) for request in requests])


CONTESTANTS = {"seam": seam, "loop": loop}


def contest(kind: str, what: str) -> dict[str, Any]:
    """The contestant's figures; ``pictures`` as an array."""
    with tempfile.TemporaryDirectory() as folder:
        answer = in_fresh_process("tests.benchmarks.engine", kind, what, folder)
        return answer | {"pictures": np.load(Path(folder, "pictures.npy")).astype(float)}


def main() -> None:
    """Prints the table."""
    report = Report("engine")
    loops = {dtype: contest("loop", dtype) for dtype in ("float32", "bfloat16")}
    for dtype, one in loops.items():
        report.add(f"sequential loop, {dtype}", one["rate"], "images/s")
    for dtype in ("auto", "float32"):
        one = contest("seam", dtype)
        name = f"engine, {one['dtype']}, {one['in_flight']} in flight"
        for other, looped in loops.items():
            report.add(name, one["rate"], "images/s", (f"loop, {other}", looped["rate"]))
        report.add(f"{name}: forwards", one["forwards"], "", ("calls", one["calls"]))
        if one["dtype"] in loops:
            apart = np.abs(one["pictures"] - loops[one["dtype"]]["pictures"]).max()
            report.add(f"{name}: largest difference from the loop's pixels", apart, "of 255")
    report.remark(f"{TASKS} tasks of the built-in model, steps {STEPS}, guidance {GUIDANCE}, all given at once.")
    report.show()


if __name__ == "__main__":
    answer = CONTESTANTS[sys.argv[1]](sys.argv[2])
    np.save(Path(sys.argv[3], "pictures.npy"), np.stack([np.asarray(picture) for picture in answer.pop("pictures")]))
    print(json.dumps(answer))
    sys.stdout.flush()
