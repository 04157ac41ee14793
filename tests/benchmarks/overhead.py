"""What the service adds to the pipeline: milliseconds of a task, and its requests to AWS with their price.

The real path: a worker in this process, an embedded AWS in another, which counts. Requests are those from a task's
submission to its message's deletion; polls of the status and of an empty queue are not a task's.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, create_resources
from handler.contract.record import Record, Timings
from handler.logs import logger
from handler.process import use
from handler.work.serving import build
from handler.worker import Worker

from ..support import answer_of, http_event
from .counted import EMPTY, HEALTH, CountedAws
from .report import Report, in_fresh_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.settings import Settings

TASKS, COUNTED = 20, 5
SHORT, LONG = {"num_inference_steps": 8}, {"num_inference_steps": 200, "width": 96, "height": 96}
PIPELINES_OWN = ("text", "denoise", "decode")
MOST_MS = 30
MOST_REQUESTS = {"SQS": 10, "HTTP": 11}
PRICES_OF = "us-east-1, November 2026"
PRICES = {
    "S3 DELETE": 0.0,
    "S3 HEAD": 0.0004 / 1000,
    "S3 PUT": 0.005 / 1000,
    "S3 LIST": 0.005 / 1000,
    "S3 GET": 0.0004 / 1000,
    "SQS": 0.40 / 1_000_000,
}
"""Dollars a request: S3 Standard; a standard queue, beyond the free first million a month."""
NOT_A_TASKS = (EMPTY, HEALTH)


class Path:
    """Both doors, and the way behind them to the deleted message."""

    def __init__(self, aws: CountedAws, settings: Settings) -> None:
        self._aws, self._store, self._queue = aws, TaskStore(settings), TaskQueue(settings)
        self._submit = Submit(settings, self._store, self._queue)

    def go(self, door: str, size: dict[str, int]) -> tuple[Timings, list[str]]:
        """A task's timings, and the names of its requests."""
        body = json.dumps({"prompt": "a red apple on a blue background", "seed": 7, **size})
        self._aws.forget()
        if door == "SQS":
            task_id = self._queue.send(body)
        else:
            code, answer = answer_of(self._submit.handle(http_event("POST", "/generate", body=body), None))
            if code != 202:
                raise RuntimeError(f"refused: {answer}")
            task_id = answer["task_id"]
        requests = self._aws.until_deleted()
        stored = self._store.read(task_id)
        record = Record.from_json(stored.body) if stored else None
        if record is None or record.timings is None:
            raise RuntimeError("the task did not complete")
        return record.timings, requests


@contextmanager
def path() -> Iterator[Path]:
    """A worker that has loaded and drawn, between its surroundings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    logger.setLevel("ERROR")
    with CountedAws() as aws:
        resources = create_resources(aws.endpoint)
        settings = use(AWS_ENDPOINT_URL=aws.endpoint, **CREDENTIALS, **resources.variables)
        worker = Worker(build(settings), TaskQueue(settings), settings)
        thread = threading.Thread(target=worker.run, name="worker")
        thread.start()
        try:
            path = Path(aws, settings)
            path.go("HTTP", SHORT)
            yield path
        finally:
            worker.stop()
            thread.join()


def measure() -> dict[str, Any]:
    """All figures, as JSON: milliseconds of each short task by part, and for each door and length the requests."""
    with path() as way:
        timings = [way.go("SQS", SHORT)[0].model_dump() for _ in range(TASKS)]
        requests = {}
        for door in MOST_REQUESTS:
            short = [way.go(door, SHORT) for _ in range(COUNTED)]
            long = [way.go(door, LONG)]
            for length in (short, long):
                seconds = statistics.median(times.total for times, _ in length)
                counts = Counter(name for _, names in length for name in names)
                requests[f"{door}, a task of {seconds:.1f} s"] = {name: n / len(length) for name, n in counts.items()}
    return {"timings": timings, "requests": requests}


def added(report: Report, timings: list[dict[str, float]]) -> None:
    """Rows of the milliseconds."""
    own = [sum(one[name] for name in PIPELINES_OWN) for one in timings]
    over = [(one["total"] - spent) * 1000 for one, spent in zip(timings, own, strict=True)]
    report.add("added to the pipeline's own time, median", statistics.median(over), "ms", ("at most", MOST_MS))
    report.add("the same, p90", statistics.quantiles(over, n=10, method="inclusive")[-1], "ms")
    for name in ("encode", "upload"):
        report.add(f"of it {name}, median", statistics.median(one[name] for one in timings) * 1000, "ms")
    rest = [spent - (one["encode"] + one["upload"]) * 1000 for one, spent in zip(timings, over, strict=True)]
    report.add("of it claim and the rest, median", statistics.median(rest), "ms")
    report.add("the pipeline's own time, median", statistics.median(own) * 1000, "ms")


def counted(report: Report, door: str, counts: dict[str, float]) -> None:
    """Rows of the requests through one door, and what 1,000 such tasks cost."""
    a_tasks = {name: count for name, count in sorted(counts.items()) if name not in NOT_A_TASKS}
    for name, count in a_tasks.items():
        report.detail(f"by {door}: {name}", count, "a task")
    report.remark(f"By {door}: {', '.join(f'{count:g} {name}' for name, count in a_tasks.items())}.")
    most = MOST_REQUESTS[door.partition(",")[0]]
    report.add(f"by {door}: all", sum(a_tasks.values()), "a task", ("at most", most))
    dollars = 1000 * sum(count * price_of(name) for name, count in a_tasks.items())
    report.add(f"by {door}: price of 1,000", dollars, "$")


def price_of(name: str) -> float:
    """Dollars of one request."""
    return next(price for prefix, price in PRICES.items() if name.startswith(prefix))


def main() -> None:
    """Prints the table."""
    report = Report("overhead")
    measured = in_fresh_process("tests.benchmarks.overhead")
    added(report, measured["timings"])
    for door, counts in measured["requests"].items():
        counted(report, door, counts)
    report.remark(
        f"Prices of {PRICES_OF}. Not a task's: polls of an empty queue, and submit's look at the model's health."
    )
    report.remark("Times are against moto on 127.0.0.1; S3 itself takes longer.")
    report.show()


if __name__ == "__main__":
    print(json.dumps(measure()))
