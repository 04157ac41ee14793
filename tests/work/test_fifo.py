"""The whole path over a FIFO queue: from the door to the picture, with a suspension and a duplicate on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.work.serving import Generate

from ..support import record_of

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
