"""How long a call is repeated: exponential pauses with full jitter, Retry-After, one deadline for all of it.

Source of the pauses: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from ..clock import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..errors import DarkroomError

T = TypeVar("T")
BASE = 0.25
MOST = 8.0


class Retryable(Exception):
    """Inside the client only: ``fault`` may be gone at the next try, not before ``retry_after`` seconds."""

    def __init__(self, fault: DarkroomError, retry_after: float | None = None) -> None:
        super().__init__(fault.message)
        self.fault, self.retry_after = fault, retry_after


@dataclass(frozen=True)
class Clock:
    """What a client takes from outside. ``clock`` counts seconds from anywhere, ``random`` lies in [0, 1)."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], datetime] = utc_now


def backoff(tries: int, random: Callable[[], float], *, most: float = MOST) -> float:
    """Seconds before the next try, after so many."""
    return random() * min(most, BASE * 2.0 ** min(tries, 30))


def with_retries(attempt: Callable[[float], T], within: float, clock: Clock) -> T:
    """Calls ``attempt`` with the seconds that are left until it returns. Raises the fault of the last Retryable when the
    next try would come later than ``within`` seconds after the first: a Retry-After beyond that is not waited for.
    """
    deadline = clock.monotonic() + within
    for tries in count():
        try:
            return attempt(deadline - clock.monotonic())
        except Retryable as passing:
            # The jitter goes on top of Retry-After, or all who were sent away would come back at the same moment.
            rest = (passing.retry_after or 0) + backoff(tries, clock.random)
            if clock.monotonic() + rest > deadline:
                if passing.retry_after is not None:
                    passing.fault.retry_after = round(passing.retry_after)
                raise passing.fault from passing.__cause__
            clock.sleep(rest)
    raise AssertionError("count() does not end")


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """A Retry-After in either of its forms, as seconds from now; None where there is none that can be read."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None
