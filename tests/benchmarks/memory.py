"""A worker's resident memory: fresh, and after hundreds of tasks of mixed sizes with the built-in model.

The embedded AWS, which keeps all pictures, runs in another process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, create_resources
from handler.contract.record import Record
from handler.process import use

from .counted import CountedAws
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIDES = (32, 48, 64, 96, 128)
PROMPTS = ("fox", "owl", "a red apple", "pizza", "ghost", "panda")
MARKS = (500, 2_000)
LIMIT = 1800.0
"""Seconds for all tasks up to a mark."""
QUIET = 2.0
"""Seconds after the last task in which its threads end and its memory is given back."""


def resident_mb(pid: int) -> float:
    """``VmRSS`` of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def body(at: int, draw: random.Random) -> str:
    """A task's message."""
    asked = {"prompt": draw.choice(PROMPTS), "task_id": f"t-{at}", "num_inference_steps": draw.randrange(2, 5)}
    size = {"width": draw.choice(SIDES), "height": draw.choice(SIDES)}
    return json.dumps(asked | size | {"num_images": draw.choice((1, 1, 2))})


def measure(marks: Sequence[int] = MARKS, environ: Mapping[str, str] | None = None) -> list[float]:
    """MB when the model has loaded, and at each of ``marks``, which count tasks."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    draw = random.Random(1)
    with CountedAws() as aws:
        variables = {"AWS_ENDPOINT_URL": aws.endpoint, **CREDENTIALS, **create_resources(aws.endpoint).variables}
        settings = use(**variables)
        store, queue = TaskStore(settings), TaskQueue(settings)
        command = [sys.executable, "-m", "handler"]
        worker = subprocess.Popen(command, env={**os.environ, "LOG_LEVEL": "ERROR", **variables, **(environ or {})})
        try:
            while store.read_health() is None and worker.poll() is None:
                time.sleep(0.1)
            time.sleep(QUIET)
            sizes, done = [resident_mb(worker.pid)], 0
            for mark in marks:
                for at in range(done, mark):
                    queue.send(body(at, draw))
                _wait_for(store, [f"t-{at}" for at in range(done, mark)])
                time.sleep(QUIET)
                sizes.append(resident_mb(worker.pid))
                done = mark
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
        finally:
            worker.kill()
            worker.wait()
    return sizes


def _wait_for(store: TaskStore, names: Sequence[str]) -> None:
    ends = time.monotonic() + LIMIT
    for name in names:
        while (status := _status(store, name)) != "completed":
            if status == "failed" or time.monotonic() > ends:
                raise RuntimeError(f"{name} is {status}")
            time.sleep(0.2)


def _status(store: TaskStore, name: str) -> str:
    stored = store.read(name)
    return Record.from_json(stored.body).status if stored else "not seen yet"


def main() -> None:
    """Prints the table. ``MARKS=100,300`` counts fewer tasks."""
    marks = [int(text) for text in os.environ.get("MARKS", "").split(",") if text] or MARKS
    sizes = measure(marks)
    report = Report("memory")
    report.add("a worker's memory, model loaded", sizes[0], "MB")
    for mark, size in zip(marks, sizes[1:], strict=True):
        report.add(f"after {mark:,} tasks of mixed sizes", size, "MB", ("fresh", sizes[0]))
    report.remark(f"The built-in model, sides of {SIDES[0]} to {SIDES[-1]} pixels, 2 to 4 steps, 1 or 2 images a task.")
    report.show()
