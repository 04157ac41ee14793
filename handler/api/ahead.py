"""How many wait before a task, and for how long: from the queue's approximate count, which is asked for waiting tasks
alone, and at most every few seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..contract.health import Measured
from ..errors import ServiceFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.queue import Backlog
    from ..contract.health import Health
    from ..settings import Settings

ASK_EVERY = 5.0
"""Seconds; the counts themselves are up to a minute late."""
USUAL_STEPS = 50
"""Of a task whose model has no default: diffusers' own."""


class Counted(Protocol):
    """What of :class:`~handler.aws.queue.TaskQueue` is used."""

    def backlog(self) -> Backlog: ...


class WhenAsked:
    """The settings' queue, whose client is made only when it is asked: that takes longer than all else here."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: Counted | None = None

    def backlog(self) -> Backlog:
        from ..aws.queue import TaskQueue

        if self._queue is None:
            self._queue = TaskQueue(self._settings)
        return self._queue.backlog()


@dataclass(frozen=True)
class Waits:
    """What a task still waits. ``wait_seconds``: until its picture is there; ``begins_in``: until it is begun."""

    ahead: int | None = None
    wait_seconds: float | None = None
    begins_in: float | None = None

    def told(self) -> dict[str, Any]:
        """The fields that a caller sees."""
        return {"ahead": self.ahead, "wait_seconds": self.wait_seconds}


class Ahead:
    """``queue``: None where there is none to ask. Thread-safe: a race asks twice."""

    def __init__(self, queue: Counted | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._monotonic = queue, monotonic
        self._known: Backlog | None = None
        self._asked_at = float("-inf")

    def of(self, record: dict[str, Any], health: Callable[[], Health]) -> Waits:
        """All None of a record that does not wait, and where nobody can tell.

        All messages that are visible may be before it: SQS tells no order. Those that are hidden are being drawn, and
        as many are drawn at a time.
        """
        backlog = self._backlog() if record["status"] == "pending" and self._queue is not None else None
        if backlog is None:
            return Waits()
        ahead = max(0, backlog.visible - 1)
        seconds = _seconds(record["request"] or {}, health())
        if seconds is None:
            return Waits(ahead)
        begins_in = seconds * ahead / max(1, backlog.hidden)
        return Waits(ahead, round(begins_in + seconds, 1), begins_in)

    def _backlog(self) -> Backlog | None:
        now = self._monotonic()
        if now - self._asked_at >= ASK_EVERY and self._queue is not None:
            try:
                self._known, self._asked_at = self._queue.backlog(), now
            except ServiceFault:
                self._known, self._asked_at = None, now  # the task's state is told all the same
        return self._known


def _seconds(request: dict[str, Any], health: Health) -> float | None:
    """Of a worker's time for such a task, as far as one has measured its model."""
    measured = Measured.read(health["measured"])
    if measured is None:
        return None
    defaults = (health["model"] or {}).get("defaults") or {}
    steps = request.get("num_inference_steps") or defaults.get("num_inference_steps") or USUAL_STEPS
    width, height = (request.get(name) or defaults.get(name) for name in ("width", "height"))
    pixels = width * height if width and height else measured.pixels
    images = request.get("num_images") or 1
    return float((measured.step * steps + measured.other) * images * pixels / measured.pixels)
