"""Many requests at once: bounded, as they come, and never a task that nobody can name."""

from __future__ import annotations

import gc
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from handler.client import Asked, Darkroom
from handler.errors import InvalidRequest, OutOfMemory, StillRunning

from ..service import api, worker
from ..support import record_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

    from ..service import Running
    from ..support import PlainEngine


@pytest.fixture
def running(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[Running]:
    with api(settings, store, queue) as running:
        yield running


@pytest.fixture
def darkroom(running: Running) -> Iterator[Darkroom]:
    with Darkroom(endpoint=running.url) as darkroom:
        yield darkroom


@pytest.fixture
def drawing(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Iterator[None]:
    with worker(settings, store, queue, plain):
        yield


@pytest.mark.usefixtures("drawing")
def test_each_request_is_answered_once_and_faults_stay_with_their_own(darkroom: Darkroom, plain: PlainEngine) -> None:
    asked: list[Asked] = ["fox", {"prompt": "owl", "seed": 3}, {"prompt": ""}, {"prompt": "cat", "colour": 1}]
    drawn = {one.index: one for one in darkroom.map(asked, in_flight=2, num_inference_steps=2, seed=1)}
    assert {index: one.asked for index, one in drawn.items()} == dict(enumerate(asked))
    for index, seed in ((0, 1), (1, 3)):
        result = drawn[index].result
        assert result is not None
        assert result.request is not None
        assert (drawn[index].fault, result.request.seed, result.request.num_inference_steps) == (None, seed, 2)
    for index in (2, 3):
        assert isinstance(drawn[index].fault, InvalidRequest)
        assert drawn[index].result is None


@pytest.mark.usefixtures("drawing")
def test_a_task_that_fails_is_handed_out_with_its_fault(darkroom: Darkroom, plain: PlainEngine) -> None:
    plain.fault = OutOfMemory("too large")
    (one,) = darkroom.map(["fox"])
    assert isinstance(one.fault, OutOfMemory)
    assert one.result is not None
    assert one.result.status == "failed"


def test_no_more_than_so_many_are_in_flight_and_the_iterable_is_not_read_ahead(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    read: list[int] = []
    most = 0

    def prompts() -> Iterator[str]:
        for number in range(12):
            read.append(number)
            yield f"fox {number}"

    batch = darkroom.map(prompts(), in_flight=3)
    assert read == []
    with worker(settings, store, queue, plain):
        for count, _ in enumerate(batch, 1):
            most = max(most, len(read) - (count - 1))
            assert len(batch.in_flight) <= 3
    assert most == 3
    assert len(plain.drawn) == 12


def test_results_come_as_they_end(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    darkroom.submit("slow", task_id="slow")
    queue.receive(wait=1)  # nobody will draw it
    with worker(settings, store, queue, plain):
        batch = darkroom.map(["fox", {"prompt": "slow", "task_id": "stuck"}, "owl"], in_flight=3, timeout=20)
        darkroom.cancel("slow")
        ended = [next(batch).index for _ in range(3)]
    assert set(ended) == {0, 1, 2}


def test_a_fault_in_the_iterable_comes_after_what_was_submitted(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    def prompts() -> Iterator[str]:
        yield "fox"
        yield "owl"
        raise OSError("the disk is gone")

    batch = darkroom.map(prompts())
    with worker(settings, store, queue, plain):
        drawn = [next(batch), next(batch)]
        with pytest.raises(OSError, match="the disk is gone"):
            next(batch)
    assert list(batch) == []
    assert {one.index for one in drawn} == {0, 1}
    assert [one.fault for one in drawn] == [None, None]


def test_ctrl_c_names_what_is_in_flight(darkroom: Darkroom, store: TaskStore) -> None:
    batch = darkroom.map(["fox", "owl"], timeout=60)
    main = threading.get_ident()
    threading.Timer(1.5, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        next(batch)
    assert sorted(batch.in_flight.values(), key=str) == ["fox", "owl"]
    (note,) = caught.value.__notes__
    for task_id in batch.in_flight:
        assert record_of(store, task_id).status == "pending"
        assert task_id in note
    assert list(batch) == []


def test_a_wait_that_is_over_tells_where_the_task_is(darkroom: Darkroom, store: TaskStore) -> None:
    (one,) = darkroom.map(["fox"], timeout=0.5)
    assert isinstance(one.fault, StillRunning)
    assert one.result is not None
    assert (one.result.status, record_of(store, one.task_id).status) == ("pending", "pending")


def test_a_batch_that_is_left_asks_no_more(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.client.following.LONG_POLL", 1)
    darkroom = Darkroom(endpoint=running.url, clock=iter(range(0, 10_000, 5)).__next__, sleep=lambda _: None)
    batch = darkroom.map(["fox"], timeout=10_000)
    others = set(threading.enumerate())
    batch._fill()
    (thread,) = [one for one in threading.enumerate() if one.name.startswith("darkroom ") and one not in others]
    del batch
    gc.collect()
    thread.join(25)
    assert not thread.is_alive()


@pytest.mark.usefixtures("drawing")
def test_the_same_name_twice_in_one_batch(darkroom: Darkroom, plain: PlainEngine) -> None:
    asked = [{"prompt": "fox", "task_id": "mine"}] * 2
    assert [one.task_id for one in darkroom.map(asked)] == ["mine", "mine"]
    assert plain.drawn == ["fox"]
