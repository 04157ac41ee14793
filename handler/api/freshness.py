"""Asking again for little: ETags, and how long to wait before the next question."""

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

DEFAULT_RETRY_AFTER, MOST_RETRY_AFTER = 2, 5
"""Seconds: where nobody knows how long a task will take, and the most: an ETA made from the first steps is often
far too long, previews change meanwhile, and a task may be cancelled before its time."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 1.0
"""Seconds between two reads of a long poll: a 20 s wait costs some 25 GETs, the hundredth part of a cent for 1,000."""


def etag(stored: Stored, record: dict[str, Any], *, inline: bool, now: datetime, url_lifetime: int) -> str:
    """Changes with the record, with what was asked for, and, where the answer holds URLs, with every half of their
    lifetime: what a 304 stands for is good for the other half. Weak, for each signature is another.
    """
    has_urls = bool(record["images"] or record.get("preview"))
    half = math.floor(now.timestamp() / (url_lifetime / 2)) if has_urls else 0
    parts = f"{stored.etag} {record['sequence']} {inline} {half}"
    return f'W/"{hashlib.sha256(parts.encode()).hexdigest()[:32]}"'


def matches(header: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` names the tag; weak comparison, as it has to be."""
    if header is None:
        return False
    named = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" in named or tag.removeprefix("W/") in named


def retry_after(record: dict[str, Any]) -> dict[str, str]:
    """The header that tells when to ask again; none once there is nothing more to come."""
    if record["status"] in TERMINAL:
        return {}
    eta = (record["progress"] or {}).get("eta_seconds")
    seconds = DEFAULT_RETRY_AFTER if eta is None else min(MOST_RETRY_AFTER, max(1, math.ceil(eta)))
    return {"Retry-After": str(seconds)}


def seconds_to_wait(text: str | None) -> int:
    """Of ``?wait=``; 0 without one. Raises InvalidRequest."""
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,2}", text) or not 1 <= int(text) <= MAX_WAIT:
        raise InvalidRequest([FieldError("wait", f"must be a whole number of seconds from 1 to {MAX_WAIT}")])
    return int(text)


def poll_intervals() -> Iterator[float]:
    """Seconds between the reads of a long poll: a task that is done at once is seen at once."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(LONGEST_PAUSE, pause * 1.3)
