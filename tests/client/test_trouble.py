"""The client when things go wrong on the way: over real HTTP, with what may stand between put there."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from handler.client import Darkroom
from handler.client.patience import Clock, Retryable, parse_retry_after, with_retries
from handler.errors import (
    Conflict,
    Internal,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ServiceFault,
    SettingsError,
    StillRunning,
)

from ..service import AWAY, BROKEN, BUSY, CUT, CUT_AFTER, TORN, Trouble, api, in_turn, worker
from ..support import record_of

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

    from ..support import PlainEngine

    Deployment = tuple[Settings, TaskStore, TaskQueue]

QUOTA = b'{"error": {"code": "QUOTA_EXCEEDED", "message": "0 of 10 images are left today", "details": []}}'


@dataclass
class Time:
    """Passes only where somebody sleeps."""

    at: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


@pytest.fixture
def deployment(settings: Settings, store: TaskStore, queue: TaskQueue) -> Deployment:
    return settings, store, queue


def client(url: str, passing: Time, **more: Any) -> Darkroom:
    more = {"random": lambda: 0.5, "new_id": lambda: "mine", **more}
    return Darkroom(endpoint=url, clock=passing.clock, sleep=passing.sleep, **more)


@pytest.mark.parametrize("trouble", [BUSY, AWAY, BROKEN, CUT, CUT_AFTER, TORN], ids=lambda one: str(one.status))
def test_what_passes_is_repeated_under_one_key(deployment: Deployment, trouble: Trouble) -> None:
    """Also where the service has acted and only its answer was lost: there is one task and no other."""
    _, store, _ = deployment
    passing = Time()
    with api(*deployment, in_turn(trouble, trouble)) as running, client(running.url, passing) as darkroom:
        task = darkroom.submit("fox")
        sent = running.flaky.calls("POST")
        assert task.task_id == "mine"
        assert [one["HTTP_IDEMPOTENCY_KEY"] for one in sent] == ["mine"] * 3
        assert [one.task_id for one in darkroom.results()] == ["mine"]
    after = float(dict(trouble.headers).get("Retry-After", 0))
    assert passing.slept == [after + 0.125, after + 0.25]  # half of 0.25 and 0.5: full jitter, after Retry-After
    assert record_of(store, "mine").status == "pending"


def test_patience_has_an_end_and_the_fault_names_the_task(deployment: Deployment) -> None:
    passing = Time()
    with api(*deployment, lambda _: BROKEN) as running, client(running.url, passing, patience=10) as darkroom:
        with pytest.raises(ServiceFault, match=r"something broke; .* it is task mine"):
            darkroom.submit("fox")
        assert passing.at <= 10
        assert len(running.flaky.seen) > 4
        with pytest.raises(Internal, match="something broke"):
            darkroom.result("mine")


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(deployment: Deployment) -> None:
    passing = Time()
    hours = Trouble(429, (("Retry-After", "36000"),), QUOTA)
    with api(*deployment, lambda _: hours) as running, client(running.url, passing) as darkroom:
        with pytest.raises(QuotaExceeded, match="0 of 10 images") as caught:
            darkroom.submit("fox")
        assert (passing.slept, caught.value.retry_after) == ([], 36000)
    never = Trouble(429, (), QUOTA)
    with api(*deployment, lambda _: never) as running, client(running.url, passing) as darkroom:
        with pytest.raises(QuotaExceeded):
            darkroom.submit("fox")
        assert len(running.flaky.seen) == 1


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (Trouble(403, (), b'{"message": "Forbidden"}'), SettingsError, "API key .403.: .*Forbidden"),
        (Trouble(404, (), b"<h1>nothing here</h1>"), NotFound, "answers 404: <h1>nothing here"),
        (Trouble(413, (), b""), InvalidRequest, "answers 413: no words"),
        (Trouble(301, (("Location", "http://127.0.0.1:1/"),), b""), SettingsError, "answers 301"),
        (Trouble(200, (), b'{"hello": "world"}'), ServiceFault, "none of Darkroom's"),
    ],
    ids=lambda one: str(getattr(one, "status", "")),
)
def test_what_does_not_pass_is_raised_at_once(
    deployment: Deployment, trouble: Trouble, kind: type[Exception], words: str
) -> None:
    passing = Time()
    with api(*deployment, lambda _: trouble) as running, client(running.url, passing) as darkroom:
        with pytest.raises(kind, match=words):
            darkroom.submit("fox")
        assert len(running.flaky.seen) == 1
    assert passing.slept == []


def test_a_key_is_not_sent_with_a_redirect(deployment: Deployment) -> None:
    with api(*deployment) as elsewhere:
        away = Trouble(302, (("Location", elsewhere.url + "/results/mine"),))
        with api(*deployment, lambda _: away) as running, pytest.raises(SettingsError):
            Darkroom(endpoint=running.url, api_key="secret").result("mine")
        assert elsewhere.flaky.seen == []


def test_where_nobody_listens(deployment: Deployment) -> None:
    with api(*deployment) as running:
        gone = running.url
    passing = Time()
    with pytest.raises(ServiceFault, match=f"{gone} does not answer"):
        client(gone, passing, patience=3).result("mine")
    assert 0 < passing.at <= 3


def test_what_a_newer_service_adds_is_passed_over(deployment: Deployment) -> None:
    urls = dict.fromkeys(("status_url", "result_url", "cancel_url"), "")
    told = json.dumps({"task_id": "mine", "status": "pending", "message": "", **urls, "new": 1}).encode()
    with api(*deployment, lambda _: Trouble(202, (), told)) as running:
        assert Darkroom(endpoint=running.url).submit("fox").task_id == "mine"


def test_a_quiet_wait_is_held_by_the_service(deployment: Deployment, plain: PlainEngine) -> None:
    """One request for a short task, of 20 seconds at most."""
    with api(*deployment) as running, Darkroom(endpoint=running.url) as darkroom:
        darkroom.submit("fox", task_id="mine")
        with worker(*deployment, plain):
            darkroom.wait("mine", timeout=30)
        (asked,) = running.flaky.calls("GET")
        assert asked["QUERY_STRING"] == "wait=20"


def test_a_watched_wait_asks_for_changes_only(deployment: Deployment) -> None:
    """A first look, then one for what has changed since: a 304 without a body at the end."""
    with api(*deployment) as running, Darkroom(endpoint=running.url) as darkroom:
        darkroom.submit("fox", task_id="mine")
        told: list[str] = []
        with pytest.raises(StillRunning):
            darkroom.wait("mine", timeout=1.9, on_change=lambda one: told.append(one.status))
        first, then, *rest = running.flaky.calls("GET")
        assert (first["QUERY_STRING"], "HTTP_IF_NONE_MATCH" in first) == ("", False)
        assert (then["QUERY_STRING"], then["HTTP_IF_NONE_MATCH"].startswith('W/"')) == ("wait=1", True)
        assert len(rest) <= 2
        assert told == ["pending"]


def test_a_service_that_holds_nothing_is_not_hammered(deployment: Deployment) -> None:
    """As when something on the way drops ``?wait``: then Retry-After counts, and a 304 costs no body."""
    passing = Time()

    def forgetful(environ: WSGIEnvironment) -> None:
        environ["QUERY_STRING"] = ""

    with api(*deployment, forgetful) as running, client(running.url, passing) as darkroom:
        darkroom.submit("fox")
        with pytest.raises(StillRunning):
            darkroom.wait("mine", timeout=60)
        looks = running.flaky.calls("GET")
    assert passing.at == pytest.approx(60)
    assert 10 <= len(looks) <= 40
    assert passing.slept[0] == 0  # what has just changed is looked at again at once
    assert all(pause >= 1.9 for pause in passing.slept[1:-1])  # the service's Retry-After is 2
    assert all("HTTP_IF_NONE_MATCH" in look for look in looks[2:])


def test_an_outage_in_the_middle_of_a_wait(deployment: Deployment, plain: PlainEngine) -> None:
    passing = Time()
    with api(*deployment, in_turn(None, AWAY, CUT, BUSY)) as running, client(running.url, passing) as darkroom:
        darkroom.submit("fox")
        with worker(*deployment, plain):
            assert darkroom.wait("mine").status == "completed"


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_among_random_troubles(deployment: Deployment, plain: PlainEngine) -> None:
    """Sixty tasks, eight at a time, a third of all requests in trouble: each is drawn once, and all are handed out."""
    _, store, _ = deployment
    dice, lock = random.Random(7), threading.Lock()

    def choose(environ: WSGIEnvironment) -> Trouble | None:
        before = [Trouble(429, (("Retry-After", "0"),)), BROKEN, CUT]
        troubles = [*before, CUT_AFTER, TORN] if environ["REQUEST_METHOD"] == "POST" else before
        with lock:
            return dice.choice(troubles) if dice.random() < 0.33 else None

    def sleep(seconds: float) -> None:
        time.sleep(seconds * 0.05)

    with api(*deployment, choose) as running, worker(*deployment, plain):
        darkroom = Darkroom(endpoint=running.url, sleep=sleep, patience=120)
        with darkroom.map((f"fox {number}" for number in range(60)), in_flight=8, timeout=120) as batch:
            drawn = list(batch)
        assert [one.fault for one in drawn] == [None] * 60
        assert sorted(one.index for one in drawn) == list(range(60))
        assert len({one.task_id for one in drawn}) == 60
        assert len(list(darkroom.results(None))) == 60
    assert sorted(plain.drawn) == sorted(f"fox {number}" for number in range(60))
    assert all(record_of(store, one.task_id).status == "completed" for one in drawn)


def test_a_conflict_and_a_bad_request_are_not_repeated(deployment: Deployment) -> None:
    passing = Time()
    with api(*deployment) as running, client(running.url, passing) as darkroom:
        darkroom.submit("fox")
        with pytest.raises(Conflict):
            darkroom.submit("owl")
        with pytest.raises(InvalidRequest):
            darkroom.submit(" ")
        assert len(running.flaky.seen) == 3
    assert passing.slept == []


def test_pauses_grow_to_a_bound_and_lie_anywhere_below_it() -> None:
    passing = Time()
    dice = random.Random(1)

    def attempt(left: float) -> None:
        assert left > 0
        raise Retryable(ServiceFault("away"))

    with pytest.raises(ServiceFault):
        with_retries(attempt, 100, Clock(passing.clock, passing.sleep, dice.random))
    for tries, slept in enumerate(passing.slept):
        assert 0 <= slept <= min(8.0, 0.25 * 2**tries)
    assert passing.slept[0] != passing.slept[1] * 2


def test_retry_after_in_both_forms() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_retry_after("17", now) == 17
    assert parse_retry_after(format_datetime(now.replace(minute=1), usegmt=True), now) == 60
    assert parse_retry_after(format_datetime(now.replace(hour=11), usegmt=True), now) == 0
    assert [parse_retry_after(text, now) for text in (None, "", "soon", "-1", "Sat, 31 Jan 2026 12:00:00")] == [
        None
    ] * 5
