"""Errors in OpenAI's envelope (API reference, "Error codes"). Without pydantic: every answer may be an error."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import DarkroomError
    from .routing import Reply

PREFIX = "/v1/"
"""What their paths begin with."""
NOT_AGAIN = {"X-Should-Retry": "false"}
LONGEST_WAIT = 60.0
"""Seconds of ``Retry-After`` that every release of their client waits for; others repeat the call at once, in vain."""


def envelope(fault: DarkroomError) -> dict[str, Any]:
    """The error as their clients read it. ``param`` is the first field at fault, ``code`` one of ours."""
    status = fault.http_status
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    param = fault.details[0].field if fault.details else None
    return {"error": {"message": fault.message, "type": kind, "param": param, "code": fault.code}}


def with_advice(reply: Reply) -> Reply:
    """The answer of an error, with the header that keeps their client from repeating 409, 429 and 500 in vain.

    A 500 nobody foresaw: the task may have a record, and the same call would be another one.
    """
    passes = reply.status > 500 or (reply.status == 429 and float(reply.headers.get("Retry-After", 0)) <= LONGEST_WAIT)
    return reply if passes else not_again(reply)


def not_again(reply: Reply) -> Reply:
    """The answer, with the word that the same call is not to be repeated."""
    return replace(reply, headers={**reply.headers, **NOT_AGAIN})
