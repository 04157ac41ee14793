"""Names: what a task and a tenant may be called, fresh ids and seeds. Light: every handler loads it."""

from __future__ import annotations

import secrets
import uuid

TASK_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""A task's name, whole: safe in a URL, a file name and an S3 key."""
TENANT = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""A tenant's name, whole: safe in an S3 key and an SQS attribute, and without the dots that could climb out of one."""
MAX_UPLOAD = 10 * 1024 * 1024
"""Bytes that an input image may have."""


def new_id() -> str:
    return str(uuid.uuid4())


def new_span_id() -> str:
    """64 bits in hex, as X-Ray names segments."""
    return secrets.token_hex(8)


def new_seed() -> int:
    """32 bits: enough to differ, short enough to be typed."""
    return secrets.randbits(32)
