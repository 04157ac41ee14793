"""Every fault that Darkroom names, in one tree.

::

    DarkroomError                 code               retryable  HTTP
    ├── InvalidRequest            INVALID_REQUEST    no         422
    │   ├── MethodNotAllowed      INVALID_REQUEST    no         405   the path takes other methods
    │   ├── TooLarge              INVALID_REQUEST    no         413
    │   └── UnsupportedMediaType  INVALID_REQUEST    no         415
    ├── Unidentified              INVALID_REQUEST    no         403   with tenants on, a request that names none
    ├── NotFound                  NOT_FOUND          no         404
    ├── Conflict                  CONFLICT           no         409
    ├── QuotaExceeded             QUOTA_EXCEEDED     no         429   the day's budget, or the tasks at a time
    ├── ModelUnavailable          MODEL_UNAVAILABLE  yes        503
    ├── OutOfMemory               OUT_OF_MEMORY      no         500
    ├── UnsafeContent             UNSAFE_CONTENT     no         422
    ├── Cancelled                 CANCELLED          no         409
    ├── TimedOut                  TIMED_OUT          yes        504
    ├── OutOfTime                 TIMED_OUT          no         504   the task's own time is over, or its retention
    ├── StillRunning              TIMED_OUT          yes        504   a client's wait is over; the task goes on
    ├── RetriesExhausted          RETRIES_EXHAUSTED  no         500
    ├── Internal                  INTERNAL           yes        500   a fault of ours, met while developing
    ├── PipelineRefused           INTERNAL           no         500   the pipeline's own check of its arguments failed
    ├── NotFinite                 INTERNAL           no         500   the model's numbers overflow in this dtype
    ├── ServiceFault              INTERNAL           yes        503   S3 or SQS failed, refused or did not answer
    ├── Suspended                 INTERNAL           yes        503   the worker stops; the task goes on elsewhere
    ├── WorkerBroken              INTERNAL           yes        503   device lost, disk full: the worker ends
    ├── SettingsError             INTERNAL           no         500   the environment is wrong
    └── Refused                   CONFLICT           no         409   a move that the record does not allow
        ├── Finished                                                  the task is terminal
        ├── Held                                                      another attempt's lease is alive
        └── LostRace                                                  somebody else moved the record: read again

``code`` is what callers see and is one of :data:`CODES`. ``retryable`` tells the queue what to do: a retryable
fault sends the message back, any other ends the task as ``failed``. An attempt that ends by one whose
``own_fault`` is true is a try of its task, which has ``MAX_TRIES`` of them.
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
    """One thing that is wrong with a request: ``field`` is the JSON path, ``body`` for the whole."""

    field: str
    message: str


class DarkroomError(Exception):
    """Base of all. ``message`` is written for the caller and holds no secret and no S3 key."""

    code: ClassVar[Code] = "INTERNAL"
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    own_fault: ClassVar[bool] = False
    """Whether an attempt that ended by it counts as one of its task's tries; faults of the surroundings do not."""
    retry_after: int | None = None
    """Seconds after which the same call may go better, for the header ``Retry-After``."""

    def __init__(self, message: str, details: Iterable[FieldError] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def envelope(self) -> dict[str, object]:
        """The one shape in which errors leave over HTTP."""
        details = [{"field": fault.field, "message": fault.message} for fault in self.details]
        return {"error": {"code": self.code, "message": self.message, "details": details}}


class InvalidRequest(DarkroomError):
    """``details`` holds every fault of the request, not the first."""

    code: ClassVar[Code] = "INVALID_REQUEST"
    http_status: ClassVar[int] = 422

    def __init__(self, details: Iterable[FieldError]) -> None:
        details = tuple(details)
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in details), details)


class MethodNotAllowed(InvalidRequest):
    """``allow`` holds the methods that the path takes."""

    http_status: ClassVar[int] = 405

    def __init__(self, method: str, allow: Iterable[str]) -> None:
        self.allow = tuple(allow)
        super().__init__([FieldError("method", f"{method[:16]} is not one of {', '.join(self.allow)}")])


class TooLarge(InvalidRequest):
    """The body has more bytes than any valid request."""

    http_status: ClassVar[int] = 413


class UnsupportedMediaType(InvalidRequest):
    """The body says that it is something else than JSON."""

    http_status: ClassVar[int] = 415


class Unidentified(DarkroomError):
    """As API Gateway answers where a key or a signature is missing; for where it was not told to ask for one."""

    code: ClassVar[Code] = "INVALID_REQUEST"
    http_status: ClassVar[int] = 403


class NotFound(DarkroomError):
    code: ClassVar[Code] = "NOT_FOUND"
    http_status: ClassVar[int] = 404


class Conflict(DarkroomError):
    code: ClassVar[Code] = "CONFLICT"
    http_status: ClassVar[int] = 409


class QuotaExceeded(DarkroomError):
    """``message`` says what is left; ``renews_in``: seconds until there is more."""

    code: ClassVar[Code] = "QUOTA_EXCEEDED"
    http_status: ClassVar[int] = 429

    def __init__(self, message: str, renews_in: float, details: Iterable[FieldError] = ()) -> None:
        super().__init__(message, details)
        self.retry_after = max(1, math.ceil(renews_in))


class ModelUnavailable(DarkroomError):
    code: ClassVar[Code] = "MODEL_UNAVAILABLE"
    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503
    retry_after = 30
    """As long as the door believes what it has read of the model's health."""


class OutOfMemory(DarkroomError):
    code: ClassVar[Code] = "OUT_OF_MEMORY"


class UnsafeContent(DarkroomError):
    code: ClassVar[Code] = "UNSAFE_CONTENT"
    http_status: ClassVar[int] = 422


class Cancelled(DarkroomError):
    code: ClassVar[Code] = "CANCELLED"
    http_status: ClassVar[int] = 409


class TimedOut(DarkroomError):
    """Not one step of the task fits into an invocation."""

    code: ClassVar[Code] = "TIMED_OUT"
    retryable: ClassVar[bool] = True
    own_fault: ClassVar[bool] = True
    http_status: ClassVar[int] = 504


class OutOfTime(DarkroomError):
    """The end of a task that has used up ``MAX_TASK_SECONDS``, or is past its ``expires_at``."""

    code: ClassVar[Code] = "TIMED_OUT"
    http_status: ClassVar[int] = 504


class StillRunning(DarkroomError):
    """Raised by the client. ``result`` is the task as it was last seen, None where it never was."""

    code: ClassVar[Code] = "TIMED_OUT"
    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 504

    def __init__(self, task_id: str, result: ResultResponse | None) -> None:
        super().__init__(f"task {task_id} is {result.status if result else 'not seen yet'}, and goes on")
        self.task_id, self.result = task_id, result


class RetriesExhausted(DarkroomError):
    code: ClassVar[Code] = "RETRIES_EXHAUSTED"


class Internal(DarkroomError):
    retryable: ClassVar[bool] = True
    own_fault: ClassVar[bool] = True


class PipelineRefused(DarkroomError):
    """The stock pipeline raised a TypeError or ValueError: no other try would end otherwise."""


class NotFinite(DarkroomError):
    """The model's output holds NaN or infinity: a picture of it would be black."""


class ServiceFault(DarkroomError):
    """S3 or SQS did not do what was asked, and the outcome of a write may be unknown."""

    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503
    retry_after = 5


class Suspended(DarkroomError):
    """Raised between two steps of a task whose worker is about to go; its checkpoint goes with it."""

    retryable: ClassVar[bool] = True
    http_status: ClassVar[int] = 503


class WorkerBroken(DarkroomError):
    """Nothing that this process tries will work any more. Its tasks go on elsewhere, and it exits with 1.

    It counts as a try of every task that was being drawn: one of them may have broken it.
    """

    retryable: ClassVar[bool] = True
    own_fault: ClassVar[bool] = True
    http_status: ClassVar[int] = 503


class SettingsError(DarkroomError):
    """Names the environment variable and its limits."""


class Refused(DarkroomError):
    code: ClassVar[Code] = "CONFLICT"
    http_status: ClassVar[int] = 409


class Finished(Refused):
    """The task is completed, failed or cancelled: there is nothing left to do."""


class Held(Refused):
    """Another attempt works on the task until ``until``, unless it renews its lease. ``message_id``: its message."""

    def __init__(self, until: datetime, message_id: str | None = None) -> None:
        super().__init__(f"another attempt holds the task until {until.isoformat()}")
        self.until, self.message_id = until, message_id


class LostRace(Refused):
    """The record changed since it was read (S3 answered 412)."""
