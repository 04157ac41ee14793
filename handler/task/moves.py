"""The state machine of a task: every move from one record to the next.

::

    (none) ── create ──▶ pending ── claim ──▶ processing ── complete ──▶ completed
       │                  ▲ ▲  │               │  │   │
       │                  │ │  └─ requeue      │  │   └── fail ──▶ failed ── redrive ──▶ pending
       └── reject ─▶ failed └───── release ────┘  └── beat ──▶ processing
                          └─────── expire, once the lease has run out; claim then takes it at once

    pending or processing ── cancel ──▶ cancelled
    pending, or processing whose lease has run out ── exhaust ──▶ failed (RETRIES_EXHAUSTED)

The moves are pure functions: they return the next record or raise :class:`~handler.errors.Refused`. The caller writes
it with ``If-Match`` of the record that it was computed from, so a move that comes too late is never written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.record import (
    ErrorInfo,
    FaultDetail,
    Image,
    Lease,
    ModelRef,
    Outcome,
    PastAttempt,
    Progress,
    Record,
    Timings,
)
from ..contract.statuses import TERMINAL
from ..errors import Cancelled, Conflict, DarkroomError, Finished, Held, LostRace, RetriesExhausted, Suspended

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from ..contract.request import GenerationRequest

KEPT_ATTEMPTS = 50
"""The most past attempts that a record lists, the latest ones; ``attempt`` counts them all."""


def create(
    task_id: str,
    request: GenerationRequest,
    seed: int,
    now: datetime,
    keep: timedelta,
    tenant: str | None = None,
    *,
    origin: str | None = None,
) -> Record:
    """A pending task. The seed is fixed here, so that every attempt draws the same picture.

    ``keep``: how long until ``expires_at``; ``origin``: the task that it repeats.
    """
    resolved = request.model_copy(update={"task_id": task_id, "seed": seed if request.seed is None else request.seed})
    return Record(
        task_id=task_id,
        tenant=tenant,
        status="pending",
        sequence=1,
        request=resolved,
        origin=origin,
        fingerprint=request.fingerprint(),
        created_at=now,
        queued_at=now,
        expires_at=now + keep,
    )


def reject(task_id: str, fault: DarkroomError, now: datetime, keep: timedelta, tenant: str | None = None) -> Record:
    """A failed record for a message that cannot be served, so that its sender can read why."""
    return Record(
        task_id=task_id,
        tenant=tenant,
        status="failed",
        sequence=1,
        request=None,
        error=error_info(fault),
        created_at=now,
        completed_at=now,
        expires_at=now + keep,
    )


def claim(record: Record, *, lease: Lease, now: datetime, request: GenerationRequest, model: ModelRef) -> Record:
    """The next attempt. Raises Finished on a terminal task, Held while another attempt's lease is alive."""
    _free(record, now)
    return record.next(
        status="processing",
        attempt=record.attempt + 1,
        attempts=_ended(record, now, "expired"),
        lease=lease,
        started_at=now,
        request=request,
        model=model,
        progress=None,
        error=None,
    )


def beat(
    record: Record, *, now: datetime, lease: timedelta, progress: Progress | None, preview: str | None = None
) -> Record:
    """A heartbeat: renews the lease and updates progress and preview. Raises LostRace if no attempt holds the task."""
    held = _held(record)
    return record.next(
        lease=held.model_copy(update={"expires_at": now + lease}),
        progress=progress if progress is not None else record.progress,
        preview=preview or record.preview,
    )


def complete(record: Record, *, now: datetime, images: list[Image], timings: Timings, **run: Any) -> Record:
    """The commit: until this record is written the task's images do not count. ``run``: batch_size, cold_start."""
    _held(record)
    steps = record.request.steps if record.request else None
    progress = record.progress or Progress(step=steps or 0, steps=steps or 0, fraction=0)
    return record.next(
        status="completed",
        completed_at=now,
        attempts=_ended(record, now, "completed"),
        lease=None,
        preview=None,
        images=images,
        timings=timings,
        progress=progress.model_copy(update={"step": progress.steps, "fraction": 1.0, "eta_seconds": 0.0}),
        **run,
    )


def fail(record: Record, *, now: datetime, fault: DarkroomError) -> Record:
    """Ends a task that no other try would complete. Raises Finished on a terminal one."""
    return _end(record, now, "failed", fault)


def cancel(record: Record, *, now: datetime) -> Record:
    """Ends a task because its caller asked for it. Raises Finished on a terminal one."""
    return _end(record, now, "cancelled", Cancelled("cancelled"))


def exhaust(record: Record, *, now: datetime) -> Record:
    """Fails a task whose message went to the dead-letter queue, with its last fault.

    Raises Finished on a terminal one, Held while an attempt's lease lasts: that one may still complete it.
    """
    _free(record, now)
    attempts = _ended(record, now, "expired")
    fault = _last_fault(record, attempts)
    tried = f"{record.attempt} attempt{'' if record.attempt == 1 else 's'}"
    exhausted = RetriesExhausted(f"given up after {tried}; the last fault: {fault}")
    return record.next(status="failed", completed_at=now, attempts=attempts, lease=None, error=error_info(exhausted))


def release(record: Record, *, now: datetime, fault: DarkroomError) -> Record:
    """Back to pending with the reason, so that the next attempt need not wait for the lease to run out.

    Raises LostRace if no attempt holds the task.
    """
    _held(record)
    outcome: Outcome = "suspended" if isinstance(fault, Suspended) else "released"
    return record.next(
        status="pending",
        attempts=_ended(record, now, outcome, fault),
        queued_at=now,
        lease=None,
        progress=None,
        error=error_info(fault),
    )


def expire(record: Record, *, now: datetime) -> Record:
    """Back to pending after a lease has run out. Raises Held while it lasts, LostRace if no attempt holds the task."""
    _held(record)
    _free(record, now)
    return record.next(
        status="pending", attempts=_ended(record, now, "expired"), queued_at=now, lease=None, progress=None
    )


def requeue(record: Record, *, now: datetime) -> Record:
    """A pending task gets another message. Raises LostRace on any other."""
    if record.status != "pending":
        raise LostRace(f"the task is {record.status}, not pending")
    return record.next(queued_at=now)


def redrive(record: Record, *, now: datetime) -> Record:
    """Back to pending from failed, at an operator's request; its past attempts stay listed. Raises Conflict."""
    if record.status != "failed":
        raise Conflict(f"the task is {record.status}, not failed")
    if record.request is None:
        raise Conflict("the task holds no valid request")
    return record.next(status="pending", completed_at=None, queued_at=now, error=None, progress=None)


def error_info(fault: DarkroomError) -> ErrorInfo:
    details = [FaultDetail(field=one.field, message=one.message) for one in fault.details]
    return ErrorInfo(code=fault.code, message=fault.message, retryable=fault.retryable, details=details)


def _end(record: Record, now: datetime, outcome: Outcome, fault: DarkroomError) -> Record:
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    return record.next(
        status=outcome,
        completed_at=now,
        attempts=_ended(record, now, outcome, fault),
        lease=None,
        error=error_info(fault),
    )


def _held(record: Record) -> Lease:
    if record.status != "processing" or record.lease is None:
        raise LostRace(f"the task is {record.status}, not held by this attempt")
    return record.lease


def _free(record: Record, now: datetime) -> None:
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    if record.lease is not None and record.lease.expires_at > now:
        raise Held(record.lease.expires_at, record.lease.message_id)


def _ended(record: Record, now: datetime, outcome: Outcome, fault: DarkroomError | None = None) -> list[PastAttempt]:
    """The attempts so far and the one that ends here, if one is held."""
    if record.lease is None:
        return record.attempts
    ended = PastAttempt(
        number=record.attempt,
        owner=record.lease.owner,
        started_at=record.started_at or record.created_at,
        ended_at=now,
        outcome=outcome,
        code=fault.code if fault else None,
        message=fault.message if fault else None,
    )
    return [*record.attempts, ended][-KEPT_ATTEMPTS:]


def _last_fault(record: Record, attempts: list[PastAttempt]) -> str:
    if record.error is not None:
        return f"{record.error.code}: {record.error.message}"
    if attempts and attempts[-1].outcome == "expired":
        return "its worker was not heard of again"
    return "none was recorded; no attempt ever began"


__all__ = [
    "TERMINAL",
    "ErrorInfo",
    "FaultDetail",
    "Image",
    "Lease",
    "ModelRef",
    "PastAttempt",
    "Progress",
    "Record",
    "Timings",
    "beat",
    "cancel",
    "claim",
    "complete",
    "create",
    "error_info",
    "exhaust",
    "expire",
    "fail",
    "redrive",
    "reject",
    "release",
    "requeue",
]
