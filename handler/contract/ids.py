"""The syntax of task and tenant names; new ids and seeds. Imports little, because every handler loads it."""

from __future__ import annotations

import secrets
import uuid

TASK_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Pattern of a whole task_id: safe in a URL, a file name and an S3 key."""
TENANT = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
"""Pattern of a whole tenant name: safe in an S3 key and an SQS attribute; without dots, so that it is never ``..``."""
MAX_UPLOAD = 10 * 1024 * 1024
"""Most bytes of an input image."""


def new_id() -> str:
    """A random UUID."""
    return str(uuid.uuid4())


def new_span_id() -> str:
    """64 bits in hex, as X-Ray names segments."""
    return secrets.token_hex(8)


def new_seed() -> int:
    """A random seed of 32 bits: short enough to be typed."""
    return secrets.randbits(32)
