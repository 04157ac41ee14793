"""How much of the time a worker's engine draws, while tasks wait: the real worker, and an engine of fixed times.

A task occupies the engine for 0.5 s and is encoded for another 0.5 s. What the engine waits for between two tasks is
the poll, the claim and whatever else a worker does.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, create_resources
from handler.logs import logger
from handler.process import use
from handler.work.serving import Generate
from handler.worker import Worker

from ..support import PlainEngine
from .counted import CountedAws
from .report import Report, in_fresh_process

if TYPE_CHECKING:
    from handler.contract.request import GenerationRequest
    from handler.engine import Developed, EncodedImage, Observer

DRAWING = ENCODING = 0.5
"""Seconds."""
TASKS = 24
PLACES = (1, 4)
LEAST = 95.0
"""Percent."""


class Timed(PlainEngine):
    """Notes when it began and ended to draw each task."""

    def __init__(self, places: int) -> None:
        super().__init__(capacity=places)
        self.spans: list[tuple[float, float]] = []

    def develop(
        self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        began = time.monotonic()
        time.sleep(DRAWING)
        developed = super().develop(request, observer, checkpoint, image)
        self.spans.append((began, time.monotonic()))
        return developed

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        time.sleep(ENCODING)
        return super().encode(developed, request)


def measure(places: int) -> dict[str, Any]:
    """Percent of the engine's places that draw, from the first task's begin to the last one's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    logger.setLevel("ERROR")
    engine = Timed(places)
    with CountedAws() as aws:
        settings = use(AWS_ENDPOINT_URL=aws.endpoint, **CREDENTIALS, **create_resources(aws.endpoint).variables)
        queue = TaskQueue(settings)
        for _ in range(TASKS):
            queue.send('{"prompt": "fox", "num_inference_steps": 8}')
        worker = Worker(Generate(settings, TaskStore(settings), queue, lambda _: engine), queue, settings)
        thread = threading.Thread(target=worker.run, name="worker")
        thread.start()
        ends = time.monotonic() + 120
        while len(engine.spans) < TASKS and time.monotonic() < ends:
            time.sleep(0.05)
        worker.stop()
        thread.join()
    # When the last tasks are drawn no others wait: until the last one began, all places had work.
    spans = sorted(engine.spans)
    begins, last = spans[0][0], spans[-1][0]
    drawn = sum(min(end, last) - begin for begin, end in spans)
    return {"percent": 100 * drawn / ((last - begins) * places), "tasks": len(spans)}


def main() -> None:
    """Prints the table."""
    report = Report("busy")
    for places in PLACES:
        measured = in_fresh_process("tests.benchmarks.busy", str(places))
        if measured["tasks"] != TASKS:
            raise RuntimeError(f"{measured['tasks']} of {TASKS} tasks were drawn")
        name = f"an engine of {places} {'place' if places == 1 else 'places'} draws, of the time"
        report.add(name, measured["percent"], "%", ("at least", LEAST))
    report.remark(
        f"{TASKS} tasks that wait, {DRAWING} s of drawing and {ENCODING} s of encoding each; moto on 127.0.0.1."
    )
    report.show()


if __name__ == "__main__":
    import sys

    print(json.dumps(measure(int(sys.argv[1]))))
