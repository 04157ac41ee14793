"""Waiting for a task: long polls where the service holds them, else polls ever further apart."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import StillRunning
from .patience import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contract.responses import ResultResponse
    from .patience import World
    from .service import Look, Service

LONG_POLL = 20
"""Seconds, the most that the service holds a question."""
HELD = 0.5
"""The part of the seconds asked for after which an answer has been held, and the next question may follow at once."""
MOST_PAUSE = 5.0


def follow(
    service: Service,
    task_id: str,
    timeout: float | None,
    world: World,
    on_change: Callable[[ResultResponse], None] | None = None,
    going_on: Callable[[], bool] = lambda: True,
) -> ResultResponse:
    """The terminal result. Raises StillRunning after ``timeout`` seconds, or at the next answer after ``going_on`` says
    no.

    Nobody looks on: then only the end is waited for, which costs a request every 20 seconds. With ``on_change`` the
    ETag goes along, and the service answers at every change.
    """
    deadline = inf if timeout is None else world.clock() + timeout
    last: ResultResponse | None = None
    etag: str | None = None
    quiet = 0
    while True:
        began = world.clock()
        at_once = on_change is not None and last is None
        wait = 0 if at_once else int(min(LONG_POLL, max(0.0, deadline - began)))
        look = service.look(task_id, etag, wait)
        changed = look.result is not None and (last is None or look.result.sequence > last.sequence)
        if look.result is not None and changed:
            last = look.result
            if on_change is not None:
                on_change(last)
            if last.status in TERMINAL:
                return last
        now = world.clock()
        if now >= deadline or not going_on():
            raise StillRunning(task_id, last)
        held = wait > 0 and now - began >= wait * HELD
        quiet = 0 if changed or held else quiet + 1
        # Against a service, or something before it, that does not hold a question: what has not changed is told by a
        # 304 without a body.
        etag = look.etag if on_change is not None or quiet else None
        world.sleep(min(_rest(look, quiet, world), max(0.0, deadline - now)))


def _rest(look: Look, quiet: int, world: World) -> float:
    """None after a change or a held question; else what the service says, jittered, and never long without a look."""
    if not quiet:
        return 0.0
    least = min(look.retry_after or 0.0, MOST_PAUSE)
    return max(least, 0.1) + pause(quiet, world.random, most=MOST_PAUSE - least)
