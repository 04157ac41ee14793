"""Cheap polling: ETags and conditional requests, ``Retry-After``, and long polls."""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING, Any

from ..contract.paging import MAX_WAIT
from ..contract.statuses import TERMINAL
from ..errors import FieldError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from ..aws.s3 import Stored
    from .ahead import Waits

DEFAULT_RETRY_AFTER, MOST_RETRY_AFTER = 2, 5
"""Seconds of ``Retry-After`` for a task without an ETA, and the least for one that waits; the most for one that is
being drawn: an ETA from the first steps is often far too long, previews change meanwhile, and a task may be cancelled.
"""
MOST_PENDING = 15
"""The most for one that waits: what is before it may be cancelled, and more workers may come."""
COARSE = 5.0
"""Seconds by which what a task still waits must change for its ETag to be another."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 1.0
"""Seconds between two reads of S3 in a long poll, the first and the longest; 20 s cost about 25 GETs."""


def etag(
    stored: Stored, record: dict[str, Any], *, inline: bool, now: datetime, url_lifetime: int, waits: Waits
) -> str:
    """The ETag of a result. It changes with the record and with ``inline``; if the result has presigned URLs also after
    every half of their lifetime, so that at a 304 the URLs the caller has are valid for at least the other half. Of a
    task that waits it changes with what is before it (``waits``: see :meth:`.ahead.Ahead.of`).

    Weak, because every presigned URL has another signature.
    """
    has_urls = bool(record["images"] or record.get("preview"))
    half = math.floor(now.timestamp() / (url_lifetime / 2)) if has_urls else 0
    parts = f"{stored.etag} {record['sequence']} {inline} {half}"
    if record["status"] == "pending":
        parts += f" {waits.ahead} {waits.wait_seconds and round(waits.wait_seconds / COARSE)}"
    return f'W/"{hashlib.sha256(parts.encode()).hexdigest()[:32]}"'


def matches(header: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` header matches the ETag, by weak comparison (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    tags = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" in tags or tag.removeprefix("W/") in tags


def retry_after(record: dict[str, Any], waits: Waits) -> dict[str, str]:
    """The ``Retry-After`` header from the task's ETA, or from when it is begun, so that whoever looks on sees that; no
    header for a terminal task.
    """
    if record["status"] in TERMINAL:
        return {}
    if record["status"] == "pending":
        seconds = min(MOST_PENDING, max(DEFAULT_RETRY_AFTER, math.ceil(waits.begins_in or 0)))
    else:
        eta = (record["progress"] or {}).get("eta_seconds")
        seconds = DEFAULT_RETRY_AFTER if eta is None else min(MOST_RETRY_AFTER, max(1, math.ceil(eta)))
    return {"Retry-After": str(seconds)}


def seconds_to_wait(text: str | None) -> int:
    """The value of ``?wait=``; 0 without one. Raises InvalidRequest."""
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,2}", text) or not 1 <= int(text) <= MAX_WAIT:
        raise InvalidRequest([FieldError("wait", f"must be a whole number of seconds from 1 to {MAX_WAIT}")])
    return int(text)


def poll_intervals() -> Iterator[float]:
    """Seconds between the reads of a long poll: short ones first, so that a quick task is reported quickly."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(LONGEST_PAUSE, pause * 1.3)
