"""Which other pages may call the API from a browser (Fetch standard, "CORS protocol"): those that a setting names.

No credentials of the browser's are allowed: a caller identifies itself by a header.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .routing import Call, Reply

SENT = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "X-API-Key")
"""Headers that a page may send, beside those that it asks for."""
NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
MOST_NAMES = 40
SEEN = "Allow, ETag, Location, Retry-After, X-Should-Retry"
"""Headers that it may read, beside those that it always may."""
KEEP_SECONDS = 3600
"""So long a browser need not ask again."""


def with_cors(reply: Reply, call: Call, origins: str) -> Reply:
    """The reply with the headers that let the caller's page read it, if ``origins`` (with commas, or ``*``) has it."""
    allowed = {one.strip() for one in origins.split(",") if one.strip()}
    if not allowed:
        return reply
    headers = dict(reply.headers)
    origin = call.headers.get("Origin", "")
    if "*" in allowed:
        headers["Access-Control-Allow-Origin"] = "*"
    else:
        headers["Vary"] = "Origin"
        if origin not in allowed:
            return replace(reply, headers=headers)
        headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = SEEN
    if call.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        headers["Access-Control-Allow-Headers"] = ", ".join(
            _sent(call.headers.get("Access-Control-Request-Headers", ""))
        )
        headers["Access-Control-Max-Age"] = str(KEEP_SECONDS)
    return replace(reply, headers=headers)


def _sent(asked: str) -> list[str]:
    """The headers that a page may send: ours, and whatever else it asks for, as clients send some of their own
    (OpenAI's ``X-Stainless-*``); we read none of those.
    """
    names = {name.lower(): name for name in SENT}
    for name in (one.strip() for one in asked.split(",")[:MOST_NAMES]):
        if NAME.fullmatch(name):
            names.setdefault(name.lower(), name)
    return list(names.values())
