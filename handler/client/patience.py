"""Retries: exponential backoff with full jitter, Retry-After, and one deadline for all tries.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
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
"""Seconds of the first backoff, and the most of any."""


class Retryable(Exception):
    """Raised and caught inside the client: ``fault`` may not recur if the call is repeated after ``retry_after``
    seconds.
    """

    def __init__(self, fault: DarkroomError, retry_after: float | None = None) -> None:
        super().__init__(fault.message)
        self.fault, self.retry_after = fault, retry_after


@dataclass(frozen=True)
class Clock:
    """Time and randomness, replaceable in tests. ``random`` returns numbers in [0, 1)."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], datetime] = utc_now


def backoff(tries: int, random: Callable[[], float], *, most: float = MOST) -> float:
    """Seconds to wait after ``tries`` failed tries (counted from 0): random, up to a limit that doubles each time."""
    return random() * min(most, BASE * 2.0 ** min(tries, 30))


def with_retries(attempt: Callable[[float], T], within: float, clock: Clock) -> T:
    """Calls ``attempt`` with the seconds left until it no longer raises Retryable, and returns its result.

    Raises the last Retryable's fault if the next try would begin later than ``within`` seconds after the first: a
    Retry-After beyond that is not waited for.
    """
    deadline = clock.monotonic() + within
    for tries in count():
        try:
            return attempt(deadline - clock.monotonic())
        except Retryable as raised:
            # The jitter is added to Retry-After, or all rejected clients would come back at the same moment.
            rest = (raised.retry_after or 0) + backoff(tries, clock.random)
            if clock.monotonic() + rest > deadline:
                if raised.retry_after is not None:
                    raised.fault.retry_after = round(raised.retry_after)
                raise raised.fault from raised.__cause__
            clock.sleep(rest)
    raise AssertionError("count() does not end")


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """A Retry-After header (seconds, or an HTTP date) as seconds from ``now``; None if it is missing or malformed."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None
