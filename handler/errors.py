"""All of Darkroom's exceptions, in one tree.

::

    DarkroomError                 code               retryable  HTTP
    ├── InvalidRequest            INVALID_REQUEST    no         422
    │   ├── MethodNotAllowed      INVALID_REQUEST    no         405   the path takes other methods
    │   ├── TooLarge              INVALID_REQUEST    no         413
    │   └── UnsupportedMediaType  INVALID_REQUEST    no         415
    ├── Unidentified              INVALID_REQUEST    no         403   with tenants on, a request that names none
    ├── NotFound                  NOT_FOUND          no         404
    ├── Conflict                  CONFLICT           no         409
    ├── QuotaExceeded             QUOTA_EXCEEDED     no         429   the day's budget is used up
    ├── ModelUnavailable          MODEL_UNAVAILABLE  yes        503
    ├── OutOfMemory               OUT_OF_MEMORY      no         500
    ├── UnsafeContent             UNSAFE_CONTENT     no         422
    ├── Cancelled                 CANCELLED          no         409
    ├── TimedOut                  TIMED_OUT          yes        504
    ├── StillRunning              TIMED_OUT          yes        504   a client's wait is over; the task goes on
    ├── RetriesExhausted          RETRIES_EXHAUSTED  no         500
    ├── Internal                  INTERNAL           yes        500   a fault of ours, met while developing
    ├── PipelineRefused           INTERNAL           no         500   the pipeline's own check of its arguments failed
    ├── ServiceFault              INTERNAL           yes        503   S3 or SQS failed, refused or did not answer
    ├── Suspended                 INTERNAL           yes        503   the worker stops; the task goes on elsewhere
    ├── WorkerBroken              INTERNAL           yes        503   device lost, disk full: the worker ends
    ├── SettingsError             INTERNAL           no         500   the environment is wrong
    └── Refused                   CONFLICT           no         409   a move that the record does not allow
        ├── Finished                                                  the task is terminal
        ├── Held                                                      another attempt's lease is alive
        └── LostRace                                                  somebody else moved the record: read again

``code`` is what callers see and is one of :data:`CODES`. ``retryable`` tells the queue what to do: a retryable
fault sends the message back, any other ends the task as ``failed``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .contract.responses import ResultResponse

Code = Literal[
    "INVALID_REQUEST",
    "NOT_FOUND",
    "CONFLICT",
    "QUOTA_EXCEEDED",
    "MODEL_UNAVAILABLE",
    "OUT_OF_MEMORY",
    "UNSAFE_CONTENT",
    "CANCELLED",
    "TIMED_OUT",
    "RETRIES_EXHAUSTED",
    "INTERNAL",
]
CODES: tuple[str, ...] = get_args(Code)


@dataclass(frozen=True)
class FieldError:
    """One thing that is wrong with a request. ``field``: its JSON path, a header's name, or ``body`` for all of it."""

    field: str
    message: str


class DarkroomError(Exception):
    """Base of all. ``message`` is shown to callers, so it contains no secret and no S3 key."""

    code: ClassVar[Code] = "INTERNAL"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    retry_after: int | None = None
    """Seconds after which the same call may succeed, for the header ``Retry-After``."""

    def __init__(self, message: str, details: Iterable[FieldError] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def envelope(self) -> dict[str, object]:
        """The JSON body of every HTTP error response."""
        details = [{"field": fault.field, "message": fault.message} for fault in self.details]
        return {"error": {"code": self.code, "message": self.message, "details": details}}


class InvalidRequest(DarkroomError):
    """``details`` lists every fault of the request, not just the first."""

    code: ClassVar[Code] = "INVALID_REQUEST"
    http_status: ClassVar[int] = 422

    def __init__(self, details: Iterable[FieldError]) -> None:
        details = tuple(details)
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in details), details)


class MethodNotAllowed(InvalidRequest):
    """``allow``: the methods that the path supports."""

    http_status: ClassVar[int] = 405

    def __init__(self, method: str, allow: Iterable[str]) -> None:
        self.allow = tuple(allow)
        super().__init__([FieldError("method", f"{method[:16]} is not one of {', '.join(self.allow)}")])


class TooLarge(InvalidRequest):
    """The body is larger than is accepted."""

    http_status: ClassVar[int] = 413


class UnsupportedMediaType(InvalidRequest):
    """The Content-Type is not JSON."""

    http_status: ClassVar[int] = 415


class Unidentified(DarkroomError):
    """With tenants on, the request has no identity: API Gateway was not configured to require a key, signature or
    token.
    """

    code: ClassVar[Code] = "INVALID_REQUEST"
    http_status: ClassVar[int] = 403


class NotFound(DarkroomError):
    """There is no such task, upload, image or path."""

    code: ClassVar[Code] = "NOT_FOUND"
    http_status: ClassVar[int] = 404


class Conflict(DarkroomError):
    """The task's state does not allow the call, or its task_id names another request."""

    code: ClassVar[Code] = "CONFLICT"
    http_status: ClassVar[int] = 409


class QuotaExceeded(DarkroomError):
    """``message`` says what is left of the budget; ``renews_in``: seconds until it is renewed."""

    code: ClassVar[Code] = "QUOTA_EXCEEDED"
    http_status: ClassVar[int] = 429

    def __init__(self, message: str, renews_in: float, details: Iterable[FieldError] = ()) -> None:
        super().__init__(message, details)
        self.retry_after = max(1, math.ceil(renews_in))


class ModelUnavailable(DarkroomError):
    """The model cannot be loaded."""

    code: ClassVar[Code] = "MODEL_UNAVAILABLE"
    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503
    retry_after = 30
    """Seconds: how long the API caches the model's health."""


class OutOfMemory(DarkroomError):
    """The device has too little memory for this picture, even alone."""

    code: ClassVar[Code] = "OUT_OF_MEMORY"


class UnsafeContent(DarkroomError):
    """The model's safety checker refused the picture."""

    code: ClassVar[Code] = "UNSAFE_CONTENT"
    http_status: ClassVar[int] = 422


class Cancelled(DarkroomError):
    """The task was cancelled."""

    code: ClassVar[Code] = "CANCELLED"
    http_status: ClassVar[int] = 409


class TimedOut(DarkroomError):
    """Not even one step fit into the invocation."""

    code: ClassVar[Code] = "TIMED_OUT"
    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 504


class StillRunning(DarkroomError):
    """Raised by the client after its timeout. ``result``: the task as last seen, None if it never was."""

    code: ClassVar[Code] = "TIMED_OUT"
    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 504

    def __init__(self, task_id: str, result: ResultResponse | None) -> None:
        super().__init__(f"task {task_id} is {result.status if result else 'not seen yet'}, and goes on")
        self.task_id, self.result = task_id, result


class RetriesExhausted(DarkroomError):
    """The task's message went to the dead-letter queue."""

    code: ClassVar[Code] = "RETRIES_EXHAUSTED"


class Internal(DarkroomError):
    """An unexpected fault of ours."""

    retryable: ClassVar[bool] = True


class PipelineRefused(DarkroomError):
    """The stock pipeline raised a TypeError or ValueError: another try would fail in the same way."""


class ServiceFault(DarkroomError):
    """S3 or SQS failed or did not answer. A write may have been done all the same."""

    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503
    retry_after = 5


class Suspended(DarkroomError):
    """Raised between two steps of a task whose worker must stop. The next attempt continues from the checkpoint."""

    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503


class WorkerBroken(DarkroomError):
    """The process can no longer work (device lost, disk full). Its tasks go on elsewhere, and it exits with 1."""

    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503


class SettingsError(DarkroomError):
    """A setting is missing or invalid; ``message`` names the environment variable and its limits."""


class Refused(DarkroomError):
    """The record does not allow this move."""

    code: ClassVar[Code] = "CONFLICT"
    http_status: ClassVar[int] = 409


class Finished(Refused):
    """The task is completed, failed or cancelled: there is nothing left to do."""


class Held(Refused):
    """Another attempt's lease lasts until ``until``, or longer if renewed. ``message_id``: that attempt's message."""

    def __init__(self, until: datetime, message_id: str | None = None) -> None:
        super().__init__(f"another attempt holds the task until {until.isoformat()}")
        self.until, self.message_id = until, message_id


class LostRace(Refused):
    """Somebody else changed the record since it was read (S3 answered 412), or it is no longer this attempt's."""
