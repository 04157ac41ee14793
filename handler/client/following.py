"""Waiting for a task: long polls if the service supports them, else polls with exponential backoff."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import NotFound, StillRunning
from .patience import backoff
from .service import Poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contract.responses import ResultResponse
    from .patience import Clock
    from .service import Service

LONG_POLL = 20
"""Seconds: the longest that the service holds a long poll."""
HELD = 0.5
"""A poll that took at least this part of its wait was really held, and the next one may follow at once."""
MOST_PAUSE = 5.0
"""Most seconds between two polls."""


def follow(
    service: Service,
    task_id: str,
    timeout: float | None,
    clock: Clock,
    on_change: Callable[[ResultResponse], None] | None = None,
    keep_waiting: Callable[[], bool] = lambda: True,
    *,
    on_unseen: Callable[[], None] | None = None,
) -> ResultResponse:
    """Polls until the result is terminal and returns it. Raises StillRunning after ``timeout`` seconds (None: never),
    or after the first poll at which ``keep_waiting`` returns False.

    Raises NotFound if there is no such task; with ``on_unseen`` only if there was one. Until then that is called, once,
    and the task waited for.

    With ``on_change`` each poll carries the ETag, so that the service answers at every change; without it only at the
    end, which costs one request every 20 seconds.
    """
    deadline = inf if timeout is None else clock.monotonic() + timeout
    last: ResultResponse | None = None
    etag: str | None = None
    quiet = 0
    unseen = False
    while True:
        began = clock.monotonic()
        at_once = on_change is not None and last is None
        wait = 0 if at_once else int(min(LONG_POLL, max(0.0, deadline - began)))
        try:
            polled = service.poll(task_id, etag, wait)
        except NotFound:
            if last is not None or on_unseen is None:
                raise
            polled = Poll(None)
            if not unseen:
                on_unseen()
            unseen = True
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
        # If the service, or a proxy before it, does not hold polls: with an ETag an unchanged task costs only a 304.
        etag = polled.etag if on_change is not None or quiet else None
        clock.sleep(min(_rest(polled, quiet, clock), max(0.0, deadline - now)))


def _rest(polled: Poll, quiet: int, clock: Clock) -> float:
    """Seconds before the next poll: 0 after a change or a held poll, else at least Retry-After, with jitter and at most
    MOST_PAUSE.
    """
    if not quiet:
        return 0.0
    least = min(polled.retry_after or 0.0, MOST_PAUSE)
    return max(least, 0.1) + backoff(quiet, clock.random, most=MOST_PAUSE - least)
