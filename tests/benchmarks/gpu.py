"""Loops and the engine on one GPU, with random weights of real sizes: needs torch, diffusers and this checkout alone.

For each size, in one process: the stock pipeline in a loop, as it is and with its blocks compiled; the engine as it is
loaded, with 8 and 16 tasks in flight, and without graphs. All get the same mixed tasks at once, so a task's latency is
the time to its picture. Then what must be right: pictures together against alone, resume, and too little memory.

``SIZES=sd21,sdxl,dit`` and ``TASKS=24`` say what; ``SIZES=tiny`` shows on a CPU that it runs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from handler.contract.request import GenerationRequest
from handler.engine.calls import SavedOutputs
from handler.engine.choosing import Choice
from handler.engine.compute import Compute
from handler.engine.layers import compiled, uncompiled
from handler.engine.proof import NoObserver
from handler.engine.running import PipelineEngine
from handler.engine.warmup import warm_up
from handler.errors import Suspended
from handler.logs import logger
from handler.settings import Settings

from .models import SIZES, build
from .report import Report, in_fresh_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from handler.engine import Running
    from handler.engine.batcher import Batcher

TASKS = int(os.environ.get("TASKS", "24"))
ALONE_STEPS = 20
SMALL_SHARE = 0.02
"""Of the device's memory, left to forwards that must be split: too little for eight tasks of SD 2.1's size together."""


@dataclass
class Ran:
    """``seconds``: from the start to each picture, in the order of the tasks."""

    seconds: list[float]
    pictures: list[np.ndarray]

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.seconds, [50, 99])
        return {"rate": len(self.seconds) / max(self.seconds), "p50": float(p50), "p99": float(p99)}


def mixed(engine: PipelineEngine) -> list[GenerationRequest]:
    """The same tasks for all: 8 to 32 steps, any guidance and seed."""
    draw = np.random.default_rng(20240607)
    return [
        engine.card.resolve(
            GenerationRequest(
                prompt=f"number {number}",
                num_inference_steps=int(draw.integers(8, 33)),
                guidance_scale=round(float(draw.uniform(1.5, 9)), 1),
                seed=int(draw.integers(2**31)),
            )
        )
        for number in range(TASKS)
    ]


def in_turn(engine: PipelineEngine, tasks: Sequence[GenerationRequest]) -> Ran:
    """The stock pipeline in a loop."""
    began, ran = time.perf_counter(), Ran([], [])
    for task in tasks:
        with torch.inference_mode():
            ran.pictures.append(engine.pipe(**_call(engine, task)).images[0])
        ran.seconds.append(time.perf_counter() - began)
    return ran


def at_once(engine: PipelineEngine, tasks: Sequence[GenerationRequest], places: int) -> Ran:
    """The engine, so many tasks at a time."""
    engine.capacity = places
    ran = Ran([0.0] * len(tasks), [np.empty(0)] * len(tasks))
    began = time.perf_counter()

    def one(at: int) -> None:
        with engine.slot():
            ran.pictures[at] = engine.run(_call(engine, tasks[at]), NoObserver()).pictures[0]
        ran.seconds[at] = time.perf_counter() - began

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(ran.seconds):
        raise RuntimeError("a task failed")
    return ran


def _call(engine: PipelineEngine, task: GenerationRequest) -> dict[str, Any]:
    return engine.arguments(task) | {"output_type": "np"}


def measure(size: str) -> dict[str, Any]:
    """All figures of one size, as JSON."""
    logger.setLevel("ERROR")
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", SIZES[size][1]
    cache = tempfile.TemporaryDirectory()
    settings = Settings(dtype=dtype, cache_dir=cache.name)
    compute = Compute()
    pipe, card = compute.run(lambda: build(size, device, dtype))
    engine = PipelineEngine(pipe, card, compute)
    tasks, found = mixed(engine), {}
    alone = tasks[0].model_copy(update={"num_inference_steps": ALONE_STEPS})
    network: Any = engine.batcher.denoiser

    def loop(name: str) -> Ran:
        in_turn(engine, [alone.model_copy(update={"num_inference_steps": 3})])
        ran = compute.run(lambda: in_turn(engine, tasks))
        found[name] = ran.figures() | {"alone": compute.run(lambda: in_turn(engine, [alone])).seconds[0]}
        return ran

    looped = loop("loop")
    if device == "cuda":
        compute.run(lambda: compiled(network, settings))
        loop("loop, compiled")
        compute.run(lambda: uncompiled(network))
    began = time.perf_counter()
    warm_up(engine, settings)
    found["load"] = {"seconds": time.perf_counter() - began, "capacity": engine.capacity}
    began = time.perf_counter()
    warm_up(engine, settings)
    found["load"]["kept"] = time.perf_counter() - began

    def with_engine(name: str, places: int) -> Ran:
        at_once(engine, tasks[:places], places)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ran = at_once(engine, tasks, places)
        used = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else 0.0
        found[name] = ran.figures() | {"alone": at_once(engine, [alone], 1).seconds[0], "GiB": used}
        return ran

    with_engine("engine, 16 in flight", 16)
    together = with_engine("engine, 8 in flight", 8)
    one = at_once(engine, tasks[:8], 1)
    found["right"] = {
        **_apart("the loop", together.pictures, looped.pictures),
        **_apart("alone", together.pictures[:8], one.pictures),
        "resumed: the same in every bit": float(_resumed(engine, alone)),
        **_out_of_memory(engine, tasks[:8]),
    }
    engine.use(Choice(), settings)
    with_engine("engine, 8 in flight, nothing chosen", 8)
    engine.close()
    cache.cleanup()
    return found


def _apart(name: str, these: Sequence[Any], those: Sequence[Any]) -> dict[str, float]:
    one, other = np.stack(these).astype(float), np.stack(those).astype(float)
    error = float(np.mean((one - other) ** 2))
    psnr = float("inf") if error == 0 else -10 * np.log10(error)
    return {f"from {name}: largest, of 255": 255 * float(np.abs(one - other).max()), f"from {name}: PSNR": float(psnr)}


class _Stopping(NoObserver):
    """Saves and stops its task before this step."""

    def __init__(self, step: int) -> None:
        self._step, self.saved = step, b""

    def begins(self, running: object) -> None:
        self._running: Running = running  # type: ignore[assignment]

    def at_step(self, step: int, steps: int) -> None:
        if step == self._step:
            self.saved = self._running.snapshot()
            raise Suspended("stopped")


def _resumed(engine: PipelineEngine, task: GenerationRequest) -> bool:
    """Whether a picture is the same in every bit, stopped half way and gone on with."""
    made_by, stopping = {"format": "gpu"}, _Stopping(ALONE_STEPS // 2)
    whole = engine.run(_call(engine, task), NoObserver(), SavedOutputs(made_by)).pictures
    with suppress(Suspended):
        engine.run(_call(engine, task), stopping, SavedOutputs(made_by))
    again = engine.run(_call(engine, task), NoObserver(), SavedOutputs(made_by, stopping.saved)).pictures
    return bool(stopping.saved) and np.array_equal(whole, again)


def _out_of_memory(engine: PipelineEngine, tasks: Sequence[GenerationRequest]) -> dict[str, float]:
    """Tasks done where all of them together have too little memory."""
    if engine.batcher.device.type != "cuda":
        return {}
    torch.cuda.empty_cache()
    _, whole = torch.cuda.mem_get_info()
    share = torch.cuda.memory_allocated() / whole + SMALL_SHARE
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        done = at_once(engine, tasks, len(tasks))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"too little memory: tasks done": float(len(done.pictures)), "split to rows": float(_least(engine.batcher))}


def _least(batcher: Batcher) -> int:
    return min(batcher._most_rows.values(), default=0)


def main() -> None:
    """Prints the table."""
    sizes = os.environ.get("SIZES", "sd21,sdxl,dit" if torch.cuda.is_available() else "tiny").split(",")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    report = Report(f"gpu: {where}, torch {torch.__version__}")
    for size in sizes:
        title, dtype = SIZES[size]
        found = in_fresh_process("tests.benchmarks.gpu", size)
        load, right = found.pop("load"), found.pop("right")
        loop = found["loop"]
        report.add(f"{title}, {dtype}: first warm-up", load["seconds"], "s", ("at most", 20))
        report.add(f"{title}, {dtype}: with what it kept", load["kept"], "s", ("at most", 3))
        report.detail(f"{title}: capacity", load["capacity"], "tasks")
        for name, one in found.items():
            report.add(f"{title}: {name}", one["rate"], "images/s", ("loop", loop["rate"]))
            report.add("  p99", one["p99"], "s", ("loop", loop["p99"]))
            report.detail(f"{title}: {name}: p50", one["p50"], "s")
            report.add("  one task alone", 1000 * one["alone"], "ms", ("loop", 1000 * loop["alone"]))
            if one.get("GiB"):
                report.add("  memory", one["GiB"], "GiB")
        for name, value in right.items():
            report.add(f"{title}: {name}", value, "")
    report.remark(f"{TASKS} tasks of 8 to 32 steps, all given at once; alone: {ALONE_STEPS} steps.")
    report.show()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
    sys.stdout.flush()
