"""``GET /results`` and ``/health``: the record as a caller sees it."""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler import health
from handler.errors import OutOfMemory
from handler.responses import HealthResponse, ResultPage, ResultResponse
from handler.status import Status
from handler.storage import TaskStore

from .support import CARD, Clock, PlainEngine, answer_of, http_event, sqs_event

if TYPE_CHECKING:
    from handler.generate import Generate
    from handler.settings import Settings
    from handler.submit import Submit


def get(status: Status, path: str, version: str = "1.0", **query: str) -> tuple[int, Any]:
    return answer_of(status.handle(http_event("GET", path, query=query or None, version=version), None))


def draw(generate: Generate, task_id: str, **request: object) -> None:
    answer = generate.handle(sqs_event(json.dumps({"prompt": "fox", "task_id": task_id, **request})), None)
    assert answer == {"batchItemFailures": []}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_finished_task(generate: Generate, status: Status, version: str) -> None:
    draw(generate, "mine", num_images=2, seed=40)
    code, result = get(status, "/results/mine", version)
    assert code == 200
    ResultResponse.model_validate_json(json.dumps(result))
    assert (result["status"], result["prompt"], result["error_message"]) == ("completed", "fox", None)
    assert [image["seed"] for image in result["images"]] == [40, 41]
    with urllib.request.urlopen(result["images"][1]["url"]) as reply:
        assert len(reply.read()) == result["images"][1]["bytes"]
    assert "tasks/mine" not in json.dumps({**result, "images": [{**one, "url": ""} for one in result["images"]]})


def test_a_waiting_task(submit: Submit, status: Status) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    code, result = get(status, "/results/mine")
    assert (code, result["status"], result["images"]) == (200, "pending", [])
    ResultResponse.model_validate_json(json.dumps(result))


@pytest.mark.parametrize("task_id", ["nobody", "..", "%2e%2e", "x" * 300, "a b"])
def test_no_such_task(status: Status, task_id: str) -> None:
    code, answer = get(status, f"/results/{task_id}")
    assert (code, answer["error"]["code"]) == (404, "NOT_FOUND")


def test_the_image_itself_when_asked_for(generate: Generate, status: Status) -> None:
    draw(generate, "mine")
    assert get(status, "/results/mine")[1]["image_base64"] is None
    result = get(status, "/results/mine", inline="base64")[1]
    assert len(base64.b64decode(result["image_base64"])) == result["images"][0]["bytes"]


def test_the_image_itself_by_setting(generate: Generate, settings: Settings, store: TaskStore) -> None:
    draw(generate, "mine")
    status = Status(replace(settings, inline_images=True), store)
    assert base64.b64decode(get(status, "/results/mine")[1]["image_base64"]).startswith(b"\x89PNG")


def test_only_base64_is_inline(status: Status) -> None:
    code, answer = get(status, "/results/mine", inline="hex")
    assert (code, answer["error"]["details"]) == (422, [{"field": "inline", "message": "must be base64"}])


def test_an_image_too_large_for_an_answer_is_left_to_its_url(
    generate: Generate, settings: Settings, store: TaskStore
) -> None:
    draw(generate, "mine")
    result = get(Status(settings, store, max_inline=10), "/results/mine", inline="base64")[1]
    assert result["image_base64"] is None
    assert result["images"][0]["url"]


def test_all_tasks_newest_first(generate: Generate, status: Status, clock: Clock) -> None:
    for number in range(3):
        clock.forward(1)
        generate.handle(
            sqs_event(json.dumps({"prompt": "fox", "task_id": f"t{number}"}), sent_ms=int(clock().timestamp() * 1000)),
            None,
        )
    code, page = get(status, "/results", limit="2")
    ResultPage.model_validate_json(json.dumps(page))
    assert code == 200
    assert [one["task_id"] for one in page["results"]] == ["t2", "t1"]
    code, page = get(status, "/results", limit="2", cursor=page["cursor"])
    assert ([one["task_id"] for one in page["results"]], page["cursor"]) == (["t0"], None)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1.5", "²", "9" * 5000, "0000000019999999", "\n1"])
def test_a_bad_limit(status: Status, limit: str) -> None:
    code, answer = get(status, "/results", limit=limit, cursor="../")
    assert code == 422
    assert {one["field"] for one in answer["error"]["details"]} == {"limit", "cursor"}


def test_health_before_any_worker(status: Status) -> None:
    code, answer = get(status, "/health")
    HealthResponse.model_validate_json(json.dumps(answer))
    assert (code, answer["status"], answer["model_status"]) == (200, "ok", "available")
    assert answer["model"]["defaults"]["num_inference_steps"] == 20  # the built-in model's own card
    assert "no worker" in answer["reason"]


def test_health_is_what_the_worker_wrote(generate: Generate, status: Status) -> None:
    draw(generate, "mine")
    answer = get(status, "/health")[1]
    assert answer == {
        "status": "ok",
        "model_status": "available",
        "model": CARD.model_dump(mode="json"),
        "reason": None,
    }


def test_health_is_read_at_most_every_half_minute(
    status: Status, settings: Settings, store: TaskStore, clock: Clock
) -> None:
    assert get(status, "/health")[1]["model_status"] == "available"
    store.write_health(health.report(settings, clock(), card=None, reason="broken"))
    clock.forward(29)
    assert get(status, "/health")[1]["model_status"] == "available"
    clock.forward(1)
    answer = get(status, "/health")[1]
    assert (answer["model_status"], answer["reason"]) == ("unavailable", "broken")
    HealthResponse.model_validate_json(json.dumps(answer))


def test_storage_that_fails(settings: Settings) -> None:
    nowhere = replace(settings, aws_endpoint_url="http://127.0.0.1:9")
    code, answer = get(Status(nowhere, TaskStore(nowhere)), "/results/a")
    assert (code, answer["error"]["code"]) == (503, "INTERNAL")


def test_a_failed_task_says_why(generate: Generate, status: Status, plain: PlainEngine) -> None:
    plain.fault = OutOfMemory("too large for the device")
    draw(generate, "mine")
    result = get(status, "/results/mine")[1]
    assert (result["status"], result["error_message"]) == ("failed", "too large for the device")
    assert result["error"] == {
        "code": "OUT_OF_MEMORY",
        "message": "too large for the device",
        "retryable": False,
        "details": [],
    }
    ResultResponse.model_validate_json(json.dumps(result))
