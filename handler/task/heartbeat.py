"""The heartbeat: renews every running attempt's lease, progress and message visibility, for as long as it moves."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..errors import ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..aws.queue import Message, TaskQueue
    from ..errors import DarkroomError

JITTER = 0.2
"""Random part of the time between two heartbeats, so that workers that started together do not stay in step."""
MOST_CALLS = 192
"""Threads: three calls for each of the most tasks that a worker may have."""
RELEASE_WITHIN = 4.0
"""Seconds for which a process that ends waits for what it gives back. A snapshot on a lost device may never return."""

LEAST_WAIT = 0.3
"""Seconds of it for the messages, however long the tasks took."""


@dataclass(frozen=True)
class Sign:
    """A call to be made again and again: every so many seconds, or with each heartbeat."""

    call: Callable[[], None]
    every: float | None = None


class Watched(Protocol):
    """What the heartbeat looks after. None of it raises."""

    @property
    def signs(self) -> tuple[Sign, ...]:
        """Each is called apart from the others, for each may take its time."""

    def stuck(self) -> float | None:
        """Seconds without a step, once these are too many; then it gets no more signs of life."""

    def suspend_by(self, finish_by: float) -> None: ...
    def release_now(self, fault: DarkroomError | None = None) -> None: ...


class Hidden:
    """A received message that is kept hidden, a ``lease`` (seconds) at a time, while it is watched, until it is given
    back.
    """

    def __init__(self, queue: TaskQueue, message: Message, lease: float) -> None:
        self._queue, self._handle, self._lease = queue, message.receipt_handle, lease
        self._lock = threading.Lock()
        self._hidden_at = time.monotonic()
        self.returned = False

    def hide(self) -> None:
        """Hides the message for a lease from now on. A ServiceFault is logged, not raised."""
        with self._lock:
            if self.returned:
                return
            try:
                self._queue.change_visibility(self._handle, self._lease)
                self._hidden_at = time.monotonic()
            except ServiceFault as fault:
                logger.warning("the message may come back early", fault=str(fault))

    def extend_visibility(self) -> None:
        """Hides it for another lease, once a third of the last one has passed."""
        if time.monotonic() - self._hidden_at >= self._lease / 3:
            self.hide()

    def show(self, seconds: float) -> None:
        """Gives the message back to the queue, to appear in so many seconds. Nothing hides it after that."""
        with self._lock:
            if self.returned:
                return
            self.returned = True
            try:
                self._queue.change_visibility(self._handle, seconds)
            except ServiceFault as fault:
                logger.warning("the message comes back when its visibility timeout ends", fault=fault.message)

    def release_now(self, fault: DarkroomError | None = None) -> None:  # noqa: ARG002
        self.show(0)

    @property
    def signs(self) -> tuple[Sign, ...]:
        return (Sign(self.extend_visibility),)

    def stuck(self) -> float | None:
        return None

    def suspend_by(self, finish_by: float) -> None:
        """Whoever waits looks for itself whether the worker stops."""


@dataclass
class _Turns:
    due: dict[Sign, float]
    busy: set[Sign] = field(default_factory=set)


class Heartbeat:
    """A scheduler thread, started with the first attempt. The calls run in a pool, the lease's, SQS's and those for
    previews and checkpoints apart, so that a slow one delays no other.

    ``every``: mean seconds between two heartbeats; ``first``: seconds until the first; ``chance``: random in [0, 1).
    ``on_turn`` is called with each round of signs; ``on_stuck`` once for each attempt that makes no more steps, with
    the seconds.
    """

    def __init__(
        self,
        every: float,
        first: float,
        chance: Callable[[], float],
        *,
        on_turn: Callable[[], None] = lambda: None,
        on_stuck: Callable[[Watched, float], None] = lambda _attempt, _seconds: None,
    ) -> None:
        self._every, self._first, self._chance = every, first, chance
        self._on_turn, self._on_stuck = on_turn, on_stuck
        self._attempts: dict[Watched, _Turns] = {}
        self._changed = threading.Condition()
        self._calls = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="sign")
        self._started = False
        self._finish_by: float | None = None

    @contextmanager
    def watching(self, attempt: Watched) -> Iterator[None]:
        """Sends heartbeats for ``attempt`` while the block runs, the first after ``first`` seconds."""
        now = time.monotonic()
        due = {sign: now + (self._first if sign.every is None else sign.every) for sign in attempt.signs}
        with self._changed:
            self._attempts[attempt] = _Turns(due)
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

    @property
    def drawing(self) -> bool:
        """Whether an attempt is under way, and not only a message that waits."""
        with self._changed:
            return any(not isinstance(one, Hidden) for one in self._attempts)

    def release_all(self, within: float = RELEASE_WITHIN) -> None:
        """Checkpoints and releases all attempts in parallel; returns once done, ``within`` so many seconds."""
        with self._changed:
            held = list(self._attempts)
        messages = [one for one in held if isinstance(one, Hidden)]
        attempts = [one for one in held if not isinstance(one, Hidden)]
        ends = time.monotonic() + within
        for each in (attempts, messages):  # who receives the message finds its task released
            released = [self._calls.submit(one.release_now) for one in each]
            wait(released, timeout=max(LEAST_WAIT, ends - time.monotonic()))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._attempts))
                until = min((due for one in self._attempts.values() for due in one.due.values()), default=float("inf"))
                self._changed.wait(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
                due = self._take_due()
            if due:
                self._calls.submit(self._on_turn)
            for attempt, sign in due:
                self._calls.submit(self._sign, attempt, sign)

    def _take_due(self) -> list[tuple[Watched, Sign]]:
        now = time.monotonic()
        taken: list[tuple[Watched, Sign]] = []
        for attempt, turns in self._attempts.items():
            ready = [sign for sign, due in turns.due.items() if due <= now]
            if ready and (seconds := attempt.stuck()) is not None:
                turns.due.clear()
                self._calls.submit(self._on_stuck, attempt, seconds)
                continue
            turns.due.update({sign: now + (self.pause() if sign.every is None else sign.every) for sign in ready})
            free = [sign for sign in ready if sign not in turns.busy]
            turns.busy.update(free)
            taken += [(attempt, sign) for sign in free]
        return taken

    def pause(self) -> float:
        """Seconds until the next heartbeat: ``every``, give or take JITTER."""
        return self._every * (1 + JITTER * (2 * self._chance() - 1))

    def _sign(self, attempt: Watched, sign: Sign) -> None:
        try:
            sign.call()
        finally:
            with self._changed:
                if turns := self._attempts.get(attempt):
                    turns.busy.discard(sign)
