"""Attempt: one worker's hold on a task, from the claim to the commit mark; and the heartbeat that keeps it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import tasks
from .errors import DarkroomError, LostRace, ServiceFault
from .logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from .settings import Settings
    from .storage import Stored, TaskStore
    from .taskqueue import Message, TaskQueue


class Attempt:
    """Holds the record as last written. Every move goes through ``If-Match``, so an attempt that was superseded or
    cancelled meets a LostRace, writes nothing more and stops its pipeline at the next step.
    """

    def __init__(
        self,
        store: TaskStore,
        queue: TaskQueue,
        settings: Settings,
        now: Callable[[], datetime],
        *,
        stored: Stored,
        record: tasks.Record,
        message: Message,
    ) -> None:
        self._store, self._queue, self._now, self._message = store, queue, now, message
        self._stored, self.record = stored, record
        self._lease = timedelta(seconds=settings.lease)
        self._lock = threading.Lock()
        self._lost: LostRace | None = None
        self._hidden_at = now()
        self._progress: tasks.Progress | None = None
        self._first_step_at: float | None = None

    def at_step(self, step: int, steps: int) -> None:
        """The engine's observer. Raises LostRace once the task is no longer this attempt's."""
        if self._lost is not None:
            raise self._lost
        lease = self.record.lease
        if lease is not None and lease.expires_at <= self._now():
            # Signs of life failed for a whole lease: another worker may already have the task.
            raise LostRace("the lease ran out while S3 could not be reached")
        moment = time.monotonic()
        self._first_step_at = self._first_step_at or moment
        eta = (moment - self._first_step_at) / step * (steps - step) if step else None
        self._progress = tasks.Progress(step=step, steps=steps, fraction=step / steps, eta_seconds=eta)

    def beat(self) -> None:
        """Writes a sign of life: lease, progress and, in time, the message's visibility. Never raises."""
        with self._lock:
            if self.record.lease is None or self._lost is not None:
                return
            try:
                self._write(tasks.beat(self.record, now=self._now(), lease=self._lease, progress=self._progress))
                if self._now() - self._hidden_at >= self._lease / 3:
                    self._queue.hide(self._message.receipt_handle, self._lease.total_seconds())
                    self._hidden_at = self._now()
            except LostRace as lost:
                self._lost = lost
            except ServiceFault as fault:
                logger.warning("a sign of life failed; the next may not", task_id=self.record.task_id, fault=str(fault))

    def complete(self, images: list[tasks.Image], timings: tasks.Timings, **run: Any) -> None:
        """The commit mark. A crash before it leaves images that no record names, and the task to the next attempt."""
        with self._lock:
            moved = tasks.complete(self.record, now=self._now(), images=images, timings=timings, **run)
            self._write(moved)

    def fail(self, fault: DarkroomError) -> None:
        with self._lock:
            self._write(tasks.fail(self.record, now=self._now(), fault=fault))

    def release(self, fault: DarkroomError) -> None:
        """Gives the task back. Should this fail too, the lease runs out and the next attempt takes it."""
        with self._lock:
            self._write(tasks.release(self.record, fault=fault))

    def _write(self, record: tasks.Record) -> None:
        self._stored = self._store.change(self._stored, record)
        self.record = record


class Heartbeat:
    """One thread for all of a worker's attempts, started with the first."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._attempts: set[Attempt] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, attempt: Attempt) -> Iterator[None]:
        """Beats for ``attempt`` every few seconds while the block runs, first after one interval."""
        with self._changed:
            self._attempts.add(attempt)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._attempts.discard(attempt)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._attempts))
            time.sleep(self._every)
            with self._changed:
                held = list(self._attempts)
            for attempt in held:
                attempt.beat()
