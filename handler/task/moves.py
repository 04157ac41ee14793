"""The life of a task: its moves, drawn once.

::

    (none) ── create ──▶ pending ── claim ──▶ processing ── complete ──▶ completed
       │                  ▲ ▲  │               │  │   │
       │                  │ │  └─ requeue      │  │   └── fail ──▶ failed ── redrive ──▶ pending
       └── reject ─▶ failed └───── release ────┘  └── beat ──▶ processing
                          └─────── expire, once the lease has run out; claim then takes it at once

    pending or processing ── cancel ──▶ cancelled ◀── cancel_unseen ── (none)
    pending, or processing whose lease has run out ── exhaust ──▶ failed

The moves are pure: from a record to the next one, or :class:`~handler.errors.Refused`. Whoever applies one writes it
with ``If-Match`` of the record that it was computed from, so a move that came too late is never written.

**Tries.** An attempt is one of its task's tries if it ended by the task's own fault, or if it expired or was suspended
without a step saved beyond those that it began with. Whoever meets a task that is ``limits.over`` its limits ends it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..contract.record import (
    ErrorInfo,
    FaultDetail,
    Image,
    KeptRequest,
    Lease,
    ModelRef,
    Outcome,
    PastAttempt,
    Progress,
    Record,
    Remark,
    Timings,
)
from ..contract.statuses import TERMINAL
from ..errors import (
    Cancelled,
    Conflict,
    DarkroomError,
    Finished,
    Held,
    LostRace,
    RetriesExhausted,
    Suspended,
)
from .limits import last_fault

if TYPE_CHECKING:
    from datetime import datetime

    from ..contract.request import GenerationRequest
    from .limits import Done

MARGIN = 2.0
"""Seconds that a lease of another's is believed beyond its end: S3's times are whole seconds, and its answers take a
while.
"""
KEPT_ATTEMPTS = 50
"""Of a task that outlasts hundreds of hosts the last ones are told; ``attempt`` counts them all."""


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
    named = {"task_id": task_id, "seed": seed if request.seed is None else request.seed}
    resolved = KeptRequest.model_validate(request.model_dump() | named)
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


def reject(
    task_id: str, fault: DarkroomError, now: datetime, keep: timedelta, tenant: str | None = None, body: str = ""
) -> Record:
    """A failed record for a message that cannot be served, so that its sender can read why, with its ``body``."""
    return Record(
        task_id=task_id,
        tenant=tenant,
        status="failed",
        sequence=1,
        request=None,
        body=body or None,
        error=error_info(fault),
        created_at=now,
        completed_at=now,
        expires_at=now + keep,
    )


def cancel_unseen(task_id: str, now: datetime, keep: timedelta, tenant: str | None = None) -> Record:
    """A cancelled record for a message that no worker has read yet, and that it consumes when it comes."""
    return Record(
        task_id=task_id,
        tenant=tenant,
        status="cancelled",
        sequence=1,
        request=None,
        error=error_info(Cancelled("cancelled")),
        created_at=now,
        completed_at=now,
        expires_at=now + keep,
    )


def claim(
    record: Record, *, lease: Lease, now: datetime, age: float, request: GenerationRequest, model: ModelRef
) -> Record:
    """The next attempt. Raises Finished on a terminal task, Held while another attempt's lease is alive."""
    free = lapsed(record, now, age)
    return free.model_copy(
        update={
            "status": "processing",
            "attempt": free.attempt + 1,
            "lease": lease.model_copy(update={"saved_step": free.saved_step, "spent_seconds": free.spent_seconds}),
            "started_at": now,
            "request": request,
            "model": model,
            "warnings": [*free.warnings, *_begun_anew(free, model)],
            "progress": None,
            "error": None,
        }
    )


def _begun_anew(record: Record, model: ModelRef) -> list[Remark]:
    """A picture is of one dtype from its first step to its last."""
    old = record.model
    if old is None or old.dtype == model.dtype or not record.saved_step:
        return []
    text = f"begun anew in {model.dtype}: the {record.saved_step} steps that were saved are of {old.dtype}"
    return [Remark(message=text)]


def lapsed(record: Record, now: datetime, age: float) -> Record:
    """The record as it would be, free to be claimed, one write later: an attempt that was not heard of again is over.

    ``age``: seconds since the record was written, by S3's clock; ``now`` is only written down. Raises Finished on a
    terminal task, Held while an attempt's lease is alive.
    """
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    if record.lease is None:
        return record.next()
    left = _seconds(record.lease, now, age) + MARGIN - age
    if left > 0:
        raise Held(now + timedelta(seconds=left), record.lease.message_id)
    return record.next(
        status="pending",
        attempts=_ended(record, now, "expired"),
        tries=record.tries + (not _saved_more(record)),
        queued_at=now,
        lease=None,
        progress=None,
    )


def _seconds(lease: Lease, now: datetime, age: float) -> float:
    """How long the lease is believed from its last sign on. 0.1.0 did not tell, but when it ends by its own clock."""
    return lease.seconds if lease.seconds is not None else (lease.expires_at - now).total_seconds() + age


def beat(
    record: Record,
    *,
    now: datetime,
    lease: timedelta,
    progress: Progress | None,
    preview: str | None = None,
    done: Done | None = None,
) -> Record:
    """A sign of life: a longer lease, how far the picture is, and what the attempt has done."""
    held = _held(record)
    return record.next(
        lease=held.model_copy(update={"expires_at": now + lease, "seconds": lease.total_seconds()}),
        progress=progress if progress is not None else record.progress,
        preview=preview or record.preview,
        **_with(record, done),
    )


def complete(
    record: Record, *, now: datetime, images: list[Image], timings: Timings, done: Done | None = None, **run: Any
) -> Record:
    """The commit mark: before this, nothing has happened. ``run``: batch_size, cold_start, warnings."""
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
        **_with(record, done),
        **run,
    )


def fail(record: Record, *, now: datetime, fault: DarkroomError, done: Done | None = None) -> Record:
    """The end of a task that cannot be helped by trying again."""
    return _end(record, now, "failed", fault, done)


def cancel(record: Record, *, now: datetime) -> Record:
    """Ends a task at its caller's wish. Raises Finished on a terminal one."""
    return _end(record, now, "cancelled", Cancelled("cancelled"))


def exhaust(record: Record, *, now: datetime, age: float = 0.0, fault: DarkroomError | None = None) -> Record:
    """The end of a task that nobody will try again, for the reason that ``limits.over`` gave, or with its last fault.

    Raises Finished on a terminal one, Held while an attempt is alive: that one may still make it.
    """
    free = lapsed(record, now, age)
    tried = f"{free.attempt} attempt{'' if free.attempt == 1 else 's'}"
    fault = fault or RetriesExhausted(f"given up after {tried}; the last fault: {last_fault(free)}")
    return free.model_copy(update={"status": "failed", "completed_at": now, "lease": None, "error": error_info(fault)})


def release(
    record: Record, *, now: datetime, fault: DarkroomError, done: Done | None = None, resent: bool = True
) -> Record:
    """Back to pending with the reason, so that the next attempt need not wait for the lease to run out.

    A suspended task gets another message, unless not ``resent``, which counts as sent from here on: a crash before it
    is sent leaves the message that the attempt came with.
    """
    _held(record)
    suspended = isinstance(fault, Suspended)
    record = record.model_copy(update=_with(record, done))
    counts = not _saved_more(record) if suspended else fault.own_fault
    return record.next(
        status="pending",
        attempts=_ended(record, now, "suspended" if suspended else "released", fault),
        tries=record.tries + counts,
        sends=record.sends + (suspended and resent),
        queued_at=now,
        lease=None,
        progress=None,
        error=error_info(fault),
    )


def expire(record: Record, *, now: datetime, age: float) -> Record:
    """Back to pending: its attempt was not heard of again, and another message is going to be sent.

    Raises Finished, Held, or LostRace where none was held.
    """
    _held(record)
    free = lapsed(record, now, age)
    return free.model_copy(update={"sends": free.sends + 1})


def requeue(record: Record, *, now: datetime) -> Record:
    """A pending task gets another message. Raises LostRace on any other."""
    if record.status != "pending":
        raise LostRace(f"the task is {record.status}, not pending")
    return record.next(queued_at=now, sends=record.sends + 1)


def redrive(record: Record, *, now: datetime) -> Record:
    """A failed task gets another chance, by an operator's hand: a new budget of tries and time, and a message. What
    became of its attempts stays. Raises Conflict.
    """
    if record.status != "failed":
        raise Conflict(f"the task is {record.status}, not failed")
    if record.request is None:
        raise Conflict("the task holds no valid request")
    return record.next(
        status="pending",
        completed_at=None,
        queued_at=now,
        sends=record.sends + 1,
        tries=0,
        spent_seconds=0.0,
        error=None,
        progress=None,
    )


def error_info(fault: DarkroomError) -> ErrorInfo:
    details = [FaultDetail(field=one.field, message=one.message) for one in fault.details]
    return ErrorInfo(code=fault.code, message=fault.message, retryable=fault.retryable, details=details)


def _end(record: Record, now: datetime, outcome: Outcome, fault: DarkroomError, done: Done | None = None) -> Record:
    if record.status in TERMINAL:
        raise Finished(f"the task is {record.status}")
    return record.next(
        status=outcome,
        completed_at=now,
        attempts=_ended(record, now, outcome, fault),
        lease=None,
        error=error_info(fault),
        **_with(record, done),
    )


def _with(record: Record, done: Done | None) -> dict[str, Any]:
    """The fields that tell what the task has used: only ever more."""
    if done is None or record.lease is None:
        return {}
    return {
        "spent_seconds": round(record.lease.spent_seconds + done.seconds, 3),
        "saved_step": max(record.saved_step, done.saved_step),
    }


def _saved_more(record: Record) -> bool:
    """Whether the attempt that holds the task has saved a step beyond those that it began with."""
    return record.lease is not None and record.saved_step > record.lease.saved_step


def _held(record: Record) -> Lease:
    if record.status != "processing" or record.lease is None:
        raise LostRace(f"the task is {record.status}, not held by this attempt")
    return record.lease


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
