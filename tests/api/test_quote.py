"""What ``?dry_run=1`` says can be worked out by hand, and it does nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.pricing import overhead, prices
from handler.api.submission import Submit
from handler.contract import health
from handler.contract.health import worker_host
from handler.contract.responses import QuoteResponse

from ..support import CARD, Clock, answer_of, http_event
from ..watching import watched

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine.running import PipelineEngine
    from handler.settings import Settings

SPEED = {"step": 0.5, "other": 2.0, "pixels": 64 * 64}


def quoted(submit: Submit, body: dict[str, Any], version: str = "1.0", path: str = "/generate") -> tuple[int, Any]:
    event = http_event("POST", path, body=json.dumps(body) if body else None, query={"dry_run": "1"}, version=version)
    return answer_of(submit.handle(event, None))


def known(settings: Settings, store: TaskStore, clock: Clock, **settings_of_the_worker: Any) -> None:
    worker = replace(settings, **settings_of_the_worker)
    card = CARD.model_dump(mode="json")
    store.write_health(health.report(worker, clock(), card=card, reason=None, measured=SPEED))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_seconds_and_dollars_of_lambda(
    submit: Submit, settings: Settings, store: TaskStore, clock: Clock, version: str
) -> None:
    known(settings, store, clock, aws_lambda_function_memory_size=2048)
    code, told = quoted(submit, {"prompt": "fox", "num_images": 2, "width": 128, "task_id": "mine"}, version)
    QuoteResponse.model_validate_json(json.dumps(told))
    assert code == 200
    assert told["request"]["num_inference_steps"] == 4  # the card's
    assert (told["request"]["task_id"], told["request"]["seed"]) == ("mine", None)
    assert (told["model"], told["images"]) == ("built-in", 2)
    assert told["seconds"] == 2 * 2 * (4 * 0.5 + 2.0)  # images, twice the pixels, steps and the rest
    table = prices()
    drawing = 16 * 2 * table["lambda_gb_second"]["x86_64"] + table["lambda_request"]
    assert told["dollars"] == pytest.approx(drawing + overhead(16, table), abs=1e-8)
    assert "Lambda x86_64, 2048 MB" in told["basis"]
    assert table["date"] in told["basis"]


@pytest.mark.parametrize(
    ("host", "hour", "said"),
    [
        ("g5.xlarge", 1.006 * 1.078, "an hour that is used in full"),
        ("p9.huge", None, "no price"),
        ("", None, "WORKER_HOST"),
    ],
)
def test_dollars_of_other_hosts(
    submit: Submit, settings: Settings, store: TaskStore, clock: Clock, host: str, hour: float | None, said: str
) -> None:
    known(settings, store, clock, worker_host=host)
    told = quoted(submit, {"prompt": "fox"})[1]
    assert told["seconds"] == 4.0
    expected = None if hour is None else pytest.approx(4 * hour / 3600 + overhead(4, prices()), abs=1e-8)
    assert told["dollars"] == expected
    assert said in told["basis"]


def test_nothing_known(submit: Submit, settings: Settings, store: TaskStore, clock: Clock) -> None:
    told = quoted(submit, {"prompt": "fox"})[1]
    assert (told["seconds"], told["dollars"]) == (None, None)
    assert told["basis"] == "no worker has measured this model yet"
    assert told["request"]["num_inference_steps"] == 20  # of the card that lies beside the weights
    QuoteResponse.model_validate_json(json.dumps(told))


def test_nothing_is_written_or_queued(settings: Settings, queue: TaskQueue, endpoint: str) -> None:
    from handler.aws.store import TaskStore

    with watched(endpoint) as seen:
        submit = Submit(settings, TaskStore(replace(settings, aws_endpoint_url=seen.url)), queue)
        assert quoted(submit, {"prompt": "fox", "task_id": "mine"})[0] == 200
        assert {line.split()[0] for line in seen.list} == {"GET"}
        assert all("/health/" in line for line in seen.list)
    assert queue.receive(wait=0) == []


def test_what_would_be_refused_is(submit: Submit) -> None:
    code, told = quoted(submit, {"prompt": "fox", "num_images": 9})
    assert (code, told["error"]["details"][0]["field"]) == (422, "num_images")
    event = http_event("POST", "/generate", body='{"prompt": "fox"}', query={"dry_run": "yes"})
    code, told = answer_of(submit.handle(event, None))
    assert (code, told["error"]["details"][0]["field"]) == (422, "dry_run")


def test_a_retry_is_quoted_too(submit: Submit, store: TaskStore) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine", "num_images": 3}')
    submit.cancel("mine")
    code, told = quoted(submit, {}, path="/generate/mine/retry")
    assert (code, told["images"], told["request"]["seed"]) == (200, 3, 1234)
    assert store.read("fresh-id") is None


def test_what_a_worker_runs_on(settings: Settings) -> None:
    assert worker_host(settings) is None
    assert worker_host(replace(settings, worker_host="g6.xlarge")) == "g6.xlarge"
    assert worker_host(replace(settings, aws_lambda_function_memory_size=512)) == "Lambda x86_64, 512 MB"


def test_the_engine_measures_itself(engine: PipelineEngine) -> None:
    assert engine.measured is not None
    assert 0 < engine.measured.step < 60
    assert engine.measured.other > 0
    assert engine.measured.pixels == 64 * 64
