"""Health is the fleet's: what the doors make of the workers' reports, by S3's clock, of any version."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from moto.s3.models import s3_backends

from handler.api.results import Status
from handler.api.submission import Submit
from handler.clock import utc_now
from handler.contract.health import report
from handler.contract.responses import HealthResponse, ModelsResponse
from handler.errors import ModelUnavailable, ServiceFault
from handler.work.lazy_engine import LazyEngine

from ..support import CARD, Clock, PlainEngine, answer_of, http_event

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine import Engine
    from handler.settings import Settings

OLD = Path(__file__).parent.parent / "versions" / "0.1.0"
JSON = CARD.model_dump(mode="json")
READS = ("/health", "/models", "/openapi.json", "/docs")
AVAILABLE, UNAVAILABLE, BEFORE = "health/available.json", "health/unavailable.json", "health/model.json"


@pytest.fixture
def clock() -> Clock:
    """The doors': near to S3's."""
    return Clock(utc_now())


def broken(_: Settings) -> Engine:
    raise OSError("[Errno 2] No such file or directory: '/opt/secret/weights'")


def fails(settings: Settings, store: TaskStore, clock: Clock) -> None:
    with pytest.raises(ModelUnavailable):
        LazyEngine(settings, store, broken, clock).engine()


def loads(settings: Settings, store: TaskStore, clock: Clock) -> LazyEngine:
    lazy = LazyEngine(settings, store, lambda _: PlainEngine(), clock)
    lazy.engine()
    return lazy


def written(store: TaskStore, key: str, body: bytes) -> None:
    obstore.put(store._s3, key, body)


def aged(settings: Settings, key: str, seconds: float) -> None:
    """Has S3 say that it wrote the object so long ago."""
    buckets = s3_backends["123456789012"]["aws"].buckets
    if settings.bucket not in buckets:
        pytest.skip("only moto lets a test turn its clock back")
    buckets[settings.bucket].keys[key].last_modified -= timedelta(seconds=seconds)


def asked(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> tuple[int, dict[str, Any]]:
    """What the doors say of themselves, just started: the code of ``POST /generate``, and ``GET /health``."""
    event = http_event("POST", "/generate", body='{"prompt": "fox"}')
    code = answer_of(Submit(settings, store, queue, now=clock).handle(event, None))[0]
    told = answer_of(Status(settings, store, now=clock).handle(http_event("GET", "/health"), None))[1]
    HealthResponse.model_validate_json(json.dumps(told))
    return code, told


def test_one_broken_worker_among_healthy_ones_shuts_no_door(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    loads(settings, store, clock)
    fails(settings, store, clock)
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model_status"], told["model"], told["reason"]) == (202, "available", JSON, None)


@pytest.mark.parametrize(
    ("loaded", "failed", "code"),
    [
        (None, 0, 503),
        (None, 290, 503),
        (None, 310, 202),
        (170, 0, 202),  # seconds ago
        (190, 0, 503),
        (460, 290, 202),
        (480, 290, 503),
        (0, 100, 202),  # somebody has loaded it since
        (10, 290, 202),
        (1000, 310, 202),
    ],
)
def test_a_failure_shuts_the_door_while_nobody_reports_success(
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    clock: Clock,
    loaded: float | None,
    failed: float,
    code: int,
) -> None:
    fails(settings, store, clock)
    aged(settings, UNAVAILABLE, failed)
    if loaded is not None:
        loads(settings, store, clock)
        aged(settings, AVAILABLE, loaded)
    found, told = asked(settings, store, queue, clock)
    assert (found, told["model_status"]) == (code, "available" if code == 202 else "unavailable")
    doubted = failed == 310 or code == 503
    assert (told["reason"] is not None) is doubted
    if loaded is not None and code == 202:
        assert told["model"] == JSON  # doubted or not: what the last worker that loaded it said


@pytest.mark.parametrize("wrong", [-86400, 86400])
def test_a_workers_own_clock_is_not_asked(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, wrong: float
) -> None:
    loads(settings, store, Clock(clock() + timedelta(seconds=wrong)))
    fails(settings, store, Clock(clock() - timedelta(seconds=wrong)))
    assert asked(settings, store, queue, clock)[0] == 202
    aged(settings, AVAILABLE, 200)
    assert asked(settings, store, queue, clock)[0] == 503
    aged(settings, UNAVAILABLE, 301)
    assert asked(settings, store, queue, clock)[0] == 202


@pytest.mark.parametrize("status", ["available", "unavailable"])
def test_another_models_reports_are_passed_over(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, status: str
) -> None:
    of_another = {"model_id": "some/other", "model_status": status, "model": {**JSON, "pipeline": "Other"}}
    store.write_health({**of_another, "reason": None})
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model"]["pipeline"]) == (202, "StableDiffusionPipeline")
    assert "no worker" in told["reason"]
    other = "unavailable" if status == "available" else "available"
    store.write_health({**of_another, "model_id": settings.model_name, "model_status": other, "reason": "ours"})
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model_status"]) == (202 if other == "available" else 503, other)


def test_doors_beside_workers_of_0_1_0(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> None:
    written(store, BEFORE, (OLD / "health-available.json").read_bytes())
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model"]["pipeline"], told["reason"]) == (202, "TestPipeline", None)
    assert (told["measured"], told["host"]) == (None, None)
    written(store, BEFORE, (OLD / "health-unavailable.json").read_bytes())
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model_status"]) == (503, "unavailable")
    assert "no such file" not in told["reason"]  # what a library said is not for callers
    assert "cannot load the model" in told["reason"]
    loads(settings, store, clock)
    assert asked(settings, store, queue, clock)[1]["model_status"] == "available"


def test_a_newer_versions_report_breaks_no_door(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    """After a roll back: fields that this version does not know, wherever there are any."""
    card = {
        **JSON,
        "tenants": 1,
        "parameters": [*JSON["parameters"], "style"],
        "defaults": {**JSON["defaults"], "style": "plain"},
        "limits": {**JSON["limits"], "style": 9},
    }
    measured = {"step": 0.5, "other": 2.0, "pixels": 4096, "watts": 300}
    told = report(settings, clock(), card=card, reason=None, measured=measured)
    store.write_health({**told, "weather": {"rain": True}})
    submit, status = (
        Submit(settings, store, queue, now=clock, new_id=lambda: "mine"),
        Status(settings, store, now=clock),
    )
    for query in ({"dry_run": "1"}, None):
        event = http_event("POST", "/generate", body='{"prompt": "fox"}', query=query)
        code, answer = answer_of(submit.handle(event, None))
        assert code in {200, 202}, answer
    for path in READS:
        assert status.handle(http_event("GET", path), None)["statusCode"] == 200, path
    health = answer_of(status.handle(http_event("GET", "/health"), None))[1]
    known = CARD.model_copy(update={"parameters": card["parameters"]})
    assert HealthResponse.model_validate_json(json.dumps(health)).model == known
    assert "weather" not in health
    models = answer_of(status.handle(http_event("GET", "/models"), None))[1]
    assert ModelsResponse.model_validate_json(json.dumps(models)).models[0].pipeline == "TestPipeline"
    refused = answer_of(submit.handle(http_event("POST", "/generate", body='{"prompt": "fox", "style": 1}'), None))
    assert refused[0] == 422  # strict at the door all the same


@pytest.mark.parametrize(
    "model",
    [
        "a card",
        ["a card"],
        {"id": 1},
        {**JSON, "parameters": None},
        {**JSON, "size_multiple": "eight"},
        {**JSON, "limits": [1]},
    ],
)
def test_a_card_that_cannot_be_read_is_unknown(
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    clock: Clock,
    model: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.write_health({"model_id": settings.model_name, "model_status": "available", "model": model, "measured": []})
    event = http_event("POST", "/generate", body='{"prompt": "fox"}')
    assert answer_of(Submit(settings, store, queue, now=clock).handle(event, None))[0] == 202
    status = Status(settings, store, now=clock)
    for path in READS:
        assert status.handle(http_event("GET", path), None)["statusCode"] == 200, path
    assert "the model's card cannot be read" in caplog.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff"])
@pytest.mark.parametrize("key", [AVAILABLE, UNAVAILABLE, BEFORE])
def test_a_report_that_cannot_be_read_is_none(
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    clock: Clock,
    key: str,
    body: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    written(store, key, body)
    code, told = asked(settings, store, queue, clock)
    assert (code, told["model_status"]) == (202, "available")
    assert "no worker" in told["reason"]
    assert "cannot be read" in caplog.text


def test_a_worker_that_draws_says_so_once_a_minute(settings: Settings, store: TaskStore, clock: Clock) -> None:
    """By a clock of its own, for a wall clock may be set."""
    time = [1000.0]
    lazy = LazyEngine(settings, store, lambda _: PlainEngine(), clock, monotonic=lambda: time[0])
    lazy.renew()
    assert store.read_health() is None  # nothing to renew
    lazy.engine()
    said = []
    for _ in range(6):
        clock.forward(1)
        time[0] += 25
        lazy.engine()
        health = store.read_health() or {}
        assert (health["model_status"], health["model"]) == ("available", JSON)
        said.append(health["at"])
    assert [said.index(one) for one in said] == [0, 0, 2, 2, 2, 5]  # after 75 and 150 seconds


def test_a_renewal_opens_the_door_again(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> None:
    time = [0.0]
    lazy = LazyEngine(settings, store, lambda _: PlainEngine(), clock, monotonic=lambda: time[0])
    lazy.engine()
    aged(settings, AVAILABLE, 200)
    fails(settings, store, clock)
    assert asked(settings, store, queue, clock)[0] == 503
    time[0] += 61
    lazy.engine()
    assert asked(settings, store, queue, clock)[0] == 202


@pytest.mark.parametrize("fault", [ServiceFault("S3 failed to write"), RuntimeError("whatever")])
def test_a_report_that_cannot_be_written_stops_no_task(
    settings: Settings, store: TaskStore, clock: Clock, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    def refuse(health: object) -> None:
        tries.append(health)
        raise fault

    store.write_health = refuse  # type: ignore[method-assign]
    time = [0.0]
    plain = PlainEngine()
    lazy = LazyEngine(settings, store, lambda _: plain, clock, monotonic=lambda: time[0])
    assert lazy.engine() is plain
    time[0] = 61
    assert lazy.engine() is plain
    assert lazy.engine() is plain
    assert len(tries) == 2  # S3 in trouble is not asked for every message
    assert "the model's health was not written" in caplog.text


def test_why_it_cannot_be_loaded_is_in_the_log_alone(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fails(settings, store, clock)
    log = vars(caplog.records[0])
    assert "/opt/secret/weights" in log["fault"]
    assert "Traceback" in caplog.text
    code, told = asked(settings, store, queue, clock)
    assert (code, told["reason"]) == (
        503,
        f"cannot load the model; the worker's log has the cause under id {log['id']}",
    )
    event = http_event("POST", "/generate", body='{"prompt": "fox"}')
    refused = Submit(settings, store, queue, now=clock).handle(event, None)
    assert log["id"] in refused["body"]
    assert "secret" not in refused["body"] + json.dumps(store.read_health())
