"""S3's own time: the one clock by which all hosts judge the age of what others wrote.

Never the difference of two hosts' wall clocks: a worker whose clock is 90 seconds off would take tasks that are being
drawn. An object's ``Last-Modified`` is by S3's clock, and so is the ``Date`` of its replies.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from ..errors import ServiceFault

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP = 600.0
"""Seconds for which S3's time is known by this host's monotonic clock, before it is asked for again."""
TIMEOUT = 5.0


class S3Clock:
    """S3's time, asked for when it is first needed. Thread-safe. ``sign`` makes a presigned URL for HEAD."""

    def __init__(self, sign: Callable[[], str], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._sign, self._monotonic = sign, monotonic
        self._lock = threading.Lock()
        self._read: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """To about a second. Raises ServiceFault where S3 does not answer."""
        with self._lock:
            if self._read is None or self._monotonic() - self._read[1] > KEEP:
                self._read = (date_of(self._sign()), self._monotonic())
            then, at = self._read
        return then + timedelta(seconds=self._monotonic() - at)


def date_of(url: str) -> datetime:
    """The ``Date`` header (RFC 9110, 6.6.1) of the reply to a HEAD, whatever its status. Raises ServiceFault."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - signed by ourselves
    try:
        try:
            reply = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
        except urllib.error.HTTPError as refused:
            reply = refused
        with reply:
            return parsedate_to_datetime(reply.headers["Date"])
    except (OSError, TypeError, ValueError) as fault:
        raise ServiceFault("S3 failed to tell the time") from fault
