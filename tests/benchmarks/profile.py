"""Where the time goes under load: the real worker in this process, an embedded AWS in another, the servers' tasks.

Of the compute thread's time from the first task to the last: forwards, text, decoding, waiting for callers (patience),
and waiting for work. Of the processors' time: each kind of thread, and the other process. On CUDA the forwards' time is
that of launching them; ``device busy`` is the device's own.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, create_resources
from handler.contract.record import Record
from handler.contract.statuses import TERMINAL
from handler.logs import logger
from handler.process import use
from handler.work.serving import build
from handler.worker import Worker

from .counted import CountedAws
from .mix import draw_lots
from .report import Report, in_fresh_process
from .servers import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .load import Task


class Spent:
    """Seconds of the compute thread by what it did. What it does is wrapped, nothing is sampled."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()

    def timed(self, name: Callable[[], str], work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                what = name()
                self.seconds[what] += time.perf_counter() - began
                self.counts[what] += 1

        return wrapped

    def watch(self) -> None:
        """From now on, in every engine of this process."""
        from handler.engine.batcher import Batcher
        from handler.engine.compute import Compute
        from handler.engine.seam import OnComputeThread

        waited = {"for": "waiting for work"}
        own_next = Batcher.next

        def looked(batcher: Batcher, now: float) -> Any:
            work, wait = own_next(batcher, now)
            waited["for"] = "waiting for callers" if wait is not None else "waiting for work"
            return work, wait

        Batcher.next = looked  # type: ignore[assignment, method-assign]
        Batcher._run = self.timed(lambda: "forwards", Batcher._run)  # type: ignore[method-assign]
        Compute._next = self.timed(lambda: waited["for"], Compute._next)  # type: ignore[method-assign]
        own_work = OnComputeThread._work

        def work(network: OnComputeThread, *args: Any) -> Any:
            kind = "decoding" if hasattr(network, "enable_tiling") else "text and other networks"
            return self.timed(lambda: kind, own_work)(network, *args)

        OnComputeThread._work = work  # type: ignore[assignment, method-assign]


def threads_processors() -> dict[str, float]:
    """Seconds of the processors that this process's threads have had, by the beginning of their names (Linux)."""
    names = {one.native_id: one.name.split("_")[0].split("-")[0] for one in threading.enumerate()}
    spent: defaultdict[str, float] = defaultdict(float)
    for stat in Path("/proc/self/task").glob("*/stat"):
        spent[names.get(int(stat.parent.name), "OpenMP and other libraries")] += _seconds(stat)
    return spent


def _seconds(stat: Path) -> float:
    """User and system time, fields 14 and 15 of proc(5)'s ``stat``."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker() -> Iterator[tuple[TaskQueue, TaskStore, CountedAws]]:
    """A worker that has loaded, between its surroundings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    logger.setLevel("ERROR")
    with CountedAws() as aws:
        settings = use(AWS_ENDPOINT_URL=aws.endpoint, **CREDENTIALS, **create_resources(aws.endpoint).variables)
        queue, store = TaskQueue(settings), TaskStore(settings)
        one = Worker(build(settings), queue, settings)
        thread = threading.Thread(target=one.run, name="worker")
        thread.start()
        try:
            while not one.loaded:
                time.sleep(0.1)
            yield queue, store, aws
        finally:
            one.stop()
            thread.join()


def drive(queue: TaskQueue, store: TaskStore, tasks: list[Task]) -> float:
    """Seconds until all tasks, sent at once, have ended. Asks after one at a time, as the servers' benchmark does."""
    began = time.time()
    left = [queue.send(json.dumps(task.body())) for task in tasks]
    last = began
    while left:
        stored = store.read(left[-1])
        record = Record.from_json(stored.body) if stored else None
        if record is None or record.status not in TERMINAL or record.completed_at is None:
            time.sleep(0.25)
            left.insert(0, left.pop())
            continue
        last = max(last, record.completed_at.timestamp())
        left.pop()
    return last - began


def measure() -> dict[str, Any]:
    """All figures, as JSON."""
    spent = Spent()
    spent.watch()
    tasks = draw_lots([0.0] * int(os.environ.get("TASKS", TASKS)))
    with worker() as (queue, store, aws):
        drive(queue, store, tasks[:2])
        spent.seconds.clear()
        spent.counts.clear()
        before, theirs = threads_processors(), _seconds(of_aws := Path(f"/proc/{aws._process.pid}/stat"))
        seconds = drive(queue, store, tasks)
        after = threads_processors()
        return {
            "seconds": seconds,
            "tasks": len(tasks),
            "spent": spent.seconds,
            "counts": spent.counts,
            "threads": {name: after[name] - before.get(name, 0.0) for name in after},
            "aws": _seconds(of_aws) - theirs,
        }


def main() -> None:
    """Prints the table."""
    report = Report("profile")
    found = in_fresh_process("tests.benchmarks.profile")
    whole = found["seconds"]
    report.add("images", found["tasks"] / whole, "a second")
    for name, seconds in sorted(found["spent"].items(), key=lambda item: -item[1]):
        report.add(f"compute thread: {name}", 100 * seconds / whole, "% of the time")
        report.detail(f"compute thread: {name}: times", found["counts"].get(name, 0), "")
    for name, seconds in sorted(found["threads"].items(), key=lambda item: -item[1]):
        if seconds >= whole / 100:
            report.add(f"processors: threads {name}", seconds, "s", ("of", whole))
    report.add("processors: the embedded AWS", found["aws"], "s", ("of", whole))
    report.show()


if __name__ == "__main__":
    print(json.dumps(measure()))
