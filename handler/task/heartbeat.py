"""The heartbeat: renews every running attempt's lease, progress and message visibility."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .attempt import Attempt

JITTER = 0.2
"""Random part of the time between two heartbeats, so that workers that started together do not stay in step."""
MOST_CALLS = 128
"""Threads: one for S3 and one for SQS for each of the most tasks that a worker may have."""


@dataclass
class _Watched:
    due: float
    busy: set[str] = field(default_factory=set)


class Heartbeat:
    """A scheduler thread, started with the first attempt. The calls run in a pool, those to S3 and to SQS apart, so
    that a slow one delays no other.

    ``every``: mean seconds between two heartbeats; ``first``: seconds until the first; ``chance``: random in [0, 1).
    """

    def __init__(self, every: float, first: float, chance: Callable[[], float]) -> None:
        self._every, self._first, self._chance = every, first, chance
        self._attempts: dict[Attempt, _Watched] = {}
        self._changed = threading.Condition()
        self._calls = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="sign")
        self._started = False
        self._finish_by: float | None = None

    @contextmanager
    def watching(self, attempt: Attempt) -> Iterator[None]:
        """Sends heartbeats for ``attempt`` while the block runs, the first after ``first`` seconds."""
        with self._changed:
            self._attempts[attempt] = _Watched(time.monotonic() + self._first)
            if self._finish_by is not None:
                attempt.suspend_by(self._finish_by)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._attempts.pop(attempt, None)

    def suspend(self, finish_by: float) -> None:
        """Suspends all attempts, also later ones, that will not be done by ``finish_by`` (time.monotonic)."""
        with self._changed:
            self._finish_by = finish_by
            for attempt in self._attempts:
                attempt.suspend_by(finish_by)

    def release_all(self) -> None:
        """Checkpoints and releases all attempts in parallel; returns when that is done."""
        with self._changed:
            held = list(self._attempts)
        list(self._calls.map(lambda attempt: attempt.release_now(), held))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._attempts))
                self._changed.wait(max(0.0, min(one.due for one in self._attempts.values()) - time.monotonic()))
                due = self._take_due()
            for attempt, kind in due:
                self._calls.submit(self._sign, attempt, kind)

    def _take_due(self) -> list[tuple[Attempt, str]]:
        now = time.monotonic()
        due: list[tuple[Attempt, str]] = []
        for attempt, watched in self._attempts.items():
            if watched.due <= now:
                watched.due = now + self.pause()
                free = {"beat", "extend_visibility"} - watched.busy
                watched.busy |= free
                due += [(attempt, kind) for kind in sorted(free)]
        return due

    def pause(self) -> float:
        """Seconds until the next heartbeat: ``every``, give or take JITTER."""
        return self._every * (1 + JITTER * (2 * self._chance() - 1))

    def _sign(self, attempt: Attempt, kind: str) -> None:
        try:
            (attempt.beat if kind == "beat" else attempt.extend_visibility)()
        finally:
            with self._changed:
                if watched := self._attempts.get(attempt):
                    watched.busy.discard(kind)
