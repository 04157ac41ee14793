"""Errors in OpenAI's envelope (API reference, "Error codes"). Without pydantic: every answer may be an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import DarkroomError

PREFIX = "/v1/"
"""What their paths begin with."""


def envelope(fault: DarkroomError) -> dict[str, Any]:
    """The error as their clients read it. ``param`` is the first field at fault, ``code`` one of ours."""
    status = fault.http_status
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    param = fault.details[0].field if fault.details else None
    return {"error": {"message": fault.message, "type": kind, "param": param, "code": fault.code}}
