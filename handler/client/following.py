"""Waiting for a task: long polls where the service holds them, else polls ever further apart."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import StillRunning
from .patience import backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contract.responses import ResultResponse
    from .patience import Clock
    from .service import Poll, Service

LONG_POLL = 20
"""Seconds, the most that the service holds a question."""
HELD = 0.5
"""The part of the seconds asked for after which an answer has been held, and the next question may follow at once."""
MOST_PAUSE = 5.0


def follow(
    service: Service,
    task_id: str,
    timeout: float | None,
    clock: Clock,
    on_change: Callable[[ResultResponse], None] | None = None,
    keep_waiting: Callable[[], bool] = lambda: True,
) -> ResultResponse:
    """The terminal result. Raises StillRunning after ``timeout`` seconds, or at the next answer after ``keep_waiting`` says
    no.

    Nobody looks on: then only the end is waited for, which costs a request every 20 seconds. With ``on_change`` the
    ETag goes along, and the service answers at every change.
    """
    deadline = inf if timeout is None else clock.monotonic() + timeout
    last: ResultResponse | None = None
    etag: str | None = None
    quiet = 0
    while True:
        began = clock.monotonic()
        at_once = on_change is not None and last is None
        wait = 0 if at_once else int(min(LONG_POLL, max(0.0, deadline - began)))
        polled = service.poll(task_id, etag, wait)
        changed = polled.result is not None and (last is None or polled.result.sequence > last.sequence)
        if polled.result is not None and changed:
            last = polled.result
            if on_change is not None:
                on_change(last)
            if last.status in TERMINAL:
                return last
        now = clock.monotonic()
        if now >= deadline or not keep_waiting():
            raise StillRunning(task_id, last)
        held = wait > 0 and now - began >= wait * HELD
        quiet = 0 if changed or held else quiet + 1
        # Against a service, or something before it, that does not hold a question: what has not changed is told by a
        # 304 without a body.
        etag = polled.etag if on_change is not None or quiet else None
        clock.sleep(min(_rest(polled, quiet, clock), max(0.0, deadline - now)))


def _rest(polled: Poll, quiet: int, clock: Clock) -> float:
    """None after a change or a held question; else what the service says, jittered, and never long without a polled."""
    if not quiet:
        return 0.0
    least = min(polled.retry_after or 0.0, MOST_PAUSE)
    return max(least, 0.1) + backoff(quiet, clock.random, most=MOST_PAUSE - least)
