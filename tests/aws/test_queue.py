"""TaskQueue's contract, on moto and (``make test-emulators``) on MiniStack."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from handler.aws.queue import TaskQueue
from handler.errors import ServiceFault

if TYPE_CHECKING:
    from handler.cli.local.aws import Resources
    from handler.settings import Settings

pytestmark = pytest.mark.contract


def test_what_is_sent_is_received(queue: TaskQueue) -> None:
    sent = queue.send("héllo")
    (message,) = queue.receive(wait=1)
    assert (message.message_id, message.body) == (sent, "héllo")
    assert message.attributes["ApproximateReceiveCount"] == "1"
    assert abs(int(message.attributes["SentTimestamp"]) / 1000 - time.time()) < 60


def test_a_received_message_is_hidden_until_it_is_given_back(queue: TaskQueue) -> None:
    queue.send("a")
    (first,) = queue.receive(wait=1)
    assert queue.receive(wait=0) == []
    queue.change_visibility(first.receipt_handle, 0)
    (second,) = queue.receive(wait=1)
    assert second.message_id == first.message_id
    assert second.attributes["ApproximateReceiveCount"] == "2"


def test_a_message_comes_back_when_its_time_is_over(queue: TaskQueue) -> None:
    queue.send("a")
    (message,) = queue.receive(wait=1)
    queue.change_visibility(message.receipt_handle, 1)
    assert queue.receive(wait=0) == []
    assert len(queue.receive(wait=3)) == 1


def test_a_receiver_says_how_long_it_holds_a_message(queue: TaskQueue) -> None:
    """Not for the queue's own time, which is 30 seconds here."""
    queue.send("a")
    assert len(queue.receive(wait=1, hidden=1)) == 1
    assert queue.receive(wait=0) == []
    assert len(queue.receive(wait=3)) == 1


def test_a_deleted_message_is_gone(queue: TaskQueue) -> None:
    queue.send("a")
    (message,) = queue.receive(wait=1)
    queue.change_visibility(message.receipt_handle, 0)
    (again,) = queue.receive(wait=1)
    queue.delete(again.receipt_handle)
    queue.delete(again.receipt_handle)  # twice does no harm
    assert queue.receive(wait=1) == []


def test_a_delayed_message_waits(queue: TaskQueue) -> None:
    queue.send("a", delay=1)
    assert queue.receive(wait=0) == []
    assert len(queue.receive(wait=3)) == 1


def test_a_message_that_is_never_deleted_ends_among_the_dead(
    queue: TaskQueue, settings: Settings, resources: Resources
) -> None:
    sent = queue.send("poison")
    for _ in range(3):
        (message,) = queue.receive(wait=1)
        queue.change_visibility(message.receipt_handle, 0)
    assert queue.receive(wait=1) == []
    dead = TaskQueue(replace(settings, queue_url=resources.dead_letter_queue_url))
    assert [message.message_id for message in dead.receive(wait=1)] == [sent]


def test_a_long_poll_ends_when_a_message_comes(queue: TaskQueue) -> None:
    queue.send("a", delay=1)
    began = time.monotonic()
    assert len(queue.receive(wait=10)) == 1
    assert time.monotonic() - began < 8


def test_a_handle_that_means_nothing_does_no_harm(queue: TaskQueue) -> None:
    queue.send("a")
    (message,) = queue.receive(wait=1)
    queue.delete(message.receipt_handle)
    queue.change_visibility(message.receipt_handle, 5)


def test_a_queue_that_is_not_there_is_a_service_fault(queue: TaskQueue, settings: Settings) -> None:
    nowhere = TaskQueue(replace(settings, queue_url=queue.url + "-nowhere"))
    with pytest.raises(ServiceFault, match="SQS failed to send"):
        nowhere.send("a")


def test_a_server_that_is_not_there_is_a_service_fault(settings: Settings) -> None:
    nowhere = TaskQueue(replace(settings, aws_endpoint_url="http://127.0.0.1:9", queue_url="http://127.0.0.1:9/1/q"))
    with pytest.raises(ServiceFault, match="SQS failed to receive"):
        nowhere.receive(wait=0)
