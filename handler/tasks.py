"""A task's record and the moves that it allows.

::

    (none) ── create ──▶ pending ── claim ──▶ processing ── complete ──▶ completed
       │                    ▲                  │  │   │
       └── reject ─▶ failed └───── release ────┘  │   └── fail ──▶ failed
                                                  └── beat, or claim once the lease has run out ──▶ processing
    pending or processing ── cancel ──▶ cancelled

The moves are pure: from a record to the next one, or :class:`~handler.errors.Refused`. Whoever applies one writes it
with ``If-Match`` of the record that it was computed from, so a move that came too late is never written.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from .errors import Cancelled, Code, DarkroomError, Finished, Held, LostRace
from .request import Contract, GenerationRequest, TaskId

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})
When = Annotated[datetime, Field(strict=False)]  # a string in JSON


class ModelRef(Contract):
    """Which model drew the picture; ``dtype`` because another one draws (slightly) other pixels."""

    id: str
    revision: str | None = None
    pipeline: str
    dtype: str


class Lease(Contract):
    owner: str
    expires_at: When


class Progress(Contract):
    """``fraction`` from 0 to 1; ``eta_seconds`` None until a step was measured."""

    step: int
    steps: int
    fraction: float
    eta_seconds: float | None = None


class Image(Contract):
    """An image in the bucket: ``bytes`` long, ``sha256`` of them in hex."""

    key: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str


class FaultDetail(Contract):
    field: str
    message: str


class ErrorInfo(Contract):
    code: Code
    message: str
    retryable: bool
    details: list[FaultDetail] = Field(default_factory=list)


class Timings(Contract):
    """Seconds. ``load`` is what this task waited for the pipeline; ``total`` runs from claim to commit, without it."""

    queue: float = 0
    load: float = 0
    text: float = 0
    denoise: float = 0
    decode: float = 0
    encode: float = 0
    upload: float = 0
    total: float = 0


class Record(Contract):
    """``tasks/{task_id}/status.json``: the only truth about a task. ``sequence`` grows by 1 with every write."""

    task_id: TaskId
    status: Status
    sequence: int
    request: GenerationRequest | None = Field(None, description="None where the message held no valid request")
    fingerprint: str | None = None
    model: ModelRef | None = None
    created_at: When
    started_at: When | None = None
    completed_at: When | None = None
    attempt: int = 0
    lease: Lease | None = None
    progress: Progress | None = None
    preview: str | None = Field(None, description="Key of a thumbnail of the unfinished picture")
    images: list[Image] = Field(default_factory=list)
    error: ErrorInfo | None = None
    timings: Timings | None = None
    batch_size: int | None = None
    cold_start: bool | None = None
    expires_at: When

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, body: bytes) -> Record:
        return cls.model_validate_json(body)

    def _next(self, **changes: Any) -> Record:
        return self.model_copy(update={"sequence": self.sequence + 1, **changes})


def create(task_id: str, request: GenerationRequest, seed: int, now: datetime, keep: timedelta) -> Record:
    """A pending task. The seed is fixed here, so that every attempt draws the same picture."""
    resolved = request.model_copy(update={"task_id": task_id, "seed": seed if request.seed is None else request.seed})
    return Record(
        task_id=task_id,
        status="pending",
        sequence=1,
        request=resolved,
        fingerprint=request.fingerprint(),
        created_at=now,
        expires_at=now + keep,
    )


def reject(task_id: str, fault: DarkroomError, now: datetime, keep: timedelta) -> Record:
    """A task that never was one: its message cannot be served, and its sender finds out here."""
    return Record(
        task_id=task_id,
        status="failed",
        sequence=1,
        request=None,
        error=error_info(fault),
        created_at=now,
        completed_at=now,
        expires_at=now + keep,
    )


def claim(
    record: Record, *, owner: str, now: datetime, lease: timedelta, request: GenerationRequest, model: ModelRef
) -> Record:
    """The next attempt. Raises Finished on a terminal task, Held while another attempt's lease is alive."""
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    if record.lease is not None and record.lease.expires_at > now:
        raise Held(record.lease.expires_at)
    return record._next(
        status="processing",
        attempt=record.attempt + 1,
        lease=Lease(owner=owner, expires_at=now + lease),
        started_at=now,
        request=request,
        model=model,
        progress=None,
        error=None,
    )


def beat(
    record: Record, *, now: datetime, lease: timedelta, progress: Progress | None, preview: str | None = None
) -> Record:
    """A sign of life: a longer lease, and how far the picture is."""
    held = _held(record)
    return record._next(
        lease=Lease(owner=held.owner, expires_at=now + lease),
        progress=progress if progress is not None else record.progress,
        preview=preview or record.preview,
    )


def complete(record: Record, *, now: datetime, images: list[Image], timings: Timings, **run: Any) -> Record:
    """The commit mark: before this record is written, nothing has happened. ``run``: batch_size, cold_start."""
    _held(record)
    steps = record.request.num_inference_steps if record.request else None
    progress = record.progress or Progress(step=steps or 0, steps=steps or 0, fraction=0)
    return record._next(
        status="completed",
        completed_at=now,
        lease=None,
        preview=None,
        images=images,
        timings=timings,
        progress=progress.model_copy(update={"step": progress.steps, "fraction": 1.0, "eta_seconds": 0.0}),
        **run,
    )


def fail(record: Record, *, now: datetime, fault: DarkroomError) -> Record:
    """The end of a task that cannot be helped by trying again."""
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    return record._next(status="failed", completed_at=now, lease=None, error=error_info(fault))


def cancel(record: Record, *, now: datetime) -> Record:
    """Ends a task at its caller's wish. Raises Finished on a terminal one."""
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    return record._next(status="cancelled", completed_at=now, lease=None, error=error_info(Cancelled("cancelled")))


def release(record: Record, *, fault: DarkroomError) -> Record:
    """Back to pending with the reason, so that the next attempt need not wait for the lease to run out."""
    _held(record)
    return record._next(status="pending", lease=None, progress=None, error=error_info(fault))


def error_info(fault: DarkroomError) -> ErrorInfo:
    details = [FaultDetail(field=one.field, message=one.message) for one in fault.details]
    return ErrorInfo(code=fault.code, message=fault.message, retryable=fault.retryable, details=details)


def _held(record: Record) -> Lease:
    if record.status != "processing" or record.lease is None:
        raise LostRace(f"the task is {record.status}, not held by this attempt")
    return record.lease
