"""One clock: whose lease has run out is judged by S3's time, not by any worker's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from handler.aws.clock import KEEP, S3Clock, date_of
from handler.aws.store import TaskStore
from handler.contract.record import Record
from handler.errors import ServiceFault
from handler.work.serving import Generate

from ..support import PlainEngine, event_of

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.settings import Settings

FOX = '{"prompt": "fox", "task_id": "mine", "num_inference_steps": 1}'


@pytest.mark.contract
def test_s3_tells_the_time(store: TaskStore) -> None:
    assert abs((store.now() - datetime.now(UTC)).total_seconds()) < 3  # the emulator's clock is this machine's


@pytest.mark.contract
def test_an_objects_age_is_by_s3s_clock(store: TaskStore) -> None:
    store.open("mine")
    (listed,) = store.open_tasks()
    assert abs((store.now() - listed.since).total_seconds()) < 3


def test_s3_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    then = datetime(2026, 1, 2, tzinfo=UTC)
    monotonic = [100.0]

    def date(url: str) -> datetime:
        asked.append(url)
        return then

    monkeypatch.setattr("handler.aws.clock.date_of", date)
    clock = S3Clock(lambda: "signed", lambda: monotonic[0])
    assert clock.now() == then
    monotonic[0] += KEEP
    assert clock.now() == then + timedelta(seconds=KEEP)
    assert asked == ["signed"]
    monotonic[0] += 1
    assert clock.now() == then
    assert len(asked) == 2


def test_without_an_answer_nothing_is_judged() -> None:
    with pytest.raises(ServiceFault, match="tell the time"):
        date_of("http://127.0.0.1:9/")


@pytest.mark.parametrize("skew", [-90, 90])
def test_workers_whose_clocks_differ_draw_nothing_twice(
    skew: int, settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """While one draws, the message comes to another whose wall clock is 90 seconds off: it is held."""

    def own_time() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=skew)

    other = PlainEngine()
    late = Generate(settings, TaskStore(settings), queue, lambda _: other, now=own_time)
    queue.send(FOX)
    (message,) = queue.receive(wait=1)
    answers = []
    engine = PlainEngine(between=lambda: answers.append(late.handle(event_of(message), None)))
    first = Generate(settings, store, queue, lambda _: engine)
    assert first.handle(event_of(message), None) == {"batchItemFailures": []}
    assert [one["batchItemFailures"] for one in answers] == [[{"itemIdentifier": message.message_id}]]
    assert (engine.drawn, other.drawn) == (["fox"], [])
    stored = store.read("mine")
    assert stored is not None
    assert Record.from_json(stored.body).attempt == 1
