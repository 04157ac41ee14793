"""``POST /uploads`` and what becomes of an input image: sent with the form, read by the worker, told in the record."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import obstore
import pytest

from handler.api.submission import Submit
from handler.api.uploads import LIFETIME
from handler.aws.s3 import PresignedPosts, connect
from handler.contract.ids import MAX_UPLOAD
from handler.contract.request import parse
from handler.contract.responses import ResultResponse, UploadResponse
from handler.settings import Settings

from ..forms import picture, send_form
from ..support import CARD, DRAWS, Clock, PlainEngine, answer_of, http_event, lose_the_lease, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.work.serving import Generate


CONSUMED: dict[str, Any] = {"batchItemFailures": []}


@pytest.fixture
def plain() -> PlainEngine:
    return PlainEngine(card=DRAWS)


def ask(submit: Submit, body: str | None = None, version: str = "1.0", **headers: str) -> tuple[int, Any]:
    event = http_event("POST", "/uploads", body=body, version=version, headers=headers)
    return answer_of(submit.handle(event, None))


def policy_of(form: dict[str, Any]) -> dict[str, Any]:
    policy: dict[str, Any] = json.loads(base64.b64decode(form["fields"]["policy"]))
    return policy


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_form_is_for_one_object_of_one_type_and_a_bounded_size(submit: Submit, clock: Clock, version: str) -> None:
    code, form = ask(submit, '{"content_type": "image/webp"}', version)
    assert code == 201
    offered = UploadResponse.model_validate_json(json.dumps(form))
    assert (offered.upload_id, offered.max_bytes) == ("fresh-id", MAX_UPLOAD)
    assert offered.content_types == ["image/png", "image/jpeg", "image/webp"]
    assert offered.expires_at == clock() + timedelta(seconds=LIFETIME)
    conditions = policy_of(form)["conditions"]
    for wanted in (
        {"Content-Type": "image/webp"},
        {"key": "uploads/fresh-id"},
        ["content-length-range", 1, MAX_UPLOAD],
    ):
        assert wanted in conditions
    # Nothing that whoever has the form may choose: every condition but the size is an equality.
    assert [one for one in conditions if not isinstance(one, dict)] == [["content-length-range", 1, MAX_UPLOAD]]


@pytest.mark.parametrize("body", [None, "", "{}", '{"content_type": null}'])
def test_without_a_word_the_form_is_for_a_png(submit: Submit, body: str | None) -> None:
    code, form = ask(submit, body)
    assert (code, form["fields"]["Content-Type"]) == (201, "image/png")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"content_type": "image/svg+xml"}', "content_type"),
        ('{"key": null}', "key"),
        ('{"key": "tasks/a/status.json"}', "key"),
        ("[]", "body"),
        ("{", "body"),
    ],
)
def test_what_is_wrong_is_named(submit: Submit, body: str, field: str) -> None:
    code, answer = ask(submit, body)
    assert (code, answer["error"]["code"]) == (422, "INVALID_REQUEST")
    assert [one["field"] for one in answer["error"]["details"]] == [field]


def test_the_image_itself_is_not_taken_here(submit: Submit) -> None:
    assert ask(submit, "x", **{"Content-Type": "image/png"})[0] == 415


def test_a_tenants_form_is_for_a_key_of_its_own(settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    submit = Submit(replace(settings, tenants="header"), store, queue)
    code, form = ask(submit, **{"X-API-Key": "alice"})
    assert (code, form["fields"]["key"]) == (201, f"tenants/alice/uploads/{form['upload_id']}")
    assert send_form(form["url"], form["fields"], picture()) == 204
    found = store.for_tenant("alice").read_upload(form["upload_id"])
    assert found is not None
    assert found.body == picture()
    assert store.read_upload(form["upload_id"]) is None
    assert ask(submit)[0] >= 400  # who does not say who he is gets nobody's


def test_a_form_goes_to_the_buckets_own_region_and_carries_the_sessions_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    forms = PresignedPosts(Settings(bucket="my-bucket", aws_region="eu-central-1"))
    url, fields = forms.sign("uploads/a", "image/png", 100, 60)
    assert url == "https://my-bucket.s3.eu-central-1.amazonaws.com/"
    assert fields["x-amz-security-token"] == "a-token"
    assert fields["x-amz-algorithm"] == "AWS4-HMAC-SHA256"


def test_from_a_form_to_a_picture(
    submit: Submit, generate: Generate, plain: PlainEngine, store: TaskStore, queue: TaskQueue, status: Status
) -> None:
    _, form = ask(submit)
    body = picture()
    assert send_form(form["url"], form["fields"], body) == 204
    asked = {"prompt": "fox", "image": form["upload_id"], "task_id": "mine", "num_inference_steps": 10, "strength": 0.5}
    event = http_event("POST", "/generate", body=json.dumps(asked))
    assert answer_of(submit.handle(event, None))[0] == 202
    (message,) = queue.receive(wait=1)
    assert generate.handle(sqs_event(message.body), None) == CONSUMED
    assert plain.given == [body]
    record = record_of(store, "mine")
    assert record.status == "completed"
    assert record.input is not None
    assert (record.input.bytes, record.input.sha256) == (len(body), sha256(body).hexdigest())
    assert record.request is not None
    # Of the input image's own size: what the card says is for pictures from text alone.
    assert (record.request.strength, record.request.width, record.request.height) == (0.5, None, None)
    assert record.progress is not None
    assert (record.progress.step, record.progress.steps) == (5, 5)
    code, result = answer_of(status.handle(http_event("GET", "/results/mine"), None))
    assert code == 200
    ResultResponse.model_validate_json(json.dumps(result))
    assert result["input"] == {"bytes": len(body), "sha256": sha256(body).hexdigest()}
    assert "uploads/" not in json.dumps(result)


def draw(generate: Generate, name: str = "mine", **asked: Any) -> None:
    body = json.dumps({"prompt": "fox", "task_id": name, "image": "upload-1", **asked})
    assert generate.handle(sqs_event(body), None) == CONSUMED


def failed(store: TaskStore, name: str = "mine") -> str:
    """Why the task failed, which its caller can mend: the image is named, and no key."""
    record = record_of(store, name)
    assert record.status == "failed"
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("INVALID_REQUEST", False)
    (detail,) = record.error.details
    assert detail.field == "image"
    assert "uploads/" not in record.error.message
    return detail.message


def test_an_upload_that_is_not_there_fails_the_task(generate: Generate, plain: PlainEngine, store: TaskStore) -> None:
    draw(generate)
    assert "no such upload" in failed(store)
    assert plain.drawn == []


def test_what_is_too_large_is_not_even_read(generate: Generate, plain: PlainEngine, store: TaskStore) -> None:
    """No form lets it in; whoever has the bucket may have put it there."""
    store.put_upload("upload-1", bytes(MAX_UPLOAD + 1), "image/png")
    found = store.read_upload("upload-1")
    assert found is not None
    assert (found.size, found.body) == (MAX_UPLOAD + 1, b"")
    draw(generate)
    assert str(MAX_UPLOAD + 1) in failed(store)
    assert plain.drawn == []


def test_the_largest_is_taken(generate: Generate, plain: PlainEngine, store: TaskStore) -> None:
    store.put_upload("upload-1", bytes(MAX_UPLOAD), "image/png")
    draw(generate)
    assert [len(one) for one in plain.given] == [MAX_UPLOAD]


def test_another_tenants_upload_is_none(
    generate: Generate, plain: PlainEngine, store: TaskStore, settings: Settings
) -> None:
    store.for_tenant("alice").put_upload("upload-1", picture(), "image/png")
    body = json.dumps({"prompt": "fox", "task_id": "mine", "image": "upload-1"})
    for tenant in (None, "bob", "alice"):
        event = sqs_event(body)
        if tenant:
            event["Records"][0]["messageAttributes"] = {"tenant": {"stringValue": tenant, "dataType": "String"}}
        assert generate.handle(event, None) == CONSUMED
    assert "no such upload" in failed(store)
    assert "no such upload" in failed(store.for_tenant("bob"))
    assert record_of(store.for_tenant("alice"), "mine").status == "completed"


@pytest.mark.parametrize("same", [True, False])
def test_every_attempt_draws_from_the_same_image(
    generate: Generate, plain: PlainEngine, store: TaskStore, same: bool
) -> None:
    """Two attempts whose images differ would go on with one picture's checkpoint towards another."""
    first = picture()
    store.put_upload("upload-1", first, "image/png")
    plain.fault = RuntimeError("hiccup")
    event = sqs_event(json.dumps({"prompt": "fox", "task_id": "mine", "image": "upload-1"}))
    assert generate.handle(event, None) != CONSUMED
    plain.fault = None
    store.put_upload("upload-1", first if same else picture(form="JPEG"), "image/png")
    assert generate.handle(event, None) == CONSUMED
    if same:
        assert record_of(store, "mine").status == "completed"
        assert plain.given == [first, first]
    else:
        assert "replaced" in failed(store)
        known = record_of(store, "mine").input
        assert known is not None
        assert known.sha256 == sha256(first).hexdigest()
        assert len(plain.given) == 1


def test_an_upload_that_goes_between_two_attempts_fails_the_task(
    generate: Generate, plain: PlainEngine, store: TaskStore, clock: Clock, settings: Settings
) -> None:
    """Also where the first attempt was never heard of again: its lease has run out, and its record says processing."""
    store.put_upload("upload-1", picture(), "image/png")
    plain.between = lambda: lose_the_lease(generate, clock)  # as if the worker had died
    event = sqs_event(json.dumps({"prompt": "fox", "task_id": "mine", "image": "upload-1"}))
    generate.handle(event, None)
    plain.between = lambda: None
    obstore.delete(connect(settings.bucket, settings), store.upload_key("upload-1"))  # as the bucket's rule does
    assert generate.handle(event, None) == CONSUMED
    assert "no such upload" in failed(store)


def test_a_request_that_names_an_image_is_checked_at_the_door(submit: Submit, store: TaskStore) -> None:
    for value in ("https://example.com/a.png", "../tasks/a/status.json", "a/b", "s3://b/k", ""):
        event = http_event("POST", "/generate", body=json.dumps({"prompt": "fox", "image": value}))
        code, answer = answer_of(submit.handle(event, None))
        assert (code, [one["field"] for one in answer["error"]["details"]]) == (422, ["image"])


@pytest.mark.parametrize(
    ("asked", "card", "field", "words"),
    [
        ({"image": "a"}, CARD, "image", "does not take it"),
        ({"strength": 0.5}, DRAWS, "strength", "without image"),
        ({"image": "a", "strength": 1.1}, DRAWS, "strength", "less than or equal to 1"),
        ({"image": "a", "strength": -0.1}, DRAWS, "strength", "greater than or equal to 0"),
        ({"image": "a", "strength": 0.09, "num_inference_steps": 11}, DRAWS, "strength", "at least 0.091"),
        ({"image": "a", "num_inference_steps": 1}, DRAWS, "strength", "0.5 of 1 steps"),
        ({}, DRAWS.model_copy(update={"required": ["image"]}), "image", "needs it"),
        ({"image": "a/b"}, DRAWS.model_copy(update={"required": ["image"]}), "image", "match pattern"),
    ],
)
def test_what_image_and_strength_may_be(asked: dict[str, Any], card: Any, field: str, words: str) -> None:
    (fault,) = parse(json.dumps({"prompt": "fox", **asked}), card).faults
    assert fault.field == field
    assert words in fault.message


def test_the_least_strength_that_is_told_is_enough() -> None:
    for steps in range(1, 201):
        body = {"prompt": "fox", "image": "a", "strength": 0, "num_inference_steps": steps}
        (fault,) = parse(json.dumps(body), DRAWS).faults
        told = float(fault.message.rpartition(" ")[2])
        assert parse(json.dumps({**body, "strength": told}), DRAWS).accept().steps == 1
