"""What is left of a task whose caller wants nothing of it to be left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from handler.contract.record import Record
from handler.task.purging import purge

from ..support import answer_of, http_event, sqs_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.api.submission import Submit
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.work.serving import Generate

    from ..support import PlainEngine

SECRET = "a fox that nobody must hear of"


@pytest.fixture
def drawn(generate: Generate) -> str:
    body = json.dumps({"prompt": SECRET, "task_id": "fox-1", "tags": ["mine"], "num_images": 2})
    generate.handle(sqs_event(body, ids=["m-1"]), None)
    return body


def delete(submit: Submit, task_id: str = "fox-1", **query: str) -> tuple[int, Any]:
    return answer_of(submit.handle(http_event("DELETE", f"/results/{task_id}", query=query), None))


def test_nothing_is_left_of_what_was_asked_for_and_drawn(
    submit: Submit, status: Status, store: TaskStore, drawn: str
) -> None:
    before = store.read("fox-1")
    assert before is not None
    keys = [image.key for image in Record.from_json(before.body).images]
    assert len(keys) == 2
    code, answer = delete(submit, purge="1")
    assert (code, answer["status"]) == (200, "completed")
    assert store.objects_of("fox-1") == {}
    stored = store.read("fox-1")
    assert stored is not None
    assert SECRET.encode() not in stored.body
    assert b"mine" not in stored.body
    result = answer_of(status.handle(http_event("GET", "/results/fox-1"), None))[1]
    assert (result["purged"], result["images"], result["prompt"], result["status"]) == (True, [], None, "completed")
    assert result["expires_at"] == json.loads(before.body)["expires_at"]


def test_it_can_be_asked_for_again(submit: Submit, store: TaskStore, drawn: str) -> None:
    """As after a crash between the record and the images."""
    stored = store.read("fox-1")
    assert stored is not None
    store.change(stored, purge(Record.from_json(stored.body)))
    assert store.objects_of("fox-1") != {}
    assert delete(submit, purge="1")[0] == 200
    assert store.objects_of("fox-1") == {}
    assert delete(submit, purge="1")[0] == 200


def test_a_late_duplicate_draws_nothing(
    submit: Submit, generate: Generate, plain: PlainEngine, store: TaskStore, queue: TaskQueue, drawn: str
) -> None:
    delete(submit, purge="1")
    plain.drawn.clear()
    for message in (drawn, '{"task_id": "fox-1", "fingerprint": "2-00", "send": 1}'):
        answer = generate.handle(sqs_event(message, ids=["m-2"]), None)
        assert answer == {"batchItemFailures": []}, "it is consumed"
    assert plain.drawn == []
    assert store.objects_of("fox-1") == {}


@pytest.mark.parametrize(
    ("path", "headers", "field"),
    [
        ("/generate/fox-1/retry", {}, None),
        ("/generate", {}, "task_id"),
        ("/generate", {"Idempotency-Key": "fox-1"}, "Idempotency-Key"),
    ],
)
def test_it_is_neither_repeated_nor_asked_for_again(
    submit: Submit, drawn: str, path: str, headers: dict[str, str], field: str | None
) -> None:
    delete(submit, purge="1")
    body = drawn if field else None
    code, answer = answer_of(submit.handle(http_event("POST", path, body=body, headers=headers), None))
    assert code == 409
    assert "task fox-1 was purged" in answer["error"]["message"]
    assert [one["field"] for one in answer["error"]["details"]] == ([field] if field else [])


@pytest.mark.parametrize("task_id", ["fox-1", "nobody"])
def test_what_nobody_has_seen_is_not_purged(submit: Submit, store: TaskStore, drawn: str, task_id: str) -> None:
    code, answer = delete(submit, task_id, purge="1", unseen="1")
    assert (code, [one["field"] for one in answer["error"]["details"]]) == (422, ["unseen"])
    assert "purge" in answer["error"]["message"]
    assert store.objects_of("fox-1") != {}


def test_one_that_has_not_ended_is_cancelled_first(submit: Submit) -> None:
    submit.submit('{"prompt": "fox", "task_id": "fox-2"}')
    code, answer = delete(submit, "fox-2", purge="1")
    assert (code, answer["error"]["code"]) == (409, "CONFLICT")
    assert delete(submit, "fox-2")[0] == 200
    assert delete(submit, "fox-2", purge="1")[0] == 200
    assert delete(submit, "nobody", purge="1")[0] == 404
    assert delete(submit, "fox-2", purge="yes")[0] == 422


@pytest.mark.parametrize("tenant", [None, "alice"])
def test_whatever_lies_beside_the_record_goes(submit: Submit, store: TaskStore, tenant: str | None) -> None:
    """Of a task that was stopped and failed, say: steps saved, a preview."""
    own, here = submit.for_tenant(tenant), store.for_tenant(tenant)
    own.submit('{"prompt": "fox", "task_id": "fox-1"}')
    own.cancel("fox-1")
    here.put_checkpoint("fox-1", b"steps", "abc")
    here.put_image(here.preview_key("fox-1"), b"small", "image/jpeg")
    here.put_image(here.image_key("fox-1", 1, 0, "png"), b"picture", "image/png")
    assert len(here.objects_of("fox-1")) == 3
    own.purge("fox-1")
    assert here.objects_of("fox-1") == {}
