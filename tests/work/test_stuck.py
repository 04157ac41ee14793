"""A sign of life is a sign of progress: who stands still gets none, and neither does a broken worker."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from handler.errors import ServiceFault, WorkerBroken
from handler.generate import app, handle
from handler.task import moves
from handler.task.budget import Budget, Costs
from handler.work import lazy_engine, liveness
from handler.work.polling import Poller
from handler.work.serving import Generate
from handler.worker import Worker

from .. import support
from ..support import Halfway, PlainEngine, event_of, record_of, sqs_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from handler.aws.queue import Message, TaskQueue
    from handler.aws.store import TaskStore
    from handler.contract.request import GenerationRequest
    from handler.engine import Observer
    from handler.settings import Settings

pytestmark = pytest.mark.slow
CONSUMED: dict[str, object] = {"batchItemFailures": []}
BODY = '{"prompt": "fox", "num_inference_steps": 8, "task_id": "mine"}'


class Context:
    """Lambda's context with five minutes left."""

    def get_remaining_time_in_millis(self) -> int:
        return 300_000


class Hung:
    """A device that answers for two steps and then no more, until the test is over."""

    def __init__(self) -> None:
        self.steps = 0
        self.hangs, self.over = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.steps += 1
        if self.steps == 3:
            self.hangs.set()
            self.over.wait(60)


@pytest.fixture
def hung() -> Iterator[Hung]:
    hung = Hung()
    yield hung
    hung.over.set()


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return replace(settings, step_limit=1.0, lease=6, beat_every=0.2, first_beat=0.2, shutdown_grace=4)


def until(true: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not become true in time"
        time.sleep(0.05)


def one(queue: TaskQueue) -> Message:
    (message,) = queue.receive(wait=5)
    return message


def completes_elsewhere(settings: Settings, store: TaskStore, queue: TaskQueue) -> PlainEngine:
    elsewhere = PlainEngine()
    assert Generate(settings, store, queue, lambda _: elsewhere).handle(event_of(one(queue)), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 2)
    return elsewhere


def test_a_worker_whose_step_hangs_ends_and_its_task_goes_on_elsewhere(
    quick: Settings, store: TaskStore, queue: TaskQueue, hung: Hung
) -> None:
    worker = Worker(Generate(quick, store, queue, lambda _: PlainEngine(between=hung)), queue, quick, poll_seconds=1)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(worker.run()), daemon=True)
    thread.start()
    queue.send(BODY)
    assert hung.hangs.wait(30)
    until(lambda: record_of(store, "mine").status == "pending", quick.step_limit + quick.lease + 5)
    record = record_of(store, "mine")
    assert (record.attempts[0].outcome, record.tries) == ("released", 1)
    assert record.attempts[0].message == "its worker broke: no step for 1 seconds"
    assert store.read_checkpoint("mine") == b"step by step"
    thread.join(10)
    assert statuses == [1]
    elsewhere = completes_elsewhere(quick, store, queue)
    assert elsewhere.resumed == [b"step by step"]


def test_its_neighbours_are_saved_and_sent_on(quick: Settings, store: TaskStore, queue: TaskQueue, hung: Hung) -> None:
    def between() -> None:
        (hung if threading.current_thread() is stuck[0] else lambda: time.sleep(0.1))()

    stuck: list[threading.Thread] = []

    class Two(PlainEngine):
        def develop(self, request: GenerationRequest, observer: Observer, *rest: Any) -> Any:
            if request.prompt == "fox":
                stuck.append(threading.current_thread())
            else:
                assert hung.hangs.wait(30)
            return super().develop(request, observer, *rest)

    generate = Generate(quick, store, queue, lambda _: Two(between=between))
    other = '{"prompt": "owl", "num_inference_steps": 100, "task_id": "other"}'
    answer = generate.handle(sqs_event(BODY, other, ids=["m-1", "m-2"]), Context())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m-1"}]}  # another message stands for the second
    assert isinstance(generate.broken, WorkerBroken)
    neighbour = record_of(store, "other")
    assert (neighbour.status, neighbour.attempts[0].outcome, neighbour.tries) == ("pending", "suspended", 0)
    assert record_of(store, "mine").status == "pending"


def test_under_lambda_the_environment_of_a_hung_step_ends(
    environ: dict[str, str], store: TaskStore, queue: TaskQueue, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"STEP_LIMIT": "1", "LEASE": "6", "BEAT_EVERY": "0.2", "FIRST_BEAT": "0.2"}
    for name, value in {**environ, **quick}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("handler.engine.starting.start", lambda *_: PlainEngine(between=hung))
    queue.send(BODY)
    app.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            handle(event_of(one(queue)), Context())
    finally:
        app.cache_clear()
    assert ended.value.code == 1
    assert record_of(store, "mine").status == "pending"
    assert queue.receive(wait=1)


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A load that hangs until the test is over, where half a second is too long."""
    monkeypatch.setattr(lazy_engine, "LOAD_LIMIT", 0.5)
    over = threading.Event()
    yield lambda *_: over.wait(60) and PlainEngine()
    over.set()


def test_a_worker_whose_model_never_finishes_loading_ends(
    quick: Settings, store: TaskStore, queue: TaskQueue, never_loads: Callable[..., Any]
) -> None:
    queue.send(BODY)
    worker = Worker(Generate(quick, store, queue, never_loads), queue, quick, poll_seconds=1)
    began = time.monotonic()
    assert worker.run() == 1
    assert time.monotonic() - began < 30
    assert worker.busy, "its host ends the thread that loads"
    assert queue.receive(wait=1), "nobody has taken the message"


def test_under_lambda_the_environment_of_a_load_that_hangs_ends(
    environ: dict[str, str],
    queue: TaskQueue,
    monkeypatch: pytest.MonkeyPatch,
    never_loads: Callable[..., Any],
) -> None:
    quick = {"LEASE": "6", "BEAT_EVERY": "0.2", "FIRST_BEAT": "0.2"}
    for name, value in {**environ, **quick}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("handler.engine.starting.start", never_loads)
    queue.send(BODY)
    app.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            handle(event_of(one(queue)), Context())
    finally:
        app.cache_clear()
    assert ended.value.code == 1
    assert queue.receive(wait=1), "the message was given back"


def test_a_device_that_cannot_even_be_saved_from_loses_the_lease(
    quick: Settings, store: TaskStore, queue: TaskQueue, hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(Halfway):
        def snapshot(self) -> bytes:
            hung.over.wait(60)
            return b""

    monkeypatch.setattr(support, "Halfway", Lost)
    worker = Worker(Generate(quick, store, queue, lambda _: PlainEngine(between=hung)), queue, quick, poll_seconds=1)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(worker.run()), daemon=True)
    thread.start()
    queue.send(BODY)
    assert hung.hangs.wait(30)
    thread.join(quick.step_limit + quick.lease + 5)
    assert statuses == [1]
    lease = record_of(store, "mine").lease
    assert lease is not None
    over = lease.expires_at + timedelta(seconds=moves.MARGIN + 1)  # S3's times are whole seconds
    until(lambda: datetime.now(UTC) > over, quick.lease + 8)
    assert record_of(store, "mine").lease == lease
    monkeypatch.undo()
    completes_elsewhere(quick, store, queue)


def test_a_text_that_takes_for_ever_is_a_hung_step(
    quick: Settings, store: TaskStore, queue: TaskQueue, hung: Hung
) -> None:
    class Silent(PlainEngine):
        def develop(self, *_: Any) -> Any:
            hung.hangs.set()
            hung.over.wait(60)
            raise WorkerBroken("over")

    generate = Generate(quick, store, queue, lambda _: Silent())
    queue.send(BODY)
    message = one(queue)
    began = time.monotonic()
    answer = generate.handle(event_of(message), Context())
    assert answer["batchItemFailures"] == [{"itemIdentifier": message.message_id}]
    assert time.monotonic() - began < quick.step_limit + quick.lease + 5
    assert record_of(store, "mine").status == "pending"
    completes_elsewhere(quick, store, queue)


def test_the_end_of_the_compute_thread_ends_the_worker(quick: Settings, store: TaskStore, queue: TaskQueue) -> None:
    """The engine raises WorkerBroken in every caller: the task goes on elsewhere from its saved steps."""
    plain = PlainEngine(fault=WorkerBroken("the compute thread ended: MemoryError"))
    worker = Worker(Generate(quick, store, queue, lambda _: plain), queue, quick, poll_seconds=1)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(worker.run()), daemon=True)
    thread.start()
    queue.send(BODY)
    thread.join(20)
    assert statuses == [1]
    record = record_of(store, "mine")
    assert (record.status, record.tries) == ("pending", 1)
    assert record.attempts[0].message == "its worker broke: the compute thread ended: MemoryError"
    completes_elsewhere(quick, store, queue)


def test_slow_is_not_stuck() -> None:
    """Twenty times the pace of such a size, or the task's own, if that is more than the limit."""
    costs = Costs()
    costs.learn("step", 64, 0.05)
    budget = Budget(step_limit=0.1)
    budget.know(costs, 64)
    assert budget.stuck() is None  # it has not begun
    budget.begin()
    time.sleep(0.3)
    assert budget.stuck() is None
    time.sleep(0.8)
    assert budget.stuck() is not None
    budget.admit(0, 4)
    assert budget.stuck() is None
    budget.end()
    time.sleep(0.2)
    assert budget.stuck() is None


def test_a_preview_that_fails_costs_neither_the_signs_nor_the_lease(
    settings: Settings, store: TaskStore, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Unseen(Halfway):
        def preview(self) -> bytes:
            raise AttributeError("'FrozenDict' object has no attribute 'prediction_type'")

    monkeypatch.setattr(support, "Halfway", Unseen)
    short = replace(settings, lease=5, beat_every=0.3, first_beat=0, previews=True)
    generate = Generate(short, store, queue, lambda _: PlainEngine(between=lambda: time.sleep(0.9)))
    assert generate.handle(sqs_event(BODY), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 1)
    assert record.sequence > 8  # signs of life all along
    assert [one.message for one in caplog.records].count("a preview was not written") == 1


def test_a_preview_or_checkpoint_that_hangs_costs_no_lease(
    settings: Settings, store: TaskStore, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    class Slow(Halfway):
        def preview(self) -> bytes:
            over.wait(60)
            return b""

    monkeypatch.setattr(support, "Halfway", Slow)
    short = replace(settings, lease=5, beat_every=0.3, first_beat=0, previews=True)
    generate = Generate(short, store, queue, lambda _: PlainEngine(between=lambda: time.sleep(0.9)))
    assert generate.handle(sqs_event(BODY), None) == CONSUMED
    over.set()
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 1)


class Silence:
    """A queue that cannot be reached."""

    def receive(self, *_: Any) -> list[Message]:
        raise ServiceFault("SQS failed to receive messages")


def touched(file: Path, worker: Worker) -> bool:
    """Whether a turn of the worker's loop touches the file."""
    file.unlink(missing_ok=True)
    worker._tell_alive()
    return file.exists()


def test_the_health_check_sees_a_broken_worker_and_one_that_does_not_poll(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, tmp_path: Path, monkeypatch: Any
) -> None:
    file = tmp_path / "alive"
    settings = replace(settings, alive_file=str(file))
    generate = Generate(settings, store, queue, lambda _: plain)
    worker = Worker(generate, queue, settings, poll_seconds=0)
    assert touched(file, worker)
    monkeypatch.setenv("ALIVE_FILE", str(file))
    assert liveness.main() == 0
    before = time.time() - liveness.MOST_SECONDS - 1
    os.utime(file, (before, before))  # what the file looks like five minutes after the last poll that was answered
    assert liveness.main() == 1
    monkeypatch.setattr("handler.work.polling.PAUSE_AFTER_FAULT", 0)
    silent: Any = Silence()
    own, worker._poller = worker._poller, Poller(silent, threading.Event(), wait=0)
    assert worker._poller.receive(1) == []
    assert not touched(file, worker)
    worker._poller = own
    assert own.receive(1) == []
    assert touched(file, worker)
    generate.broken = WorkerBroken("the device is lost")
    assert not touched(file, worker)


def test_an_idle_worker_and_one_that_draws_for_long_tell_that_they_are_well(
    settings: Settings, store: TaskStore, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[float] = []
    own: Any = store.write_health

    def watched(health: dict[str, Any]) -> None:
        reports.append(time.monotonic())
        own(health)

    there: Any = store
    there.write_health = watched
    monkeypatch.setattr(lazy_engine, "RENEW_EVERY", 1.0)
    often = replace(settings, beat_every=0.2, first_beat=0.2)
    plain = PlainEngine(between=lambda: time.sleep(0.4))
    generate = Generate(often, store, queue, lambda _: plain)
    assert generate.handle(sqs_event(BODY), None) == CONSUMED  # 3.2 s, of one message
    assert 3 <= len(reports) <= 5
    worker = Worker(generate, queue, often, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    count = len(reports)
    until(lambda: len(reports) >= count + 2, 10)
    worker.stop()
    thread.join(10)
    generate.broken = WorkerBroken("the device is lost")
    count = len(reports)
    time.sleep(1.1)
    generate.renew()
    assert len(reports) == count
