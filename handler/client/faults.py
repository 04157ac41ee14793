"""Turns the service's error responses and failed tasks back into exceptions, by their code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..contract.responses import ErrorResponse
from ..errors import (
    Cancelled,
    Conflict,
    DarkroomError,
    FieldError,
    Internal,
    InvalidRequest,
    ModelUnavailable,
    NotFound,
    OutOfMemory,
    QuotaExceeded,
    RetriesExhausted,
    ServiceFault,
    SettingsError,
    TimedOut,
    UnsafeContent,
)

if TYPE_CHECKING:
    from ..contract.record import ErrorInfo
    from ..contract.responses import ResultResponse

KINDS: dict[str, type[DarkroomError]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        Conflict,
        Internal,
        InvalidRequest,
        ModelUnavailable,
        NotFound,
        OutOfMemory,
        QuotaExceeded,
        RetriesExhausted,
        TimedOut,
        UnsafeContent,
    )
}
WITHOUT_ENVELOPE: dict[int, type[DarkroomError]] = {
    300: SettingsError,  # a redirect: not followed, because the API key would be sent along
    400: InvalidRequest,
    404: NotFound,
    429: ServiceFault,
    500: ServiceFault,
}
"""Exceptions for responses that are not in the service's format (API Gateway's, a proxy's), by status or its class."""


def fault_in(result: ResultResponse) -> DarkroomError | None:
    """Why the task failed or was cancelled, as an exception (not raised); None otherwise."""
    return _fault(result.error) if result.error and result.status in {"failed", "cancelled"} else None


def refusal(status: int, body: bytes) -> DarkroomError:
    """The exception for an HTTP error response."""
    if status in {401, 403}:
        return SettingsError(f"the service refuses the API key ({status}): {_text(body)}")
    try:
        told = ErrorResponse.model_validate_json(body, extra="ignore").error
    except ValidationError:
        kind = WITHOUT_ENVELOPE.get(status) or WITHOUT_ENVELOPE.get(status // 100 * 100, Internal)
        return _build(kind, f"the service answers {status}: {_text(body)}")
    if told.code == "INTERNAL" and status == 503:
        return ServiceFault(told.message)
    return _build(KINDS[told.code], told.message, [FieldError(one.field, one.message) for one in told.details])


def _fault(error: ErrorInfo) -> DarkroomError:
    return _build(KINDS[error.code], error.message, [FieldError(one.field, one.message) for one in error.details])


def _build(kind: type[DarkroomError], message: str, details: list[FieldError] | None = None) -> DarkroomError:
    """Makes an exception with this message, bypassing its own constructor, which would compose another."""
    fault = kind.__new__(kind)
    DarkroomError.__init__(fault, message, details or ())
    return fault


def _text(body: bytes) -> str:
    """The beginning of a foreign response body, on one line."""
    return " ".join(body[:200].decode("utf-8", "replace").split()) or "no words"
