"""The last word on a task whose message the queue has given up on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.aws.queue import TaskQueue
from handler.care.deadletters import DeadLetters
from handler.contract.record import Record
from handler.errors import Internal
from handler.work.serving import Generate

from ..support import Clock, PlainEngine, event_of, held, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.submission import Submit
    from handler.aws.store import TaskStore
    from handler.cli.local.aws import Resources
    from handler.settings import Settings

FOX = '{"prompt": "fox", "task_id": "mine"}'
CONSUMED: dict[str, object] = {"batchItemFailures": []}


def stays(*names: str) -> dict[str, object]:
    return {"batchItemFailures": [{"itemIdentifier": name} for name in names]}


@pytest.fixture
def dead_queue(settings: Settings, resources: Resources) -> TaskQueue:
    return TaskQueue(settings, resources.dead_letter_queue_url)


@pytest.fixture
def letters(settings: Settings, store: TaskStore, dead_queue: TaskQueue, clock: Clock) -> DeadLetters:
    return DeadLetters(replace(settings, max_tries=2), store, dead_queue, now=clock, new_seed=lambda: 7)


def test_a_task_without_tries_left_fails_with_its_last_fault(
    letters: DeadLetters, generate: Generate, store: TaskStore, plain: PlainEngine
) -> None:
    plain.fault = Internal("the device is in a bad mood")
    for _ in range(2):
        generate.handle(sqs_event(FOX, ids=["m"]), None)
    assert letters.handle(sqs_event(FOX, ids=["m"]), None) == CONSUMED
    record = record_of(store, "mine")
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "RETRIES_EXHAUSTED"
    assert record.error.message == "given up after 2 tries; the last fault: INTERNAL: the device is in a bad mood"
    assert [one.outcome for one in record.attempts] == ["released", "released"]
    assert [one.message for one in record.attempts] == ["the device is in a bad mood"] * 2


def test_a_task_whose_workers_all_died_says_so(letters: DeadLetters, store: TaskStore, clock: Clock) -> None:
    held(store, clock, message_id="m", tries=1)
    clock.forward(63)
    assert letters.handle(sqs_event(FOX, ids=["m"]), None) == CONSUMED
    record = record_of(store, "mine")
    assert record.error is not None
    assert record.error.message == "given up after 2 tries; the last fault: its worker was not heard of again"
    assert [(one.owner, one.outcome) for one in record.attempts] == [("elsewhere", "expired")]


def test_a_task_with_tries_left_goes_back(
    settings: Settings, store: TaskStore, dead_queue: TaskQueue, queue: TaskQueue, clock: Clock, monkeypatch: Any
) -> None:
    """S3 or the model was away for as long as the queue counted; the task has done nothing wrong."""
    monkeypatch.setattr("handler.care.deadletters.SEND_AGAIN_AFTER", 0)
    letters = DeadLetters(settings, store, dead_queue, queue, now=clock)
    held(store, clock, message_id="m")
    clock.forward(63)
    assert letters.handle(sqs_event(FOX, ids=["m"]), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.tries, record.sends) == ("pending", 1, 1)
    (again,) = queue.receive(wait=1)
    assert again.body == record.pointer()
    assert letters.handle(sqs_event(FOX, ids=["m"]), None) == CONSUMED  # the same once more: a newer one carries it
    assert record_of(store, "mine") == record
    assert queue.receive(wait=0) == []


def test_a_living_attempt_is_waited_for(
    letters: DeadLetters, store: TaskStore, dead_queue: TaskQueue, clock: Clock
) -> None:
    dead_queue.send(FOX)
    (message,) = dead_queue.receive(wait=1, hidden=1)
    held(store, clock, message_id=message.message_id)
    assert letters.handle(event_of(message), None) == stays(message.message_id)
    time.sleep(1.5)
    assert dead_queue.receive(wait=0) == []  # hidden until the lease ends
    clock.forward(63)
    assert letters.handle(event_of(message), None) == CONSUMED
    assert record_of(store, "mine").status == "pending"


def test_a_duplicate_of_a_living_attempt_goes(letters: DeadLetters, store: TaskStore, clock: Clock) -> None:
    held(store, clock, message_id="another")
    assert letters.handle(sqs_event(FOX, ids=["m"]), None) == CONSUMED
    assert record_of(store, "mine").status == "processing"


@pytest.mark.parametrize("end", ["completed", "cancelled"])
def test_an_ended_task_stays_as_it_is(
    letters: DeadLetters, generate: Generate, submit: Submit, store: TaskStore, end: str
) -> None:
    submit.submit(FOX)
    if end == "completed":
        generate.handle(sqs_event(FOX), None)
    else:
        submit.cancel("mine")
    before = record_of(store, "mine")
    assert letters.handle(sqs_event(FOX), None) == CONSUMED
    assert record_of(store, "mine") == before


def test_another_tasks_record_is_never_touched(letters: DeadLetters, submit: Submit, store: TaskStore) -> None:
    submit.submit(FOX)
    assert letters.handle(sqs_event('{"prompt": "owl", "task_id": "mine"}'), None) == CONSUMED
    assert record_of(store, "mine").status == "pending"


def test_a_message_that_no_worker_ever_saw_gets_a_record(letters: DeadLetters, store: TaskStore) -> None:
    assert letters.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert (record.status, record.sends, record.tries) == ("pending", 1, 0)
    (listed,), _ = store.newest(1)
    assert Record.from_json(listed.body) == record


def test_an_unreadable_message_that_no_worker_ever_saw_gets_one_too(letters: DeadLetters, store: TaskStore) -> None:
    assert letters.handle(sqs_event("nonsense", ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "RETRIES_EXHAUSTED"
    assert "no valid request" in record.error.message
    (listed,), _ = store.newest(1)
    assert Record.from_json(listed.body) == record


def test_a_poison_message_ends_by_its_own_count(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, plain: Any
) -> None:
    """Whatever the queue counts: two tries are two."""
    plain.fault = Internal("broken")
    generate = Generate(replace(settings, max_tries=2), store, queue, lambda _: plain, now=clock)
    task_id = queue.send(json.dumps({"prompt": "fox"}))
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), None) == stays(task_id)
    queue.change_visibility(message.receipt_handle, 0)
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), None) == CONSUMED
    record = record_of(store, task_id)
    assert (record.status, record.tries) == ("failed", 2)
    assert record.error is not None
    assert record.error.message == "given up after 2 tries; the last fault: INTERNAL: broken"
