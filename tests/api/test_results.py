"""``GET /results`` and ``/health``: the record as a caller sees it."""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import pytest

from handler.api import results
from handler.api.results import Status
from handler.aws import store as storage
from handler.aws.store import TaskStore
from handler.contract import health
from handler.contract.request import GenerationRequest
from handler.contract.responses import HealthResponse, ModelsResponse, ResultPage, ResultResponse
from handler.errors import OutOfMemory
from handler.settings import Settings
from handler.task import moves

from ..memory import Bucket, MemoryStore
from ..support import CARD, Clock, PlainEngine, answer_of, http_event, record_of, sqs_event
from ..watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.api.submission import Submit
    from handler.contract.record import Record
    from handler.work.serving import Generate


def get(reader: Status, path: str, version: str = "1.0", /, **query: str) -> tuple[int, Any]:
    return answer_of(reader.handle(http_event("GET", path, query=query or None, version=version), None))


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


def test_a_poll_of_a_finished_task_is_one_request_and_no_body_where_nothing_has_changed(
    generate: Generate, environ: dict[str, str]
) -> None:
    draw(generate, "mine", num_images=2)
    with watched(environ["AWS_ENDPOINT_URL"]) as seen:
        watching = Settings.load({**environ, "AWS_ENDPOINT_URL": seen.url})
        reader = Status(watching, TaskStore(watching))
        first = reader.handle(http_event("GET", "/results/mine"), None)
        assert first["statusCode"] == 200
        one = [f"GET /{watching.bucket}/tasks/mine/status.json"]
        assert seen.list == one
        headers = {name.lower(): value for name, value in first.get("headers", {}).items()}
        headers |= {name.lower(): values[0] for name, values in first.get("multiValueHeaders", {}).items()}
        again = http_event("GET", "/results/mine", headers={"If-None-Match": headers["etag"]})
        second = reader.handle(again, None)
        assert (second["statusCode"], second.get("body") or "") == (304, "")
        assert seen.list == one * 2


def test_a_waiting_task(submit: Submit, status: Status) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    code, result = get(status, "/results/mine")
    assert (code, result["status"], result["images"]) == (200, "pending", [])
    ResultResponse.model_validate_json(json.dumps(result))


@pytest.mark.parametrize("task_id", ["nobody", "..", "%2e%2e", "x" * 300, "a b"])
def test_no_such_task(status: Status, task_id: str) -> None:
    code, answer = get(status, f"/results/{task_id}")
    assert (code, answer["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("asked", [{}, {"width": 128}, {"num_inference_steps": 2, "guidance_scale": 1.0}])
def test_a_waiting_task_shows_what_it_will_be_drawn_with(
    asked: dict[str, Any], submit: Submit, settings: Settings, store: TaskStore
) -> None:
    """As far as the model's card is known, be it baked beside the weights or told by a worker."""
    settings = replace(settings, model_id="some/model")
    request = GenerationRequest(prompt="fox", seed=3, **asked)
    submit.submit(json.dumps({"prompt": "fox", "seed": 3, "task_id": "mine", **asked}))
    before = get(Status(settings, store), "/results/mine")[1]["request"]
    store.write_health(health.report(settings, Clock()(), card=CARD.model_dump(mode="json"), reason=None))
    after = get(Status(settings, store), "/results/mine")[1]["request"]
    known = CARD.resolve(request).model_dump(mode="json", exclude={"task_id"})
    assert {name: after[name] for name in known} == known
    assert before["seed"] == 3
    assert (before["num_inference_steps"], before["width"]) == (request.num_inference_steps, request.width)


def test_the_image_itself_when_asked_for(generate: Generate, status: Status) -> None:
    draw(generate, "mine")
    assert get(status, "/results/mine")[1]["image_base64"] is None
    result = get(status, "/results/mine", inline="base64")[1]
    assert len(base64.b64decode(result["image_base64"])) == result["images"][0]["bytes"]


def test_the_image_itself_by_setting(generate: Generate, settings: Settings, store: TaskStore) -> None:
    draw(generate, "mine")
    status = Status(replace(settings, inline_images=True), store)
    assert base64.b64decode(get(status, "/results/mine")[1]["image_base64"]).startswith(b"\x89PNG")


def test_every_image_itself_as_far_as_they_fit(generate: Generate, settings: Settings, store: TaskStore) -> None:
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine", "num_images": 3}'), None)
    size = max(image.bytes for image in record_of(store, "mine").images)

    def inlined(places: int) -> tuple[bool, list[bool]]:
        status = Status(settings, store, max_inline=places * size)
        result = get(status, "/results/mine", inline="base64")[1]
        for image in result["images"]:
            if image["base64"]:
                assert sha256(base64.b64decode(image["base64"])).hexdigest() == image["sha256"]
        return bool(result["image_base64"]), [bool(image["base64"]) for image in result["images"]]

    assert inlined(0) == (False, [False, False, False])
    assert inlined(1) == (True, [False, False, False])
    assert inlined(2) == (True, [True, False, False])
    assert inlined(4) == (True, [True, True, True])


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


@pytest.mark.parametrize("by_setting", [True, False])
def test_an_image_that_is_gone_hides_no_task(
    generate: Generate, settings: Settings, store: TaskStore, by_setting: bool
) -> None:
    draw(generate, "mine", num_images=2)
    store.delete_image(record_of(store, "mine").images[0].key)
    reader = Status(replace(settings, inline_images=by_setting), store)
    code, result = get(reader, "/results/mine", **({} if by_setting else {"inline": "base64"}))
    assert (code, result["status"], result["image_base64"]) == (200, "completed", None)
    assert [bool(image["base64"]) for image in result["images"]] == [False, True]
    ResultResponse.model_validate_json(json.dumps(result))


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


def fill(store: TaskStore, clock: Clock, count: int) -> None:
    """Tasks t0, t1 …, each a second later; every tenth is cancelled, every seventh tagged."""
    for number in range(count):
        clock.forward(1)
        tags = ["seventh", "a b,c"] if number % 7 == 0 else []
        request = GenerationRequest(prompt="fox", tags=tags)
        record = moves.create(f"t{number}", request, 1, clock(), timedelta(days=1))
        store.announce(record)
        store.create(moves.cancel(record, now=clock()) if number % 10 == 0 else record)


def walk(reader: Status, /, **query: str) -> tuple[list[str], list[int]]:
    """The names on all pages, and how many each page held."""
    names, sizes = [], []
    cursor: dict[str, str] = {}
    while True:
        code, page = get(reader, "/results", **query, **cursor)
        assert code == 200
        ResultPage.model_validate_json(json.dumps(page))
        names += [one["task_id"] for one in page["results"]]
        sizes.append(len(page["results"]))
        if page["cursor"] is None:
            return names, sizes
        cursor = {"cursor": page["cursor"]}


@pytest.mark.parametrize("limit", ["1", "3", "100"])
@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, lambda n: True),
        ({"status": "cancelled"}, lambda n: n % 10 == 0),
        ({"status": "pending"}, lambda n: n % 10 != 0),
        ({"tag": "a b,c"}, lambda n: n % 7 == 0),
        ({"status": "cancelled", "tag": "seventh"}, lambda n: n % 70 == 0),
        ({"tag": "nobody's"}, lambda n: False),
    ],
)
def test_filters(
    status: Status, store: TaskStore, clock: Clock, query: dict[str, str], wanted: Callable[[int], bool], limit: str
) -> None:
    fill(store, clock, 23)
    names, sizes = walk(status, **query, limit=limit)
    assert names == [f"t{number}" for number in reversed(range(23)) if wanted(number)]
    assert all(size == int(limit) for size in sizes[:-1])


def test_a_rare_tag_is_looked_for_page_by_page(
    status: Status, store: TaskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page looks at no more than so many records; the cursor goes on from there."""
    monkeypatch.setattr(storage, "MOST_SCANNED", 10)
    monkeypatch.setattr(storage, "READ_AT_ONCE", 4)
    fill(store, clock, 35)
    assert walk(status, tag="seventh", status="cancelled", limit="5") == (["t0"], [0, 0, 0, 1])
    assert walk(status, tag="seventh", limit="1")[0] == ["t28", "t21", "t14", "t7", "t0"]
    assert walk(status, status="failed", limit="100") == ([], [0, 0, 0, 0])


def test_bad_filters(status: Status) -> None:
    code, answer = get(status, "/results", status="done", tag="x" * 65)
    assert code == 422
    assert {one["field"] for one in answer["error"]["details"]} == {"status", "tag"}


@dataclass(frozen=True)
class Large:
    """A record as full as can be: prompts of 2,000 ``letter``, 8 images, 50 attempts."""

    task_id: str
    created_at: datetime
    letter: str

    def to_json(self) -> bytes:
        text = self.letter * 2000
        request = GenerationRequest(prompt="fox", num_images=8)
        record = json.loads(moves.create(self.task_id, request, 1, self.created_at, timedelta(days=1)).to_json())
        record["request"] |= {"prompt": text, "negative_prompt": text, "tags": [self.letter * 64] * 16}
        image = {"seed": 1, "width": 64, "height": 64, "content_type": "image/png", "bytes": 9, "sha256": "0" * 64}
        record["images"] = [{**image, "key": f"tasks/{self.task_id}/50/{index}.png"} for index in range(8)]
        when = self.created_at.isoformat()
        attempt = {"owner": "worker-1", "started_at": when, "ended_at": when, "outcome": "released", "error": None}
        record["attempts"] = [{"number": number + 1, **attempt} for number in range(50)]
        return json.dumps(record).encode()


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["\U0001f98a", '"', "\x01", "\ud800", "x"], ids=ascii)
def test_pages_fit_into_an_answer_whatever_is_in_them(
    settings: Settings, store: TaskStore, clock: Clock, letter: str
) -> None:
    """Lambda answers with 6 MB at most, as its runtime client writes them: quoted, and emoji as 12 bytes."""
    memory: Any = MemoryStore(Bucket(clock))
    memory.presign, memory.presign_any = store.presign, store.presign_any  # URLs of full length
    status = Status(settings, memory, now=clock)
    names = [f"t{number:03d}" for number in range(100)]
    for name in names:
        large = Large(name, clock(), letter)
        memory.announce(large)
        memory.create(large)
        clock.forward(1)
    found: list[str] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        answer = status.handle(http_event("GET", "/results", query={"limit": "100", **cursor}), None)
        assert len(answer["body"].encode()) < 4_000_000
        assert len(json.dumps(answer)) < 4_000_000
        page = json.loads(answer["body"])
        assert page["results"]
        assert {one["prompt"] for one in page["results"]} == {letter * 2000}
        found += [one["task_id"] for one in page["results"]]
        pages += 1
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert found == names[::-1]  # each once
    assert pages <= 4


def test_no_page_is_empty_because_a_result_is_large(
    status: Status, store: TaskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MAX_PAGE_BYTES", 1)
    for name in ("a", "b"):
        large = cast("Record", Large(name, clock(), "x"))
        store.announce(large)
        store.create(large)
        clock.forward(1)
    first = get(status, "/results")[1]
    second = get(status, "/results", cursor=first["cursor"])[1]
    assert [one["task_id"] for page in (first, second) for one in page["results"]] == ["b", "a"]
    assert second["cursor"] is None


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
        "measured": None,
        "host": None,
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


def test_models_before_any_worker(status: Status) -> None:
    code, answer = get(status, "/models")
    ModelsResponse.model_validate_json(json.dumps(answer))
    (model,) = answer["models"]
    assert (code, model["id"], model["status"]) == (200, "built-in", "unknown")
    assert "no worker" in model["reason"]
    fields = {one["name"]: one for one in model["parameters"]}
    assert fields["prompt"]["required"]
    assert fields["prompt"]["max_length"] == 2000
    assert {name: fields["width"][name] for name in ("type", "default", "least", "most", "multiple_of")} == {
        "type": "integer",
        "default": 64,
        "least": 32,
        "most": 128,
        "multiple_of": 8,
    }
    assert (fields["num_inference_steps"]["default"], fields["num_inference_steps"]["most"]) == (20, 200)
    assert fields["output_format"]["one_of"] == ["png", "jpeg", "webp"]
    assert "task_id" not in fields


def test_models_as_the_worker_found_them(status: Status, settings: Settings, store: TaskStore, clock: Clock) -> None:
    card = CARD.model_copy(update={"parameters": ["seed", "num_inference_steps"]})
    store.write_health(health.report(settings, clock(), card=card.model_dump(mode="json"), reason=None))
    (model,) = get(status, "/models")[1]["models"]
    assert (model["status"], model["reason"], model["pipeline"]) == ("available", None, "TestPipeline")
    assert {one["name"] for one in model["parameters"]} == {
        "prompt",
        "num_inference_steps",
        "seed",
        "output_format",
        "quality",
    }
    store.write_health(health.report(settings, clock(), card=None, reason="broken"))
    clock.forward(30)
    (model,) = get(status, "/models")[1]["models"]
    assert (model["status"], model["pipeline"]) == ("available", "TestPipeline")  # another worker draws


def test_models_where_no_worker_can_load_it(status: Status, settings: Settings, store: TaskStore, clock: Clock) -> None:
    store.write_health(health.report(settings, clock(), card=None, reason="broken"))
    (model,) = get(status, "/models")[1]["models"]
    assert (model["status"], model["reason"], model["pipeline"]) == ("unavailable", "broken", None)
    assert "width" in {one["name"] for one in model["parameters"]}
