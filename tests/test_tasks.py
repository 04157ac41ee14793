"""The moves of a record: pure, so every one can be tried."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import tasks
from handler.errors import Finished, Held, Internal, LostRace, OutOfMemory
from handler.request import GenerationRequest

from .support import CARD, Clock

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP, LEASE = timedelta(days=30), timedelta(seconds=60)
MODEL = tasks.ModelRef(id="m", revision=None, pipeline="P", dtype="float32")


def pending(clock: Clock, **request: object) -> tasks.Record:
    asked = GenerationRequest.model_validate({"prompt": "fox", **request})
    return tasks.create("t", asked, 99, clock(), KEEP)


def claimed(record: tasks.Record, clock: Clock, owner: str = "w") -> tasks.Record:
    assert record.request is not None
    request = CARD.resolve(record.request)
    return tasks.claim(record, owner=owner, now=clock(), lease=LEASE, request=request, model=MODEL)


def completed(record: tasks.Record, clock: Clock) -> tasks.Record:
    return tasks.complete(
        record, now=clock(), images=[], timings=tasks.Timings(total=1.0), batch_size=1, cold_start=False
    )


def test_creation_fixes_the_seed(clock: Clock) -> None:
    assert pending(clock).request == GenerationRequest(prompt="fox", seed=99, task_id="t")
    assert pending(clock, seed=5).request == GenerationRequest(prompt="fox", seed=5, task_id="t")


def test_the_fingerprint_is_of_what_was_asked(clock: Clock) -> None:
    assert pending(clock).fingerprint == GenerationRequest(prompt="fox", task_id="other").fingerprint()
    assert pending(clock).fingerprint != pending(clock, seed=99).fingerprint


def test_a_task_from_message_to_picture(clock: Clock) -> None:
    record = pending(clock)
    clock.forward(2)
    record = claimed(record, clock)
    assert (record.status, record.attempt, record.sequence) == ("processing", 1, 2)
    assert record.started_at == clock()
    assert record.lease == tasks.Lease(owner="w", expires_at=clock() + LEASE)
    assert record.request is not None
    assert record.request.num_inference_steps == 4
    clock.forward(2)
    progress = tasks.Progress(step=1, steps=4, fraction=0.25, eta_seconds=6.0)
    record = tasks.beat(record, now=clock(), lease=LEASE, progress=progress)
    assert record.lease is not None
    assert record.lease.expires_at == clock() + LEASE
    record = completed(record, clock)
    assert (record.status, record.sequence, record.lease) == ("completed", 4, None)
    assert record.progress == tasks.Progress(step=4, steps=4, fraction=1.0, eta_seconds=0.0)


def test_a_live_lease_holds(clock: Clock) -> None:
    record = claimed(pending(clock), clock)
    clock.forward(59)
    with pytest.raises(Held) as held:
        claimed(record, clock, "other")
    assert held.value.until == record.lease.expires_at if record.lease else False


def test_a_lease_that_ran_out_does_not(clock: Clock) -> None:
    record = claimed(pending(clock), clock)
    clock.forward(60)
    again = claimed(record, clock, "other")
    assert again.attempt == 2
    assert again.lease is not None
    assert again.lease.owner == "other"


def test_a_released_task_is_free_at_once(clock: Clock) -> None:
    released = tasks.release(claimed(pending(clock), clock), fault=Internal("S3 is slow"))
    assert released.status == "pending"
    assert released.error is not None
    assert released.error.message == "S3 is slow"
    again = claimed(released, clock)
    assert (again.attempt, again.error) == (2, None)


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_the_end_is_the_end(clock: Clock, end: str) -> None:
    held = claimed(pending(clock), clock)
    record = completed(held, clock) if end == "completed" else tasks.fail(held, now=clock(), fault=OutOfMemory("big"))
    assert record.status == end
    with pytest.raises(Finished):
        claimed(record, clock)
    with pytest.raises(Finished):
        tasks.fail(record, now=clock(), fault=Internal("late"))
    moves: list[Callable[[], object]] = [
        lambda: tasks.beat(record, now=clock(), lease=LEASE, progress=None),
        lambda: tasks.release(record, fault=Internal("late")),
        lambda: completed(record, clock),
    ]
    for move in moves:
        with pytest.raises(LostRace):
            move()


@given(st.lists(st.sampled_from(["claim", "beat", "release", "fail", "complete", "wait"]), max_size=12))
def test_whatever_happens_the_record_holds_together(moves: list[str]) -> None:
    clock = Clock()
    record = pending(clock)
    for move in moves:
        before = record
        clock.forward(61 if move == "wait" else 1)
        try:
            if move == "claim":
                record = claimed(record, clock)
            elif move == "beat":
                record = tasks.beat(record, now=clock(), lease=LEASE, progress=None)
            elif move == "release":
                record = tasks.release(record, fault=Internal("passing"))
            elif move == "fail":
                record = tasks.fail(record, now=clock(), fault=OutOfMemory("big"))
            elif move == "complete":
                record = completed(record, clock)
        except (Finished, Held, LostRace):
            assert record is before
        if record is not before:
            assert record.sequence == before.sequence + 1
            assert before.status not in tasks.TERMINAL
        assert (record.lease is not None) == (record.status == "processing")
        assert (record.completed_at is not None) == (record.status in tasks.TERMINAL)
        assert tasks.Record.from_json(record.to_json()) == record
