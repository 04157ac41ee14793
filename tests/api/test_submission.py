"""``POST /generate`` on events as API Gateway sends them, in both payload formats."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import replace
from datetime import timedelta
from re import fullmatch
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.clock import utc_now
from handler.contract import health
from handler.contract.record import Record
from handler.contract.responses import ResultResponse
from handler.errors import OutOfMemory
from handler.task import moves
from handler.work.serving import Generate

from ..support import CARD, Clock, PlainEngine, answer_of, event_of, http_event, sqs_event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from handler.api.results import Status
    from handler.aws.s3 import Stored
    from handler.settings import Settings


def post(submit: Submit, body: str, version: str = "1.0", **headers: str) -> tuple[int, Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer_of(submit.handle(http_event("POST", "/generate", body=body, headers=sent, version=version), None))


def record_of(store: TaskStore, task_id: str) -> Record:
    stored = store.read(task_id)
    assert stored is not None
    return Record.from_json(stored.body)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_request_is_recorded_and_queued(submit: Submit, store: TaskStore, queue: TaskQueue, version: str) -> None:
    status, answer = post(submit, '{"prompt": "fox"}', version)
    assert status == 202
    assert answer == {
        "task_id": "fresh-id",
        "status": "pending",
        "message": "task fresh-id is pending; ask for it at /results/fresh-id",
        "status_url": "/results/fresh-id",
        "result_url": "/results/fresh-id?wait=20",
        "cancel_url": "/results/fresh-id",
        "prompt_tokens": 24,  # of the built-in model, whose card everybody has
    }
    record = record_of(store, "fresh-id")
    assert (record.status, record.sequence) == ("pending", 1)
    assert record.request is not None
    assert record.request.seed == 1234
    (message,) = queue.receive(wait=1)
    assert json.loads(message.body) == {"task_id": "fresh-id", "fingerprint": record.fingerprint, "send": 1}
    assert record.sends == 1


def test_a_body_in_base64(submit: Submit) -> None:
    event = http_event("POST", "/generate", body=base64.b64encode(b'{"prompt": "fox"}').decode())
    assert answer_of(submit.handle({**event, "isBase64Encoded": True}, None))[0] == 202


@pytest.mark.parametrize("body", ["!!!", "é", "a"])
def test_a_body_that_is_not_base64(submit: Submit, body: str) -> None:
    event = http_event("POST", "/generate", body=body)
    code, answer = answer_of(submit.handle({**event, "isBase64Encoded": True}, None))
    assert (code, answer["error"]["details"][0]["field"]) == (422, "body")


def test_a_card_of_defaults_alone_is_no_card(
    settings: Settings, store: TaskStore, queue: TaskQueue, tmp_path: Path
) -> None:
    (tmp_path / "model_card.json").write_text('{"defaults": {"num_inference_steps": 4}}')
    submit = Submit(replace(settings, model_id=str(tmp_path)), store, queue)
    assert post(submit, '{"prompt": "fox"}')[0] == 202


def test_every_fault_is_listed(submit: Submit, store: TaskStore, queue: TaskQueue) -> None:
    status, answer = post(submit, '{"prompt": "", "num_inference_steps": 500, "colour": "red"}')
    assert status == 422
    assert answer["error"]["code"] == "INVALID_REQUEST"
    assert {one["field"] for one in answer["error"]["details"]} == {"prompt", "num_inference_steps", "colour"}
    assert store.read("fresh-id") is None
    assert queue.receive(wait=0) == []


@pytest.mark.parametrize("body", ["", "{", "[]", "null"])
def test_a_body_that_cannot_be_read(submit: Submit, body: str) -> None:
    status, answer = post(submit, body)
    assert status == 422
    assert answer["error"]["details"][0]["field"] == "body"


def test_invalid_utf8(submit: Submit) -> None:
    event = http_event("POST", "/generate", body=base64.b64encode(b'{"prompt": "\xff"}').decode())
    assert answer_of(submit.handle({**event, "isBase64Encoded": True}, None))[0] == 422


def test_the_same_again_is_the_same_task(submit: Submit, store: TaskStore, queue: TaskQueue) -> None:
    body = '{"prompt": "fox", "task_id": "mine"}'
    first, again = post(submit, body), post(submit, ' {"task_id": "mine",  "prompt":"fox"}')
    assert first == again
    assert (record_of(store, "mine").sequence, record_of(store, "mine").sends) == (2, 2)
    # Pending still: whether the first message was sent is not known, so there are two, and one claim.
    assert len(queue.receive(2, wait=1) + queue.receive(2, wait=0)) == 2


def test_an_idempotency_key_names_the_task(submit: Submit) -> None:
    first = post(submit, '{"prompt": "fox"}', Idempotency_Key="key-1")
    assert first[1]["task_id"] == "key-1"
    assert post(submit, '{"prompt": "fox"}', Idempotency_Key="key-1") == first
    status, answer = post(submit, '{"prompt": "owl"}', Idempotency_Key="key-1")
    assert (status, answer["error"]["details"][0]["field"]) == (409, "Idempotency-Key")


def test_header_names_have_no_case(submit: Submit) -> None:
    assert post(submit, '{"prompt": "fox"}', idempotency_key="key-1")[1]["task_id"] == "key-1"


@pytest.mark.parametrize(("key", "body"), [("../x", '{"prompt": "fox"}'), ("a", '{"prompt": "fox", "task_id": "b"}')])
def test_a_bad_idempotency_key(submit: Submit, key: str, body: str) -> None:
    status, answer = post(submit, body, Idempotency_Key=key)
    assert status == 422
    assert answer["error"]["details"][0]["field"] == "Idempotency-Key"


def test_a_bad_key_is_told_with_the_faults_of_the_body(submit: Submit) -> None:
    status, answer = post(submit, '{"prompt": "fox", "width": 3, "quality": 50}', Idempotency_Key="../key")
    assert status == 422
    assert {one["field"] for one in answer["error"]["details"]} == {"width", "quality", "Idempotency-Key"}


def test_the_same_id_for_something_else_is_a_conflict(submit: Submit, store: TaskStore) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine"}')
    status, answer = post(submit, '{"prompt": "owl", "task_id": "mine"}')
    assert (status, answer["error"]["code"]) == (409, "CONFLICT")
    assert answer["error"]["details"] == [{"field": "task_id", "message": "names another request"}]
    request = record_of(store, "mine").request
    assert request is not None
    assert request.prompt == "fox"


def test_a_finished_task_is_not_queued_again(submit: Submit, store: TaskStore, queue: TaskQueue, clock: Clock) -> None:
    body = '{"prompt": "fox", "task_id": "mine"}'
    post(submit, body)
    queue.delete(queue.receive(wait=1)[0].receipt_handle)
    stored = store.read("mine")
    assert stored is not None
    store.change(stored, moves.fail(Record.from_json(stored.body), now=clock(), fault=OutOfMemory("big")))
    assert post(submit, body)[1]["status"] == "failed"
    assert queue.receive(wait=1) == []


def test_a_send_that_failed_is_made_up_for_by_the_same_call(
    settings: Settings, store: TaskStore, queue: TaskQueue, submit: Submit
) -> None:
    broken = Submit(settings, store, TaskQueue(replace(settings, queue_url=settings.queue_url + "-nowhere")))
    body = '{"prompt": "fox", "task_id": "mine"}'
    status, answer = post(broken, body)
    assert status == 503
    assert "submit it again with the task_id mine" in answer["error"]["message"]
    assert record_of(store, "mine").status == "pending"
    assert post(submit, body)[0] == 202
    assert len(queue.receive(wait=1)) == 1


def test_a_model_that_cannot_be_loaded_shuts_the_door(
    submit: Submit, settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    store.write_health(health.report(settings, clock(), card=None, reason="no such file"))
    status, answer = post(submit, '{"prompt": "fox"}')
    assert (status, answer["error"]["code"]) == (503, "MODEL_UNAVAILABLE")
    assert "no such file" in answer["error"]["message"]
    assert queue.receive(wait=0) == []
    clock.time = utc_now() + timedelta(seconds=301)  # or nothing would ever start the worker that could open it
    assert post(submit, '{"prompt": "fox"}')[0] == 202


def test_a_request_is_checked_against_the_model_that_will_run_it(
    submit: Submit, settings: Settings, store: TaskStore, clock: Clock
) -> None:
    card = CARD.model_copy(update={"size_multiple": 64}).model_dump(mode="json")
    store.write_health(health.report(settings, clock(), card=card, reason=None))
    status, answer = post(submit, '{"prompt": "fox", "width": 72}')
    assert status == 422
    assert answer["error"]["details"] == [
        {"field": "width", "message": "72 is not a multiple of 64, as this model needs"}
    ]


def test_another_models_card_is_not_believed(
    submit: Submit, settings: Settings, store: TaskStore, clock: Clock
) -> None:
    other = replace(settings, model_id="some/other")
    store.write_health(health.report(other, clock(), card=None, reason="gone"))
    assert post(submit, '{"prompt": "fox"}')[0] == 202


def test_storage_that_fails_is_503_without_a_trace(settings: Settings, queue: TaskQueue) -> None:
    submit = Submit(settings, TaskStore(replace(settings, bucket="no-such-bucket")), queue)
    status, answer = post(submit, '{"prompt": "fox"}')
    assert (status, answer["error"]["code"]) == (503, "INTERNAL")
    told = r"S3 failed to index the task; the log has more under id [0-9a-f]{8}"  # and neither bucket nor key
    assert fullmatch(told, answer["error"]["message"])


def retry(submit: Submit, task_id: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer_of(submit.handle(http_event("POST", f"/generate/{task_id}/retry", body=body, headers=sent), None))


def failed(store: TaskStore, clock: Clock, task_id: str) -> Record:
    stored = store.read(task_id)
    assert stored is not None
    ended = moves.fail(Record.from_json(stored.body), now=clock(), fault=OutOfMemory("big"))
    store.change(stored, ended)
    return ended


def test_a_retry_is_a_new_task_that_knows_its_origin(
    submit: Submit, status: Status, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine", "tags": ["a"]}')
    queue.delete(queue.receive(wait=1)[0].receipt_handle)
    old = failed(store, clock, "mine")
    code, told = retry(submit, "mine")
    assert (code, told["task_id"], told["status"]) == (202, "fresh-id", "pending")
    assert told["status_url"] == "/results/fresh-id"
    new = record_of(store, "fresh-id")
    assert old.request is not None
    assert new.request == old.request.model_copy(update={"task_id": "fresh-id"})  # the seed too, which was drawn
    assert (new.origin, record_of(store, "mine")) == ("mine", old)
    (message,) = queue.receive(wait=1)
    assert message.body == new.pointer()
    shown = answer_of(status.handle(http_event("GET", "/results/fresh-id"), None))[1]
    ResultResponse.model_validate_json(json.dumps(shown))
    assert shown["origin"] == "mine"
    assert answer_of(status.handle(http_event("GET", "/results/mine"), None))[1]["origin"] is None


def test_only_what_has_ended_is_repeated(submit: Submit) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine"}')
    assert retry(submit, "mine")[0] == 409
    assert retry(submit, "nobody")[0] == 404
    assert retry(submit, "%2e%2e")[0] == 404


def test_what_never_was_a_request_is_not_repeated(submit: Submit, store: TaskStore, clock: Clock) -> None:
    store.create(moves.reject("mine", OutOfMemory("no"), clock(), timedelta(days=1)))
    code, told = retry(submit, "mine")
    assert (code, told["error"]["message"]) == (409, "task mine holds no valid request")


def test_a_retry_with_a_key_happens_once(submit: Submit, store: TaskStore, clock: Clock) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine", "seed": 1}')
    post(submit, '{"prompt": "fox", "task_id": "twin", "seed": 1}')
    failed(store, clock, "mine")
    failed(store, clock, "twin")
    first = retry(submit, "mine", Idempotency_Key="again")
    assert first[1]["task_id"] == "again"
    assert retry(submit, "mine", Idempotency_Key="again") == first
    assert record_of(store, "again").sends == 2
    assert retry(submit, "twin", Idempotency_Key="again")[0] == 409  # the same request, and another origin
    assert retry(submit, "mine", Idempotency_Key="mine")[0] == 409  # not the old task itself
    failed(store, clock, "again")
    assert retry(submit, "again")[0] == 202  # a retry can be repeated


@pytest.mark.parametrize("body", ['{"seed": 2}', "[]", "x"])
def test_a_retry_takes_nothing(submit: Submit, store: TaskStore, clock: Clock, body: str) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine"}')
    failed(store, clock, "mine")
    code, told = retry(submit, "mine", body)
    assert (code, told["error"]["details"][0]["field"]) == (422, "body")
    assert retry(submit, "mine", "{}")[0] == 202


def test_a_retry_is_checked_against_the_model_of_now(
    submit: Submit, settings: Settings, store: TaskStore, clock: Clock
) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine", "width": 72}')
    failed(store, clock, "mine")
    card = CARD.model_copy(update={"size_multiple": 64}).model_dump(mode="json")
    store.write_health(health.report(settings, clock(), card=card, reason=None))
    clock.forward(30)
    code, told = retry(submit, "mine")
    assert (code, told["error"]["details"][0]["field"]) == (422, "width")


def cancel(submit: Submit, task_id: str, **query: str) -> tuple[int, Any]:
    return answer_of(submit.handle(http_event("DELETE", f"/results/{task_id}", query=query or None), None))


def test_a_message_without_a_record_is_cancelled_unseen(
    submit: Submit, store: TaskStore, queue: TaskQueue, generate: Generate, plain: PlainEngine
) -> None:
    queue.send('{"prompt": "fox", "task_id": "raw"}')
    assert cancel(submit, "raw")[0] == 404
    assert cancel(submit, "raw", unseen="0")[0] == 404
    first = cancel(submit, "raw", unseen="1")
    assert (first[0], first[1]["status"]) == (200, "cancelled")
    record = record_of(store, "raw")
    assert (record.status, record.fingerprint, record.request, record.sequence) == ("cancelled", None, None, 1)
    assert record.error is not None
    assert record.error.code == "CANCELLED"
    assert cancel(submit, "raw", unseen="1") == cancel(submit, "raw") == first
    assert record_of(store, "raw") == record
    assert list(store.open_tasks()) == []  # nothing is left lying
    assert [json.loads(one.body)["task_id"] for one in store.newest(5)[0]] == ["raw"]
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), None) == {"batchItemFailures": []}
    assert generate.handle(sqs_event("no request at all", ids=["raw"]), None) == {"batchItemFailures": []}
    assert (plain.drawn, record_of(store, "raw")) == ([], record)
    assert post(submit, '{"prompt": "fox", "task_id": "raw"}')[0] == 409
    assert queue.receive(wait=0) == []


def test_unseen_is_an_ordinary_cancel_where_there_is_a_record(submit: Submit, store: TaskStore, clock: Clock) -> None:
    post(submit, '{"prompt": "fox", "task_id": "mine"}')
    assert cancel(submit, "mine", unseen="1")[0] == 200
    record = record_of(store, "mine")
    assert (record.status, record.sequence) == ("cancelled", 2)
    assert record.fingerprint is not None
    post(submit, '{"prompt": "fox", "task_id": "over"}')
    failed(store, clock, "over")
    assert cancel(submit, "over", unseen="1")[0] == 409


@pytest.mark.parametrize(
    ("task_id", "unseen", "field"), [("mine", "2", "unseen"), ("mine", "", "unseen"), ("a b", "1", "task_id")]
)
def test_an_unseen_cancel_that_cannot_be(
    submit: Submit, store: TaskStore, task_id: str, unseen: str, field: str
) -> None:
    status, answer = cancel(submit, task_id, unseen=unseen)
    assert (status, answer["error"]["code"]) == (422, "INVALID_REQUEST")
    assert [one["field"] for one in answer["error"]["details"]] == [field]
    assert list(store.open_tasks()) == []
    assert store.newest(5)[0] == []


class Overtaken(TaskStore):
    """Somebody else does ``first`` in the moment before a record is created."""

    first: Callable[[], object] | None = None

    def create(self, record: Record) -> Stored:
        first, self.first = self.first, None
        if first is not None:
            first()
        return super().create(record)


class Hurried(TaskStore):
    """A worker's step is told in the moment before each of the first ``beats`` changes that others make."""

    beats = 0

    def change(self, stored: Stored, record: Record) -> Stored:
        if self.beats:
            self.beats -= 1
            told = Record.from_json(stored.body).model_copy(update={"sequence": 100 - self.beats})
            super().change(stored, told)
        return super().change(stored, record)


def test_a_cancel_is_not_tired_out_by_a_worker_that_tells_every_step(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    door = Submit(settings, hurried := Hurried(settings), queue, now=clock)
    door.submit('{"prompt": "fox", "task_id": "quick"}')
    hurried.beats = 20
    assert door.cancel("quick").status == "cancelled"
    assert (hurried.beats, record_of(store, "quick").status) == (0, "cancelled")


def test_a_worker_that_claims_before_an_unseen_cancel_has_its_task_cancelled(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    drawing, cancelled = threading.Event(), threading.Event()

    def at_step() -> None:
        drawing.set()
        cancelled.wait(20)

    def claimed() -> None:
        running.start()
        assert drawing.wait(20)

    engine, overtaken = PlainEngine(between=at_step), Overtaken(settings)
    worker = Generate(settings, store, queue, lambda _: engine, now=clock)
    running = threading.Thread(target=worker.handle, args=(sqs_event('{"prompt": "fox", "task_id": "raw"}'), None))
    overtaken.first = claimed
    record = Submit(settings, overtaken, queue, now=clock).cancel("raw", unseen=True)
    cancelled.set()
    running.join(30)
    assert (record.status, record.attempt) == ("cancelled", 1)
    assert record.fingerprint is not None
    assert record_of(store, "raw") == record
    assert record.images == []


def test_an_unseen_cancel_before_a_workers_claim_has_the_message_consumed(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    engine, overtaken = PlainEngine(), Overtaken(settings)
    overtaken.first = lambda: Submit(settings, store, queue, now=clock).cancel("raw", unseen=True)
    worker = Generate(settings, overtaken, queue, lambda _: engine, now=clock)
    event = sqs_event('{"prompt": "fox", "task_id": "raw"}')
    for _ in range(2):  # where the lost claim sends the message back, it is consumed when it comes again
        done = worker.handle(event, None)
    assert done == {"batchItemFailures": []}
    assert engine.drawn == []
    assert (record_of(store, "raw").status, record_of(store, "raw").fingerprint) == ("cancelled", None)


def test_an_unknown_path(submit: Submit) -> None:
    status, answer = answer_of(submit.handle(http_event("POST", "/generat"), None))
    assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")
