"""The moves of a record: pure, so every one can be tried."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.contract.record import KeptRequest, Lease, ModelRef, Progress, Record, Timings
from handler.contract.request import GenerationRequest
from handler.contract.statuses import TERMINAL
from handler.errors import Finished, Held, Internal, LostRace, OutOfMemory, Suspended
from handler.task import moves

from ..support import CARD, Clock

if TYPE_CHECKING:
    from collections.abc import Callable

MOVES = ["claim", "beat", "release", "fail", "complete", "wait", "expire", "requeue", "exhaust", "cancel"]
KEEP, LEASE = timedelta(days=30), timedelta(seconds=60)
MODEL = ModelRef(id="m", revision=None, pipeline="P", dtype="float32")


def pending(clock: Clock, **request: object) -> Record:
    asked = GenerationRequest.model_validate({"prompt": "fox", **request})
    return moves.create("t", asked, 99, clock(), KEEP)


def claimed(record: Record, clock: Clock, owner: str = "w") -> Record:
    assert record.request is not None
    request = CARD.resolve(record.request)
    lease = Lease(owner=owner, expires_at=clock() + LEASE, message_id="m")
    return moves.claim(record, lease=lease, now=clock(), age=clock.age(record), request=request, model=MODEL)


def completed(record: Record, clock: Clock) -> Record:
    return moves.complete(record, now=clock(), images=[], timings=Timings(total=1.0), batch_size=1, cold_start=False)


def test_creation_fixes_the_seed(clock: Clock) -> None:
    assert pending(clock).request == KeptRequest(prompt="fox", seed=99, task_id="t")
    assert pending(clock, seed=5).request == KeptRequest(prompt="fox", seed=5, task_id="t")


def test_the_fingerprint_is_of_what_was_asked(clock: Clock) -> None:
    assert pending(clock).fingerprint == GenerationRequest(prompt="fox", task_id="other").fingerprint()
    assert pending(clock).fingerprint != pending(clock, seed=99).fingerprint


def test_a_task_from_message_to_picture(clock: Clock) -> None:
    record = pending(clock)
    clock.forward(2)
    record = claimed(record, clock)
    assert (record.status, record.attempt, record.sequence) == ("processing", 1, 2)
    assert record.started_at == clock()
    assert record.lease == Lease(owner="w", expires_at=clock() + LEASE, message_id="m")
    assert record.request is not None
    assert record.request.num_inference_steps == 4
    clock.forward(2)
    progress = Progress(step=1, steps=4, fraction=0.25, eta_seconds=6.0)
    record = moves.beat(record, now=clock(), lease=LEASE, progress=progress)
    assert record.lease is not None
    assert record.lease.expires_at == clock() + LEASE
    record = completed(record, clock)
    assert (record.status, record.sequence, record.lease) == ("completed", 4, None)
    assert record.progress == Progress(step=4, steps=4, fraction=1.0, eta_seconds=0.0)


def test_a_live_lease_holds(clock: Clock) -> None:
    record = claimed(pending(clock), clock)
    clock.forward(59)
    with pytest.raises(Held) as held:
        claimed(record, clock, "other")
    assert record.lease is not None
    assert held.value.until == record.lease.expires_at + timedelta(seconds=moves.MARGIN)


def test_a_lease_that_ran_out_does_not(clock: Clock) -> None:
    record = claimed(pending(clock), clock)
    clock.forward(60 + moves.MARGIN)
    again = claimed(record, clock, "other")
    assert again.attempt == 2
    assert again.lease is not None
    assert again.lease.owner == "other"


def test_a_released_task_is_free_at_once(clock: Clock) -> None:
    released = moves.release(claimed(pending(clock), clock), now=clock(), fault=Internal("S3 is slow"))
    assert released.status == "pending"
    assert released.error is not None
    assert released.error.message == "S3 is slow"
    again = claimed(released, clock)
    assert (again.attempt, again.error) == (2, None)


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_the_end_is_the_end(clock: Clock, end: str) -> None:
    held = claimed(pending(clock), clock)
    record = completed(held, clock) if end == "completed" else moves.fail(held, now=clock(), fault=OutOfMemory("big"))
    assert record.status == end
    with pytest.raises(Finished):
        claimed(record, clock)
    with pytest.raises(Finished):
        moves.fail(record, now=clock(), fault=Internal("late"))
    late: list[Callable[[], object]] = [
        lambda: moves.beat(record, now=clock(), lease=LEASE, progress=None),
        lambda: moves.release(record, now=clock(), fault=Internal("late")),
        lambda: completed(record, clock),
    ]
    for move in late:
        with pytest.raises(LostRace):
            move()


def test_what_became_of_each_attempt_is_kept(clock: Clock) -> None:
    record = claimed(pending(clock), clock, "a")
    record = moves.release(record, now=clock(), fault=Internal("S3 is slow"))
    record = moves.release(claimed(record, clock, "b"), now=clock(), fault=Suspended("the worker stops"))
    record = claimed(record, clock, "c")
    clock.forward(63)
    record = completed(claimed(record, clock, "d"), clock)
    told = [(one.number, one.owner, one.outcome, one.code) for one in record.attempts]
    assert told == [
        (1, "a", "released", "INTERNAL"),
        (2, "b", "suspended", "INTERNAL"),
        (3, "c", "expired", None),
        (4, "d", "completed", None),
    ]
    assert record.attempts[2].ended_at - record.attempts[2].started_at == timedelta(seconds=63)


def test_of_many_attempts_the_last_ones_are_told(clock: Clock) -> None:
    record = pending(clock)
    for _ in range(moves.KEPT_ATTEMPTS + 5):
        record = moves.release(claimed(record, clock), now=clock(), fault=Suspended("the worker stops"))
    assert record.attempt == moves.KEPT_ATTEMPTS + 5
    assert [one.number for one in record.attempts] == list(range(6, moves.KEPT_ATTEMPTS + 6))


def test_a_task_expires_when_its_lease_has(clock: Clock) -> None:
    with pytest.raises(LostRace):
        moves.expire(pending(clock), now=clock(), age=clock.age(pending(clock)))
    record = claimed(pending(clock), clock)
    with pytest.raises(Held):
        moves.expire(record, now=clock(), age=clock.age(record))
    clock.forward(60 + moves.MARGIN)
    expired = moves.expire(record, now=clock(), age=clock.age(record))
    assert (expired.status, expired.lease, expired.queued_at) == ("pending", None, clock())
    with pytest.raises(LostRace):
        moves.requeue(record, now=clock())
    assert moves.requeue(expired, now=clock()).sequence == expired.sequence + 1


def test_a_living_attempt_is_not_exhausted(clock: Clock) -> None:
    record = claimed(pending(clock), clock)
    with pytest.raises(Held) as held:
        moves.exhaust(record, now=clock(), age=clock.age(record))
    assert held.value.message_id == "m"


@given(st.lists(st.sampled_from(MOVES), max_size=12))
def test_whatever_happens_the_record_holds_together(chosen: list[str]) -> None:
    clock = Clock()
    record = pending(clock)
    for move in chosen:
        before = record
        clock.forward(63 if move == "wait" else 1)
        try:
            if move == "claim":
                record = claimed(record, clock)
            elif move == "beat":
                record = moves.beat(record, now=clock(), lease=LEASE, progress=None)
            elif move == "release":
                record = moves.release(record, now=clock(), fault=Internal("passing"))
            elif move == "fail":
                record = moves.fail(record, now=clock(), fault=OutOfMemory("big"))
            elif move == "complete":
                record = completed(record, clock)
            elif move in {"expire", "requeue", "exhaust", "cancel"}:
                own = {"age": clock.age(record)} if move in {"expire", "exhaust"} else {}
                record = getattr(moves, move)(record, now=clock(), **own)
        except (Finished, Held, LostRace):
            assert record is before
        if record is not before:
            assert record.sequence == before.sequence + 1
            assert before.status not in TERMINAL
        assert (record.lease is not None) == (record.status == "processing")
        assert (record.completed_at is not None) == (record.status in TERMINAL)
        assert len(record.attempts) == record.attempt - (record.status == "processing")
        assert Record.from_json(record.to_json()) == record
