"""OpenAI's own client against the API over HTTP, and what it is answered where something is wrong."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types.image_generate_params import (
    ImageGenerateParamsBase,
    ImageGenerateParamsNonStreaming,
    ImageGenerateParamsStreaming,
)
from PIL import Image

from handler.api.results import Status
from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.contract.openai import ONLY_THEIRS, ImagesRequest
from handler.contract.record import Record
from handler.errors import FieldError, InvalidRequest, UnsafeContent

from ..service import api, worker
from ..support import answer_of, http_event
from .test_routing import headers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.settings import Settings

    from ..service import Running
    from ..support import PlainEngine

PATH = "/v1/images/generations"


@pytest.fixture
def served(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[Running]:
    with api(replace(settings, openai_wait=8.0), store, queue) as running:
        yield running


@pytest.fixture
def drawn(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Iterator[PlainEngine]:
    with worker(settings, store, queue, plain):
        yield plain


@pytest.fixture
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any")


def test_a_picture_in_three_lines(client: openai.OpenAI, drawn: PlainEngine) -> None:
    answer = client.images.generate(model="built-in", prompt="a red apple", size="64x64")
    assert answer.data is not None
    assert answer.data[0].url is not None
    with urllib.request.urlopen(answer.data[0].url) as reply:
        assert Image.open(io.BytesIO(reply.read())).size == (64, 64)
    assert (answer.size, answer.output_format) == ("64x64", "png")


def test_several_by_base64(client: openai.OpenAI, drawn: PlainEngine) -> None:
    answer = client.images.generate(
        prompt="a fox", n=2, response_format="b64_json", output_format="jpeg", output_compression=80
    )
    assert answer.data is not None
    pictures = [Image.open(io.BytesIO(base64.b64decode(one.b64_json or ""))) for one in answer.data]
    assert [one.format for one in pictures] == ["JPEG", "JPEG"]
    assert answer.data[0].url is None


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list().data] == ["built-in"]


@pytest.mark.parametrize("name", ["fox", "somebody/fox"])
def test_the_model_by_its_name(settings: Settings, store: TaskStore, queue: TaskQueue, name: str) -> None:
    with api(replace(settings, model_id=name), store, queue) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        assert client.models.retrieve(name) == client.models.list().data[0]
        for other in ("dall-e-3", "somebody/else"):
            with pytest.raises(openai.NotFoundError, match=f"there is no model '{other}'; it is {name}") as unknown:
                client.models.retrieve(other)
            assert unknown.value.type == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/models/somebody%2Ffox", "/v1/models/somebody/fox"])
def test_a_slash_in_its_name_however_it_arrives(settings: Settings, store: TaskStore, path: str) -> None:
    status = Status(replace(settings, model_id="somebody/fox"), store)
    assert answer_of(status.handle(http_event("GET", path), None))[1]["id"] == "somebody/fox"


def test_the_user_is_a_tag(client: openai.OpenAI, drawn: PlainEngine, served: Running) -> None:
    answer = client.images.generate(prompt="a fox", user="somebody")
    with urllib.request.urlopen(f"{served.url}/results/{answer.task_id}") as reply:  # type: ignore[attr-defined]
        assert b'"tags": ["somebody"]' in reply.read()


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"model": "dall-e-3"}, "model", "there is no model dall-e-3; it is built-in"),
        ({"n": 20}, "n", "less than or equal to 8"),
        ({"size": "100x100"}, "size", "100 is not a multiple of 8"),
        ({"size": "large"}, "size", "should match pattern"),
        ({"style": "vivid"}, "style", "unknown field"),
        ({"quality": "hd"}, "quality", "unknown field"),
        ({"output_compression": 50}, "output_compression", "png has none"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"extra_body": {"colour": None}}, "colour", "unknown field"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(
    client: openai.OpenAI, store: TaskStore, asked: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(**{"prompt": "a fox", **asked})
    assert refused.value.param == param
    assert words in str(refused.value)
    assert refused.value.code == "INVALID_REQUEST"
    assert refused.value.type == "invalid_request_error"
    assert list(store.newest(10, None)[0]) == [], "nothing was queued"


def test_their_fields_are_known() -> None:
    theirs = {*ImageGenerateParamsNonStreaming.__annotations__, *ImageGenerateParamsStreaming.__annotations__}
    theirs |= {*ImageGenerateParamsBase.__annotations__}
    assert theirs == {*ONLY_THEIRS, *ImagesRequest.model_fields}


@pytest.mark.parametrize(
    "name", ["model", "n", "size", "response_format", "output_format", "output_compression", "user", *ONLY_THEIRS]
)
def test_null_is_as_good_as_left_out(submit: Submit, store: TaskStore, name: str) -> None:
    cancelled = {"Idempotency-Key": "fox-1"}  # so that nobody waits
    submit.submit('{"prompt": "fox", "task_id": "fox-1"}')
    submit.cancel("fox-1")
    event = http_event("POST", PATH, body=json.dumps({"prompt": "fox", name: None}), headers=cancelled)
    status, answer = answer_of(submit.handle(event, None))
    assert (status, answer["error"]["code"]) == (409, "CANCELLED"), answer


def test_one_that_is_too_slow_names_its_task_and_is_not_drawn_twice(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """Their client repeats a 504 as a new call, unless it is told not to."""
    with api(replace(settings, openai_wait=1.0), store, queue) as running:
        slow = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        with pytest.raises(openai.InternalServerError) as late:
            slow.images.generate(prompt="a fox")
        assert late.value.status_code == 504
        assert late.value.code == "TIMED_OUT"
        (task,), _ = store.newest(10, None)
        assert len(running.flaky.calls("POST")) == 1
        assert Record.from_json(task.body).task_id in str(late.value)
        with pytest.raises(openai.InternalServerError):
            slow.images.generate(prompt="an owl", extra_headers={"Idempotency-Key": "owl-1"})
        with pytest.raises(openai.InternalServerError):
            slow.images.generate(prompt="an owl", extra_headers={"Idempotency-Key": "owl-1"})
        assert len(store.newest(10, None)[0]) == 2, "the same key, the same task"


def test_what_a_task_ends_by(client: openai.OpenAI, drawn: PlainEngine) -> None:
    drawn.fault = UnsafeContent("the model's safety checker refused the picture")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(prompt="a fox")
    assert refused.value.code == "UNSAFE_CONTENT"
    assert "safety checker" in str(refused.value)


def test_a_task_whose_message_could_not_be_sent_is_one_task(
    settings: Settings, store: TaskStore, queue: TaskQueue, drawn: PlainEngine
) -> None:
    """Their client repeats a 503 as a new call, unless it is told not to."""
    settings = replace(settings, openai_wait=8.0)
    away = TaskQueue(replace(settings, queue_url=settings.queue_url + "-nowhere"))
    with api(settings, store, away) as running, pytest.raises(openai.InternalServerError) as failed:
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="any").images.generate(prompt="a fox")
    assert (failed.value.status_code, failed.value.type) == (503, "server_error")
    assert len(running.flaky.calls("POST")) == 1
    (task,), _ = store.newest(10, None)
    name = Record.from_json(task.body).task_id
    assert str(failed.value).count(f"submit it again with the Idempotency-Key {name}") == 1
    with api(settings, store, queue) as running:
        again = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        answer = again.images.generate(prompt="a fox", extra_headers={"Idempotency-Key": name})
    assert answer.task_id == name  # type: ignore[attr-defined]


def test_where_it_is_not_known_whether_there_is_a_task_its_name_is_told(
    settings: Settings, queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = TaskStore(replace(settings, bucket="no-such-bucket"))
    submit = Submit(settings, nowhere, queue, new_id=lambda: "fresh-id")
    answer = submit.handle(http_event("POST", PATH, body='{"prompt": "fox"}'), None)
    assert (answer["statusCode"], headers_of(answer)["X-Should-Retry"]) == (503, "false")
    assert "It may go on as task fresh-id" in answer["body"]
    assert vars(caplog.records[-1])["id"] in answer["body"], "the log has the cause"
    assert vars(caplog.records[-1])["cause"]


def test_with_a_key_the_same_call_again_completes_it(settings: Settings, store: TaskStore) -> None:
    away = TaskQueue(replace(settings, queue_url=settings.queue_url + "-nowhere"))
    event = http_event("POST", PATH, body='{"prompt": "fox"}', headers={"Idempotency-Key": "fox-1"})
    answer = Submit(settings, store, away).handle(event, None)
    assert answer["statusCode"] == 503
    assert "X-Should-Retry" not in headers_of(answer)


@pytest.mark.parametrize(
    ("limits", "status", "told"),
    [
        ({"daily_images": 1}, 429, "false"),  # until midnight
        ({"tenant_tasks": 1}, 429, None),  # for seconds
        ({}, 409, "false"),
    ],
)
def test_what_is_repeated_in_vain_is_not(
    settings: Settings, store: TaskStore, queue: TaskQueue, limits: dict[str, Any], status: int, told: str | None
) -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    submit = Submit(replace(settings, **limits), store, queue, now=lambda: now)
    submit.submit('{"prompt": "fox", "task_id": "fox-1"}')
    headers = {} if limits else {"Idempotency-Key": "fox-1"}
    answer = submit.handle(http_event("POST", PATH, body='{"prompt": "owl"}', headers=headers), None)
    assert answer["statusCode"] == status
    assert headers_of(answer).get("X-Should-Retry") == told


def test_what_the_door_could_not_check_is_refused_all_the_same(
    settings: Settings, store: TaskStore, queue: TaskQueue, drawn: PlainEngine
) -> None:
    """The worker has the card that the door had not."""
    drawn.fault = InvalidRequest([FieldError("num_images", "too many"), FieldError("width", "odd")])
    with api(replace(settings, openai_wait=8.0), store, queue) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.images.generate(prompt="a fox", size="64x64")
    assert (refused.value.param, refused.value.code) == ("n", "INVALID_REQUEST")
    assert "n: too many; size: odd" in str(refused.value)


def test_a_fault_of_the_size_is_told_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(prompt="a fox", size="1024x1024")
    assert refused.value.body is not None
    assert str(refused.value.message).count("size: ") == 1


def test_errors_of_the_path_are_in_their_envelope(submit: Submit) -> None:
    status, answer = answer_of(submit.handle(http_event("GET", PATH), None))
    assert (status, answer["error"]["type"]) == (405, "invalid_request_error")
    status, answer = answer_of(submit.handle(http_event("POST", "/v1/nothing", body="{}"), None))
    assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")
    status, answer = answer_of(submit.handle(http_event("POST", PATH, body="{"), None))
    assert (status, answer["error"]["param"]) == (422, "body")
    status, answer = answer_of(submit.handle(http_event("POST", "/nothing", body="{}"), None))
    assert "details" in answer["error"], "elsewhere ours"


def test_each_tenant_has_its_own(settings: Settings, store: TaskStore, queue: TaskQueue, drawn: PlainEngine) -> None:
    with api(replace(settings, openai_wait=8.0, tenants="header"), store, queue) as running:
        alice = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", default_headers={"X-API-Key": "alice"})
        answer = alice.images.generate(prompt="a fox", response_format="b64_json")
        assert answer.data is not None
        assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))).format == "PNG"
        assert len(store.for_tenant("alice").newest(10, None)[0]) == 1
        assert store.for_tenant("bob").newest(10, None)[0] == []
