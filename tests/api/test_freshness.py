"""Polling is cheap: one read, a 304 where nothing is new, and long polls that end with the task."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.freshness import matches, poll_intervals
from handler.api.results import Status
from handler.aws.store import TaskStore
from handler.contract.record import Progress, Record
from handler.errors import OutOfMemory
from handler.task import moves

from ..api.test_routing import headers_of
from ..support import Clock, answer_of, held, http_event, record_of, sqs_event
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.api.submission import Submit
    from handler.settings import Settings
    from handler.work.serving import Generate

VERSIONS = ["1.0", "2.0"]


@dataclass
class Time:
    """Seconds that pass when somebody sleeps; ``then`` happens at a moment of them."""

    at: float = 0.0
    then: dict[float, Callable[[], Any]] = field(default_factory=dict)

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        for moment in [moment for moment in self.then if moment <= self.at]:
            self.then.pop(moment)()


@pytest.fixture
def passing() -> Time:
    return Time()


@pytest.fixture
def patient(settings: Settings, store: TaskStore, clock: Clock, passing: Time) -> Status:
    return Status(settings, store, now=clock, sleep=passing.sleep, monotonic=lambda: passing.at)


def poll(status: Status, version: str = "1.0", seen: str | None = None, **query: str) -> dict[str, Any]:
    headers = {"If-None-Match": seen} if seen else {}
    return status.handle(
        http_event("GET", "/results/mine", query=query or None, headers=headers, version=version), None
    )


def draw(generate: Generate, task_id: str = "mine") -> None:
    generate.handle(sqs_event(json.dumps({"prompt": "fox", "task_id": task_id})), None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("query", [{}, {"wait": "20"}])
def test_a_poll_of_a_finished_task_is_one_read(
    generate: Generate, settings: Settings, endpoint: str, version: str, query: dict[str, str]
) -> None:
    draw(generate)
    with watched(endpoint) as seen:
        there = replace(settings, aws_endpoint_url=seen.url)
        status = Status(there, TaskStore(there))
        first = poll(status, version, **query)
        assert answer_of(first)[1]["images"][0]["url"]
        assert seen.list == [f"GET /{settings.bucket}/tasks/mine/status.json"]
        again = poll(status, version, headers_of(first)["ETag"], **query)
        assert (again["statusCode"], again["body"]) == (304, "")
        assert "Content-Type" not in headers_of(again)
        assert headers_of(again)["ETag"] == headers_of(first)["ETag"]
        assert seen.list == [f"GET /{settings.bucket}/tasks/mine/status.json"] * 2


def test_a_304_of_an_inline_picture_reads_no_picture(generate: Generate, settings: Settings, endpoint: str) -> None:
    draw(generate)
    with watched(endpoint) as seen:
        there = replace(settings, aws_endpoint_url=seen.url)
        status = Status(there, TaskStore(there))
        tag = headers_of(poll(status, inline="base64"))["ETag"]
        assert len(seen.list) == 2
        assert poll(status, seen=tag, inline="base64")["statusCode"] == 304
        assert len(seen.list) == 3
        assert poll(status, seen=tag)["statusCode"] == 200  # another answer than the one with the picture in it


def test_every_move_is_another_tag(submit: Submit, status: Status, generate: Generate) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    waiting = headers_of(poll(status))["ETag"]
    assert poll(status, seen=waiting)["statusCode"] == 304
    draw(generate)
    assert poll(status, seen=waiting)["statusCode"] == 200


def test_a_tag_never_outlives_its_urls(generate: Generate, settings: Settings, store: TaskStore, clock: Clock) -> None:
    """Signed at any moment and taken for fresh at any later one: half of the lifetime is always left."""
    draw(generate)
    lifetime = settings.url_lifetime
    status = Status(settings, store, now=clock)
    tag, signed, fresh_for = headers_of(poll(status))["ETag"], clock(), []
    for _ in range(100):
        clock.forward(lifetime / 60)
        if poll(status, seen=tag)["statusCode"] == 304:
            fresh_for.append((clock() - signed).total_seconds())
        else:
            tag, signed = headers_of(poll(status))["ETag"], clock()
    assert fresh_for
    assert max(fresh_for) <= lifetime / 2


def test_a_tag_without_urls_stays(submit: Submit, status: Status, clock: Clock) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    tag = headers_of(poll(status))["ETag"]
    clock.forward(10 * 24 * 3600)
    assert poll(status, seen=tag)["statusCode"] == 304


@pytest.mark.parametrize(
    ("header", "same"),
    [
        ('W/"a"', True),
        ('"a"', True),
        ("*", True),
        ('"b", W/"a"', True),
        ('"b",W/"c"', False),
        ("a", False),
        (None, False),
    ],
)
def test_if_none_match(header: str | None, same: bool) -> None:
    assert matches(header, 'W/"a"') is same


def test_retry_after_is_the_eta(submit: Submit, status: Status, store: TaskStore, clock: Clock) -> None:
    def told() -> str | None:
        return headers_of(poll(status)).get("Retry-After")

    held(store, clock)
    assert told() == "2"  # nobody has measured a step yet
    for eta, seconds in [(3.2, "4"), (0.01, "1"), (600.0, "5")]:
        stored = store.read("mine")
        assert stored is not None
        progress = Progress(step=1, steps=9, fraction=0.1, eta_seconds=eta)
        record = record_of(store, "mine")
        assert record.lease is not None
        store.change(
            stored, moves.beat(record, now=clock(), lease=record.lease.expires_at - clock(), progress=progress)
        )
        assert told() == seconds
    submit.cancel("mine")
    assert told() is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_long_poll_ends_with_the_task(
    submit: Submit, patient: Status, generate: Generate, passing: Time, version: str
) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    passing.then[4.0] = lambda: draw(generate)
    assert answer_of(poll(patient, version, wait="20"))[1]["status"] == "completed"
    assert 4 <= passing.at <= 5


@pytest.mark.parametrize("version", VERSIONS)
def test_a_long_poll_ends_in_time(submit: Submit, patient: Status, passing: Time, version: str) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    response = poll(patient, version, wait="3")
    assert answer_of(response)[1]["status"] == "pending"
    assert passing.at == pytest.approx(3)
    tag = headers_of(response)["ETag"]
    again = poll(patient, version, tag, wait="20")
    assert (again["statusCode"], again["body"]) == (304, "")
    assert passing.at == pytest.approx(23)


def test_a_long_poll_with_a_tag_ends_with_the_next_move(
    submit: Submit, patient: Status, store: TaskStore, passing: Time, clock: Clock
) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    tag = headers_of(poll(patient))["ETag"]

    def move() -> None:
        stored = store.read("mine")
        assert stored is not None
        store.change(stored, moves.requeue(Record.from_json(stored.body), now=clock()))

    passing.then[2.0] = move
    response = poll(patient, "1.0", tag, wait="20")
    assert answer_of(response)[1]["sequence"] == 2
    assert passing.at <= 3
    assert poll(patient, seen=tag, wait="20")["statusCode"] == 200  # there is news already
    assert passing.at <= 3


def test_a_long_poll_leaves_its_host_time_to_answer(submit: Submit, patient: Status, passing: Time) -> None:
    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return 7000

    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    event = http_event("GET", "/results/mine", query={"wait": "20"})
    assert patient.handle(event, Context())["statusCode"] == 200
    assert passing.at == pytest.approx(5)


def test_nobody_waits_for_a_task_that_is_not_there(patient: Status, passing: Time) -> None:
    assert poll(patient, wait="20")["statusCode"] == 404
    assert passing.at == 0


@pytest.mark.parametrize("wait", ["0", "21", "-1", "1.5", "", "x", "²", "999"])
def test_a_bad_wait(status: Status, wait: str) -> None:
    code, answer = answer_of(poll(status, wait=wait))
    assert (code, answer["error"]["details"][0]["field"]) == (422, "wait")


def test_pauses_grow_to_a_second() -> None:
    slept, count = 0.0, 0
    for pause in poll_intervals():
        slept, count = slept + pause, count + 1
        if slept >= 20:
            break
    assert 20 <= count <= 30


def test_a_long_poll_keeps_nobody_waiting(submit: Submit, status: Status, store: TaskStore, clock: Clock) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    waiting = [threading.Thread(target=poll, args=(status,), kwargs={"wait": "20"}, daemon=True) for _ in range(8)]
    for thread in waiting:
        thread.start()
    began = time.monotonic()
    assert poll(status)["statusCode"] == 200
    assert time.monotonic() - began < 2
    stored = store.read("mine")
    assert stored is not None
    store.change(stored, moves.fail(Record.from_json(stored.body), now=clock(), fault=OutOfMemory("big")))
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
