"""The compute thread: the only one that loads models, encodes text, runs forwards and decodes latents.

On a CPU a second thread that enters a parallel region makes every forward 2.5 times slower (OpenMP keeps a team of
threads for each); on a GPU one thread keeps the stream in order. Tasks' threads submit their work and wait.

The thread ends when it is closed, or by a fault that is nobody's own (of a source, of the bookkeeping). Nobody waits
for it after that: all who do get WorkerBroken, and so does whoever comes later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import WorkerBroken
from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Source(Protocol):
    """Supplies forwards when no job is queued. Called with :attr:`Compute.changed` held."""

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """Work to do now; or None, and the seconds after which to ask again (None: at the next notify)."""


@dataclass(eq=False, kw_only=True)
class Pending:
    """Something that one caller waits for. ``done`` is set once it has its output or its fault."""

    output: Any = None
    fault: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def finish(self, output: Any = None, fault: BaseException | None = None) -> None:
        """Stores the outcome and wakes the caller. The first outcome stands."""
        if not self.done.is_set():
            self.output, self.fault = output, fault
            self.done.set()


@dataclass(eq=False)
class _Job(Pending):
    work: Callable[[], Any]

    def __call__(self) -> None:
        try:
            output = self.work()
        except BaseException as fault:
            self.finish(fault=fault)
        else:
            self.finish(output)


class Compute:
    """A single-thread executor with a job queue, and sources of forwards that it asks when the queue is empty.

    ``changed``: hold it to change what a source has; notify it when there is new work.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._sources: list[Source] = []
        self._closed = self._ended = False
        self._cause: BaseException | None = None
        self._awaited: set[Pending] = set()
        self._asked: Source | None = None
        """The source whose work runs, if it is a source's."""
        self._own_fault: BaseException | None = None
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

        def queue() -> None:
            if self._closed:
                raise self._refusal()
            self._jobs.append(job)

        self.await_(job, queue)
        result: T = job.output
        return result

    def await_(self, pending: Pending, queue: Callable[[], None]) -> None:
        """Calls ``queue``, which adds ``pending`` to the thread's work, and blocks until it is done. Raises its fault.

        Raises WorkerBroken if the thread ends by a fault, before or meanwhile.
        """
        with self.changed:
            if self._ended:
                raise self._refusal()
            queue()
            self._awaited.add(pending)
            self.changed.notify_all()
        try:
            pending.done.wait()
        finally:
            with self.changed:
                self._awaited.discard(pending)
        if pending.fault is not None:
            raise pending.fault

    def give_way(self) -> None:
        """In the midst of long work, runs a forward of another source if one waits. Elsewhere it does nothing."""
        if threading.current_thread() is not self._thread:
            return
        with self.changed:
            outer = self._asked
            work, _ = self._forward(besides=outer)
        if work is None:
            return
        try:
            work()
        except BaseException as fault:  # nobody's own: it ends the thread, once the work it broke into is done
            self._own_fault = fault
        self._asked = outer

    def close(self) -> None:
        """Ends the thread once all queued work is done."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
                if self._own_fault is not None:
                    raise self._own_fault
        except BaseException as fault:  # SystemExit, too: whatever ends the thread, callers wait for it
            self._end(fault)
            logger.exception("the compute thread ended", fault=type(fault).__name__)
        else:
            self._end(None)

    def _end(self, cause: BaseException | None) -> None:
        """Fails all who wait, wherever their work lies: queued here, in a source, or taken by a forward."""
        with self.changed:
            self._ended, self._cause = True, cause
            self._jobs.clear()
            for pending in self._awaited:
                pending.finish(fault=self._refusal())

    def _refusal(self) -> Exception:
        """A new exception for each caller: one that several threads raise would collect all their tracebacks."""
        if self._cause is None:
            return RuntimeError("the compute thread is closed")
        broken = WorkerBroken(f"the compute thread ended: {type(self._cause).__name__}")
        broken.__cause__ = self._cause
        return broken

    def _forward(self, besides: Source | None = None) -> tuple[Callable[[], None] | None, list[float]]:
        """A source's work, or the seconds after which to ask again. The sources take turns."""
        now, waits = time.perf_counter(), []
        for source in self._sources:
            if source is besides:
                continue
            work, wait = source.next(now)
            if work is not None:
                self._asked = source
                self._sources.remove(source)
                self._sources.append(source)
                return work, []
            if wait is not None:
                waits.append(wait)
        return None, waits

    def _next(self) -> Callable[[], None] | None:
        """The next work, None once closed. Jobs first: an encoded text lets a task join the next forward."""
        with self.changed:
            while True:
                self._asked = None
                if self._jobs:
                    return self._jobs.popleft()
                work, waits = self._forward()
                if work is not None:
                    return work
                if self._closed and not waits:
                    return None
                self.changed.wait(min(waits, default=None))
