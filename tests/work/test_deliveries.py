"""A message of either form, from whoever sent it, is served at every delivery; and no path makes a task endless."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from handler.care.deadletters import DeadLetters
from handler.care.redrive import Redrive
from handler.care.rounds import Doctor
from handler.errors import Internal, ServiceFault, WorkerBroken
from handler.task import moves
from handler.work.serving import Generate

from .. import support
from ..support import PlainEngine, event_of, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.submission import Submit
    from handler.aws.queue import Message, TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

    from ..support import Clock

FOX = '{"prompt": "fox", "task_id": "mine"}'
CONSUMED: dict[str, object] = {"batchItemFailures": []}


class Context:
    """A Lambda context with so many seconds left."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends - time.monotonic()) * 1000)


def one(queue: TaskQueue) -> Message:
    (message,) = queue.receive(wait=1)
    return message


def generate_with(
    engine: PlainEngine, settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> Generate:
    return Generate(settings, store, queue, lambda _: engine, now=clock)


def sent_by(who: str, submit: Submit, settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> Message:
    """The message that carries the task "mine", sent by one of those who send."""
    if who == "caller":
        queue.send(FOX)
        return one(queue)
    submit.submit(FOX)
    first = one(queue)
    if who == "submit":
        return first
    queue.delete(first.receipt_handle)
    if who == "repeated submit":
        submit.submit(FOX)
    elif who == "redrive":
        stored = store.read("mine")
        assert stored is not None
        store.change(stored, moves.fail(record_of(store, "mine"), now=clock(), fault=Internal("broken")))
        Redrive(store, queue, now=clock).one("mine")
    elif who == "doctor":
        clock.forward(3600)
        Doctor(settings, store, queue, now=clock).examine(fix=True)
    elif who == "suspension":
        engine = PlainEngine()
        generate = generate_with(engine, settings, store, queue, clock)
        engine.between = generate.suspend
        assert generate.handle(event_of(first), None) == CONSUMED
    elif who == "dead letters":
        assert DeadLetters(settings, store, None, queue, now=clock).handle(event_of(first), None) == CONSUMED
    return one(queue)


@pytest.mark.parametrize(
    "who", ["caller", "submit", "repeated submit", "redrive", "doctor", "suspension", "dead letters"]
)
def test_a_message_is_served_at_its_second_delivery(
    who: str,
    submit: Submit,
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first meets a passing fault; the second draws; the third finds nothing to do."""
    monkeypatch.setattr("handler.care.deadletters.SEND_AGAIN_AFTER", 0)
    clock.time = datetime.now(UTC)  # the list of open tasks has the bucket's own clock
    message = sent_by(who, submit, settings, store, queue, clock)
    broken = generate_with(PlainEngine(fault=RuntimeError("boom")), settings, store, queue, clock)
    assert broken.handle(event_of(message), None) != CONSUMED
    engine = PlainEngine()
    mended = generate_with(engine, settings, store, queue, clock)
    name = message.message_id if who == "caller-without-id" else "mine"
    assert mended.handle(event_of(message), None) == CONSUMED
    assert record_of(store, name).status == "completed"
    assert mended.handle(event_of(message), None) == CONSUMED
    assert engine.drawn == ["fox"]
    assert store.read(message.message_id) is None  # nobody was told of a conflict


def test_a_raw_message_before_and_after_its_record_is_one_task(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, plain: PlainEngine
) -> None:
    generate = generate_with(plain, settings, store, queue, clock)
    for _ in range(3):
        assert generate.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == CONSUMED
    assert plain.drawn == ["fox"]


def test_a_pointer_to_nothing_is_consumed(generate: Generate, store: TaskStore, plain: PlainEngine) -> None:
    pointer = json.dumps({"task_id": "gone", "fingerprint": "2-x", "send": 3})
    assert generate.handle(sqs_event(pointer), None) == CONSUMED
    assert store.read("gone") is None
    assert plain.drawn == []


def test_a_pointer_to_another_task_of_the_name_is_consumed(
    generate: Generate, submit: Submit, store: TaskStore, plain: PlainEngine
) -> None:
    submit.submit(FOX)
    pointer = json.dumps({"task_id": "mine", "fingerprint": "2-x", "send": 3})
    assert generate.handle(sqs_event(pointer, ids=["m-1"]), None) == CONSUMED
    assert record_of(store, "mine").status == "pending"
    assert (store.read("m-1"), plain.drawn) == (None, [])


class Unsaved:
    """A task of a pipeline whose steps cannot be saved."""

    def snapshot(self) -> bytes:
        return b""

    def preview(self) -> bytes:
        return b""


def test_a_task_that_cannot_be_saved_ends(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than an invocation, and begun anew in each: the message is a new one every time, and the count goes on."""
    monkeypatch.setattr(support, "Halfway", Unsaved)
    steps = [0]

    def between() -> None:
        steps[0] += 1
        time.sleep(0.1)

    generate = generate_with(PlainEngine(between=between), replace(settings, max_tries=3), store, queue, clock)
    queue.send('{"prompt": "fox", "num_inference_steps": 30, "task_id": "mine"}')
    invocations = 0
    while messages := queue.receive(wait=0):
        invocations += 1
        (message,) = messages
        assert generate.handle(event_of(message), Context(5.3)) == CONSUMED
        queue.delete(message.receipt_handle)
    record = record_of(store, "mine")
    assert (invocations, record.status, record.tries) == (3, "failed", 3)
    assert record.error is not None
    assert record.error.code == "RETRIES_EXHAUSTED"
    assert record.spent_seconds > 0


def test_a_task_that_is_saved_goes_on_for_ever(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    engine = PlainEngine()
    limited = replace(settings, max_tries=1)
    queue.send(FOX)
    for _ in range(4):
        generate = generate_with(engine, limited, store, queue, clock)
        engine.between = generate.suspend
        message = one(queue)
        assert generate.handle(event_of(message), None) == CONSUMED
        queue.delete(message.receipt_handle)
        record = record_of(store, "mine")
        stored = store.read("mine")
        assert stored is not None
        assert (record.status, record.tries) == ("pending", 0)
        # The plain engine knows of no steps that it was given: the next suspension saves one more.
        store.change(stored, record.model_copy(update={"saved_step": record.saved_step - 1}))


def test_an_outage_kills_nothing(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> None:
    """However often the message was received while S3 was away: it only waits, from 5 s to 15 minutes."""
    delays: list[float] = []
    generate = Generate(settings, store, queue, lambda _: plain, chance=lambda: 1.0)
    there: Any = store.read

    def away(_: str) -> None:
        raise ServiceFault("S3 failed to read")

    own: Any = generate._claims._store
    own.read = away
    queue_there: Any = generate._queue
    queue_there.change_visibility = lambda _, seconds: delays.append(seconds)
    for count in range(1, 101):
        assert generate.handle(sqs_event(FOX, ids=["m"], count=count), None) != CONSUMED
    assert delays[:9] == [5, 10, 20, 40, 80, 160, 320, 640, 900]
    assert set(delays[9:]) == {900}
    own.read = there
    assert generate.handle(sqs_event(FOX, ids=["m"], count=101), None) == CONSUMED
    assert record_of(store, "mine").tries == 0


def test_one_hiccup_of_s3_costs_seconds_however_often_the_message_was_received(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    """Most of these times it may have waited for another attempt; a task that was served ends a row of faults."""
    delays: list[float] = []
    generate = Generate(settings, store, queue, lambda _: plain, chance=lambda: 1.0)
    own: Any = generate._claims._store
    queue_there: Any = generate._queue
    queue_there.change_visibility = lambda _, seconds: delays.append(seconds)
    there: Any = own.read

    def away(_: str) -> None:
        raise ServiceFault("S3 failed to read")

    for number in range(3):
        own.read = away
        generate.handle(sqs_event(FOX, ids=["m"], count=7), None)
        own.read = there
        generate.handle(sqs_event('{"prompt": "owl"}', ids=[f"other-{number}"]), None)
    assert delays == [5, 5, 5]


@pytest.mark.parametrize("fault", [Internal("boom"), WorkerBroken("the device is lost")])
def test_whoever_renews_the_message_the_tries_are_counted(
    fault: Exception, settings: Settings, submit: Submit, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    """A task that kills its worker, and a doctor who finds it each time."""
    clock.time = datetime.now(UTC)
    submit.submit(FOX)
    paid = 0
    for _ in range(20):
        for message in queue.receive(10, wait=0):
            generate = generate_with(PlainEngine(fault=fault), settings, store, queue, clock)
            generate.handle(event_of(message), None)
            queue.delete(message.receipt_handle)
            paid += 1
        clock.forward(3600)
        Doctor(settings, store, queue, now=clock).examine(fix=True)
    record = record_of(store, "mine")
    assert (paid, record.status, record.tries) == (5, "failed", 5)


def test_a_task_that_draws_for_too_long_ends(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    limited = replace(settings, max_task_seconds=0.3)
    generate = generate_with(PlainEngine(between=lambda: time.sleep(0.1)), limited, store, queue, clock)
    asked = '{"prompt": "fox", "num_inference_steps": 30, "task_id": "mine"}'
    assert generate.handle(sqs_event(asked), None) == CONSUMED
    record = record_of(store, "mine")
    assert record.error is not None
    assert (record.status, record.error.code) == ("failed", "TIMED_OUT")
    assert 0.3 <= record.spent_seconds < 3


def test_a_task_past_its_retention_is_ended(
    generate: Generate, submit: Submit, store: TaskStore, queue: TaskQueue, clock: Clock, plain: PlainEngine
) -> None:
    submit.submit(FOX)
    clock.forward(31 * 24 * 3600)
    assert generate.handle(event_of(one(queue)), None) == CONSUMED
    record = record_of(store, "mine")
    assert record.error is not None
    assert (record.status, record.error.code, plain.drawn) == ("failed", "TIMED_OUT", [])


def test_redrive_grants_a_new_budget(
    settings: Settings, submit: Submit, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    submit.submit(FOX)
    limited = replace(settings, max_tries=1)
    message = one(queue)
    generate_with(PlainEngine(fault=Internal("boom")), limited, store, queue, clock).handle(event_of(message), None)
    assert record_of(store, "mine").tries == 1
    queue.delete(message.receipt_handle)
    again = Redrive(store, queue, now=clock).one("mine")
    assert (again.tries, again.spent_seconds, again.sends) == (0, 0, 2)
    engine = PlainEngine()
    assert generate_with(engine, limited, store, queue, clock).handle(event_of(one(queue)), None) == CONSUMED
    assert engine.drawn == ["fox"]
