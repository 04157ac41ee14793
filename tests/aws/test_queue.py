"""TaskQueue's contract, on moto, (``make test-emulators``) on MiniStack, and on the stand-in in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest

from handler.aws.queue import TaskQueue
from handler.contract.pointer import Pointer
from handler.errors import ServiceFault

from ..memory_queue import MemoryQueue

if TYPE_CHECKING:
    from handler.cli.local.aws import Resources
    from handler.settings import Settings

pytestmark = pytest.mark.contract
ON_AWS = pytest.mark.parametrize("queues", ["aws"], indirect=True)
"""What the stand-in has no part in: URLs that lead nowhere."""


@pytest.fixture(params=["aws", "memory"])
def queues(request: pytest.FixtureRequest) -> tuple[TaskQueue, TaskQueue]:
    """A queue and its dead letters."""
    if request.param == "memory":
        dead = MemoryQueue(time.time, pause=time.sleep)
        queue = MemoryQueue(time.time, visibility=30, max_receives=3, dead=dead, pause=time.sleep)
        return cast("TaskQueue", queue), cast("TaskQueue", dead)
    settings: Settings = request.getfixturevalue("settings")
    resources: Resources = request.getfixturevalue("resources")
    return TaskQueue(settings), TaskQueue(settings, resources.dead_letter_queue_url)


@pytest.fixture
def queue(queues: tuple[TaskQueue, TaskQueue]) -> TaskQueue:
    return queues[0]


def test_the_stand_in_has_the_same_methods() -> None:
    public = {name for name in vars(TaskQueue) if not name.startswith("_")}
    assert public <= set(vars(MemoryQueue))


def test_what_is_said_beside_the_body_arrives(queue: TaskQueue) -> None:
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    queue.send("a", trace=trace, tenant="alice")
    queue.send("b")
    told: dict[str, tuple[str | None, str | None]] = {}
    while len(told) < 2:
        told |= {one.body: (one.trace, one.tenant) for one in queue.receive(10, wait=2)}
    assert told == {"a": (trace, "alice"), "b": (None, None)}


def test_messages_are_counted(queue: TaskQueue) -> None:
    assert queue.backlog().empty
    for delay in (0, 0, 60):
        queue.send("a", delay=delay)
    assert len(queue.receive(1, wait=1)) == 1
    backlog = queue.backlog()
    assert (backlog.visible, backlog.hidden, backlog.delayed, backlog.empty) == (1, 1, 1, False)
    assert backlog.retention > 0


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


def test_a_message_that_is_never_deleted_ends_among_the_dead(queues: tuple[TaskQueue, TaskQueue]) -> None:
    queue, dead = queues
    sent = queue.send("poison")
    for _ in range(3):
        (message,) = queue.receive(wait=1)
        queue.change_visibility(message.receipt_handle, 0)
    assert queue.receive(wait=1) == []
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


@ON_AWS
def test_a_queue_that_is_not_there_is_a_service_fault(queue: TaskQueue, settings: Settings) -> None:
    nowhere = TaskQueue(replace(settings, queue_url=queue.url + "-nowhere"))
    with pytest.raises(ServiceFault, match="SQS failed to send"):
        nowhere.send("a")


def test_a_server_that_is_not_there_is_a_service_fault(settings: Settings) -> None:
    nowhere = TaskQueue(replace(settings, aws_endpoint_url="http://127.0.0.1:9", queue_url="http://127.0.0.1:9/1/q"))
    with pytest.raises(ServiceFault, match="SQS failed to receive"):
        nowhere.receive(wait=0)


def test_a_fifo_queue_takes_each_send_once_and_a_task_at_a_time(settings: Settings) -> None:
    """On moto: FIFO queues are not what MiniStack is for."""
    sqs = TaskQueue(settings)._sqs
    name = f"tasks-{uuid4().hex[:8]}.fifo"
    url = sqs.create_queue(QueueName=name, Attributes={"FifoQueue": "true", "VisibilityTimeout": "30"})["QueueUrl"]
    fifo = TaskQueue(settings, url)
    first = Pointer(task_id="fox-1", tenant="alice", fingerprint="2-00", send=1)
    again = first.model_copy(update={"send": 2})
    long = Pointer(task_id="x" * 128, fingerprint="2-00", send=1)
    for pointer in (first, first, again, long):
        fifo.send(pointer.to_json(), delay=60 if pointer is again else 0)
    received = {message.body: message for message in fifo.receive(10, wait=1)}
    assert first.to_json() in received
    for message in received.values():
        fifo.change_visibility(message.receipt_handle, 0)
    bodies: list[str] = []
    while len(bodies) < 3:
        for message in fifo.receive(10, wait=1):
            bodies.append(message.body)
            fifo.delete(message.receipt_handle)
    assert bodies.count(first.to_json()) == 1, "the same send twice is one message"
    assert sorted(bodies) == sorted([first.to_json(), again.to_json(), long.to_json()])
    fifo.send('{"prompt": "fox"}')
    fifo.send('{"prompt": "fox"}')
    assert len(fifo.receive(10, wait=1)) == 2, "requests are no repetitions of each other"


def test_tenants_are_groups_of_a_standard_queue(settings: Settings, queue: TaskQueue) -> None:
    """SQS serves groups of a standard queue fairly; moto tells which one a message is in."""
    aws = TaskQueue(settings)
    aws.send(Pointer(task_id="a", tenant="alice", fingerprint="2-00").to_json())
    aws.send("b", tenant="bob")
    aws.send("c")
    groups: dict[str, str | None] = {}
    while len(groups) < 3:
        groups |= {one.body[-3:]: one.attributes.get("MessageGroupId") for one in aws.receive(10, wait=1)}
    assert sorted(map(str, groups.values())) == ["None", "alice", "bob"]
