"""The whole path over a FIFO queue: from the door to the picture, with a suspension and a duplicate on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from handler.api.submission import Submit
from handler.aws.queue import TaskQueue, messages_of
from handler.care.deadletters import DeadLetters
from handler.work.serving import Generate

from ..support import event_of, record_of, sqs_event

if TYPE_CHECKING:
    from handler.aws.store import TaskStore
    from handler.settings import Settings

    from ..support import PlainEngine


@pytest.fixture
def fifo(settings: Settings) -> Settings:
    sqs = TaskQueue(settings)._sqs
    attributes: Any = {"FifoQueue": "true", "VisibilityTimeout": "30"}
    url = sqs.create_queue(QueueName=f"tasks-{uuid4().hex[:8]}.fifo", Attributes=attributes)["QueueUrl"]
    return replace(settings, queue_url=url)


def serve_all(generate: Generate, queue: TaskQueue) -> int:
    """Serves and deletes what there is, as a worker does. Returns how many messages that were."""
    served = 0
    while messages := queue.receive(10, wait=1):
        for message in messages:
            if generate.serve(message):
                queue.delete(message.receipt_handle)
            served += 1
    return served


def test_what_is_sent_for_later_is_not_served_before(fifo: Settings, store: TaskStore, plain: PlainEngine) -> None:
    """FIFO queues delay no message; a standard one does it itself, and has no such attribute."""
    queue = TaskQueue(fifo)
    generate = Generate(fifo, store, queue, lambda _: plain)
    queue.send('{"prompt": "fox"}', delay=3)
    (early,) = queue.receive(1, wait=1)
    assert early.delay == 3
    assert not generate.serve(early)
    assert (plain.drawn, queue.receive(1, wait=0)) == ([], [])
    (due,) = queue.receive(1, wait=5)
    assert generate.serve(due)
    assert plain.drawn == ["fox"]


def test_lambda_keeps_what_is_not_due(fifo: Settings, store: TaskStore, plain: PlainEngine) -> None:
    queue = TaskQueue(fifo)
    queue.send('{"prompt": "fox"}', delay=600)
    (message,) = queue.receive(1, wait=1)
    answer = Generate(fifo, store, queue, lambda _: plain).handle(event_of(message), None)
    assert answer == {"batchItemFailures": [{"itemIdentifier": message.message_id}]}
    assert plain.drawn == []


@pytest.mark.parametrize("told", ["-1", "901", "1e2", "\u0663", "", "99999999999999999999"])
def test_a_delay_that_is_none_is_passed_over(told: str) -> None:
    """Whoever may send may write what they like: the message is neither lost nor hidden for hours."""
    event = sqs_event('{"prompt": "fox"}')
    event["Records"][0]["messageAttributes"] = {"delay": {"dataType": "String", "stringValue": told}}
    assert [one.delay for one in messages_of(event)] == [0]


def test_a_dead_letter_that_is_sent_again_waits(
    fifo: Settings, store: TaskStore, plain: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.care.deadletters.SEND_AGAIN_AFTER", 2)
    queue = TaskQueue(fifo)
    Submit(fifo, store, queue).submit('{"prompt": "fox", "task_id": "mine"}')
    (dead,) = queue.receive(1, wait=1)
    queue.delete(dead.receipt_handle)
    assert DeadLetters(fifo, store, None, queue).serve(dead)
    (early,) = queue.receive(1, wait=1)
    generate = Generate(fifo, store, queue, lambda _: plain)
    assert not generate.serve(early)
    (due,) = queue.receive(1, wait=5)
    assert generate.serve(due)
    assert record_of(store, "mine").status == "completed"


def test_a_task_is_suspended_goes_on_and_is_drawn_once(fifo: Settings, store: TaskStore, plain: PlainEngine) -> None:
    queue = TaskQueue(fifo)
    first = Generate(fifo, store, queue, lambda _: plain)
    plain.between = first.suspend  # its host goes at the first step
    submit = Submit(fifo, store, queue)
    submit.submit('{"prompt": "fox", "task_id": "mine", "num_inference_steps": 8}')
    submit.submit('{"prompt": "fox", "task_id": "mine", "num_inference_steps": 8}')  # asks again, and sends again
    (message,) = queue.receive(1, wait=1)
    assert first.serve(message)
    queue.delete(message.receipt_handle)
    assert record_of(store, "mine").status == "pending"
    plain.between = lambda: None
    assert serve_all(Generate(fifo, store, queue, lambda _: plain), queue) >= 1
    record = record_of(store, "mine")
    assert (record.status, plain.drawn) == ("completed", ["fox"])
    assert queue.backlog().empty
