"""The compute thread: the only one that loads models, encodes text, runs forwards and decodes latents.

On a CPU a second thread that enters a parallel region makes every forward 2.5 times slower (OpenMP keeps a team of
threads for each); on a GPU one thread keeps the stream in order. Tasks' threads submit their work and wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Source(Protocol):
    """Supplies forwards when no job is queued. Called with :attr:`Compute.changed` held."""

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """Work to do now; or None, and the seconds after which to ask again (None: at the next notify)."""


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Any = None
        self.fault: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.result = self.work()
        except BaseException as fault:
            self.fault = fault
        self.done.set()


class Compute:
    """A single-thread executor with a job queue, and sources of forwards that it asks when the queue is empty.

    ``changed``: notify it when a source has new work.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._sources: list[Source] = []
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="compute", daemon=True)
        self._thread.start()

    def serve(self, source: Source) -> None:
        """Adds a source, asked whenever no job is queued."""
        with self.changed:
            self._sources.append(source)

    def run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in the compute thread; returns its result or raises what it raised."""
        if threading.current_thread() is self._thread:
            return work()
        job = _Job(work)
        with self.changed:
            if self._closed:
                raise RuntimeError("the compute thread is closed")
            self._jobs.append(job)
            self.changed.notify_all()
        job.done.wait()
        if job.fault is not None:
            raise job.fault
        result: T = job.result
        return result

    def close(self) -> None:
        """Ends the thread once all queued work is done."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        """The next work, None once closed. Jobs first: an encoded text lets a task join the next forward."""
        with self.changed:
            while True:
                if self._jobs:
                    return self._jobs.popleft()
                now, waits = time.perf_counter(), []
                for source in self._sources:
                    work, wait = source.next(now)
                    if work is not None:
                        self._sources.remove(source)
                        self._sources.append(source)  # round robin
                        return work
                    if wait is not None:
                        waits.append(wait)
                if self._closed and not waits:
                    return None
                self.changed.wait(min(waits, default=None))
