"""Tenants: who is who, and that each meets nothing but what is its own, over HTTP as over SQS."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from handler.api.results import Status
from handler.api.submission import Submit
from handler.api.tenants import tenant_name, tenant_of
from handler.aws.queue import messages_of
from handler.care.deadletters import DeadLetters
from handler.care.redrive import Redrive
from handler.care.rounds import Doctor
from handler.cli.operations import operations
from handler.contract.pointer import pointer_in
from handler.contract.request import parse
from handler.errors import InvalidRequest, ModelUnavailable, NotFound, Unidentified
from handler.settings import Settings
from handler.task import moves
from handler.task.messages import asked_by
from handler.work.serving import Generate

from ..support import Clock, PlainEngine, answer_of, event_of, http_event, nothing, record_of, sqs_event

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.contract.record import Record
    from handler.engine import Engine

FOX = '{"prompt": "fox", "task_id": "mine"}'
OWL = '{"prompt": "owl", "task_id": "mine"}'
BAD_NAMES = ["", " ", "a/b", "../b", "a.b", "-a", "_a", "x" * 64, "a\n", "ä", "tenants/b", "a%2Fb"]
ROLE = "arn:aws:sts::123456789012:assumed-role/caller/session-"


def identified(event: dict[str, Any], **context: Any) -> dict[str, Any]:
    return event | {"requestContext": event["requestContext"] | context}


# Who is who.


def test_off_means_that_nobody_is_told_apart() -> None:
    event = http_event("GET", "/results", headers={"X-API-Key": "alice"})
    assert tenant_of(event, Settings()) is None


@pytest.mark.parametrize(
    ("kind", "context", "expected"),
    [
        ("api-key", {"identity": {"apiKeyId": "a1b2c3", "apiKey": "secret-value"}}, "a1b2c3"),
        ("iam", {"identity": {"userArn": "arn:aws:iam::123456789012:user/alice"}}, None),
        ("iam", {"authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/alice"}}}, None),
        ("jwt", {"authorizer": {"claims": {"sub": "f81d4fae-7dec"}}}, "f81d4fae-7dec"),
        ("jwt", {"authorizer": {"jwt": {"claims": {"sub": "f81d4fae-7dec"}}}}, "f81d4fae-7dec"),
    ],
)
def test_what_api_gateway_found_out_names_the_tenant(kind: str, context: Any, expected: str | None) -> None:
    event = identified(http_event("GET", "/results"), **context)
    assert tenant_of(event, Settings(tenants=kind)) == (expected or tenant_name("arn:aws:iam::123456789012:user/alice"))


def test_sessions_of_one_role_are_one_tenant() -> None:
    """Whoever may assume the role chooses the session's name, so it tells nothing."""
    settings = Settings(tenants="iam")
    first, second = (
        tenant_of(identified(http_event("GET", "/"), identity={"userArn": ROLE + name}), settings) for name in "12"
    )
    other = identified(http_event("GET", "/"), identity={"userArn": ROLE.replace("caller", "other") + "1"})
    assert first == second != tenant_of(other, settings)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("name", ["X-API-Key", "x-api-key"])
def test_on_this_machine_a_header_names_the_tenant(version: str, name: str) -> None:
    event = http_event("GET", "/results", headers={name: "alice"}, version=version)
    assert tenant_of(event, Settings(tenants="header")) == "alice"


@pytest.mark.parametrize("kind", ["api-key", "iam", "jwt"])
def test_a_header_proves_nothing(kind: str) -> None:
    event = http_event("GET", "/results", headers={"X-API-Key": "alice", "Authorization": "alice"})
    with pytest.raises(Unidentified):
        tenant_of(event, Settings(tenants=kind))


@pytest.mark.parametrize("context", [{}, {"identity": None}, {"identity": {"apiKeyId": ""}}, {"identity": "x"}])
def test_nobody_is_not_everybody(context: Any, settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    """With tenants on, whoever cannot be told apart gets nothing: neither a task nor those without a tenant."""
    settings = replace(settings, tenants="api-key")
    Submit(settings, store, queue).submit(FOX)
    for method, path in (
        ("POST", "/generate"),
        ("DELETE", "/results/mine"),
        ("GET", "/results/mine"),
        ("GET", "/results"),
    ):
        event = identified(http_event(method, path, body=OWL if method == "POST" else None), **context)
        handler = Status(settings, store) if method == "GET" else Submit(settings, store, queue)
        code, answer = answer_of(handler.handle(event, None))
        assert (code, answer["error"]["code"]) == (403, "INVALID_REQUEST")
        assert answer["error"]["details"] == [{"field": "x-api-key", "message": "is missing"}]
    assert record_of(store, "mine").status == "pending"


@given(st.text(max_size=80), st.text(max_size=80))
def test_two_identities_never_share_a_name(one: str, other: str) -> None:
    assert (tenant_name(one) == tenant_name(other)) == (one == other)


def test_a_name_that_looks_hashed_is_hashed() -> None:
    """Else a caller who may choose a name could take that of somebody whose identity is hashed."""
    victim = tenant_name("arn:aws:iam::1:user/alice")
    assert tenant_name(victim) != victim


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_store_for_what_is_no_name(store: TaskStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="tenant"):
        store.for_tenant(name)


# What they meet.


@dataclass
class Door:
    """The two light handlers with the header for tenants, as ``darkroom serve --tenants`` has them."""

    submit: Submit
    status: Status

    def __call__(self, tenant: str, method: str, path: str, body: str | None = None, **query: str) -> tuple[int, Any]:
        event = http_event(method, path, body=body, query=query or None, headers={"X-API-Key": tenant})
        handler = self.submit if method in {"POST", "DELETE"} else self.status
        return answer_of(handler.handle(event, None))


@pytest.fixture
def door(settings: Settings, store: TaskStore, queue: TaskQueue) -> Door:
    on = replace(settings, tenants="header")
    return Door(Submit(on, store, queue), Status(on, store))


def drawn(generate: Generate, queue: TaskQueue) -> int:
    """Gives all messages that wait to the handler, as the worker would; how many there were."""
    count = 0
    while messages := queue.receive(10, wait=0):
        for message in messages:
            assert generate.handle(event_of(message), None) == {"batchItemFailures": []}
            queue.delete(message.receipt_handle)
            count += 1
    return count


def test_one_task_id_in_two_tenants_is_two_tasks(
    door: Door, generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    assert door("alice", "POST", "/generate", FOX)[0] == 202
    assert door("bob", "POST", "/generate", OWL)[0] == 202  # no conflict with alice's
    assert drawn(generate, queue) == 2
    assert sorted(plain.drawn) == ["fox", "owl"]
    for tenant, prompt in (("alice", "fox"), ("bob", "owl")):
        code, result = door(tenant, "GET", "/results/mine")
        assert (code, result["status"], result["prompt"]) == (200, "completed", prompt)
        url = result["images"][0]["url"]
        assert f"/tenants/{tenant}/tasks/mine/1/0.png?" in url
        with urllib.request.urlopen(url) as reply:
            assert sha256(reply.read()).hexdigest() == result["images"][0]["sha256"]
        assert door(tenant, "GET", "/results/mine", inline="base64")[1]["image_base64"]
        assert "tenant" not in result
        record = record_of(store.for_tenant(tenant), "mine")
        assert record.tenant == tenant
        assert [image.key for image in record.images] == [f"tenants/{tenant}/tasks/mine/1/0.png"]
    assert store.read("mine") is None


def test_an_unseen_message_is_cancelled_in_its_own_tenant_alone(
    door: Door, generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    for tenant in ("alice", "bob"):
        queue.send(FOX, tenant=tenant)
    assert door("alice", "DELETE", "/results/mine", unseen="1")[0] == 200
    assert record_of(store.for_tenant("alice"), "mine").tenant == "alice"
    assert store.read("mine") is None
    assert store.for_tenant("bob").read("mine") is None
    assert drawn(generate, queue) == 2
    assert plain.drawn == ["fox"]
    assert door("alice", "GET", "/results/mine")[1]["status"] == "cancelled"
    assert door("bob", "GET", "/results/mine")[1]["status"] == "completed"


def test_what_is_anothers_is_not_there(door: Door, generate: Generate, store: TaskStore, queue: TaskQueue) -> None:
    door("alice", "POST", "/generate", FOX)
    before = record_of(store.for_tenant("alice"), "mine")
    nothing = door("bob", "GET", "/results/never")
    assert nothing[0] == 404
    for method, path in (("GET", "/results/mine"), ("DELETE", "/results/mine")):
        code, answer = door("bob", method, path)
        # Word for word what is answered for a task that there never was.
        assert (code, json.dumps(answer).replace("mine", "never")) == (404, json.dumps(nothing[1]))
    assert door("bob", "GET", "/results") == (200, {"results": [], "cursor": None})
    assert record_of(store.for_tenant("alice"), "mine") == before


ODD_PATHS = [
    "../alice/tasks/mine",
    "..%2Falice%2Ftasks%2Fmine",
    "tenants/alice/tasks/mine",
    "tenants%2Falice%2Ftasks%2Fmine",
    "mine/../mine",
    "mine%00",
    "mine/status.json",
    ".",
    "..",
    "%2e%2e",
]


@pytest.mark.parametrize("odd", ODD_PATHS)
def test_no_path_leads_out_of_a_tenant(door: Door, odd: str) -> None:
    door("alice", "POST", "/generate", FOX)
    for tenant in ("alice", "bob"):
        for method in ("GET", "DELETE"):
            for spelled in (odd, unquote(odd)):
                assert door(tenant, method, f"/results/{spelled}")[0] == 404
    assert door("alice", "GET", "/results/mine")[1]["status"] == "pending"


@pytest.mark.parametrize("task_id", ["../x", "a/b", "tenants/alice/tasks/mine", "", "x" * 129])
def test_no_task_can_be_called_what_would_lead_out(door: Door, store: TaskStore, task_id: str) -> None:
    assert door("bob", "POST", "/generate", json.dumps({"prompt": "fox", "task_id": task_id}))[0] == 422
    for read in (store.read, store.for_tenant("bob").read, store.read_checkpoint, store.delete_checkpoint):
        with pytest.raises(NotFound):
            read(task_id)


def test_cursors_lead_through_ones_own_tasks_only(door: Door) -> None:
    for number in range(3):
        for tenant in ("alice", "bob"):
            door(tenant, "POST", "/generate", json.dumps({"prompt": "fox", "task_id": f"{tenant}-{number}"}))
    _, page = door("alice", "GET", "/results", limit="1")
    _, rest = door("bob", "GET", "/results", cursor=page["cursor"])
    assert {one["task_id"] for one in rest["results"]} <= {"bob-0", "bob-1", "bob-2"}
    for cursor in ("../../alice/index/", "9" * 13 + "-../x", page["cursor"] + "/../../alice"):
        assert door("bob", "GET", "/results", cursor=cursor)[0] == 422


@pytest.mark.parametrize("key", ["tenants/alice/tasks/a/1/0.png", "tasks/a/1/0.png", "health/model.json", "elsewhere"])
def test_a_store_neither_signs_nor_touches_what_is_anothers(store: TaskStore, key: str) -> None:
    """Should a record ever name a foreign key, whoever wrote it."""
    bob = store.for_tenant("bob")
    for act in (bob.presign, bob.read_image, bob.delete_image, lambda key: bob.put_image(key, b"", "image/png")):
        with pytest.raises(NotFound):
            act(key)
    with pytest.raises(NotFound):
        store.presign("tenants/alice/tasks/a/1/0.png")


# Through the queue.


def test_a_senders_attribute_names_the_tenant(
    generate: Generate, store: TaskStore, queue: TaskQueue, settings: Settings, status: Status
) -> None:
    sqs = boto3.client("sqs", "us-east-1", endpoint_url=settings.aws_endpoint_url)
    attribute: Any = {"tenant": {"DataType": "String", "StringValue": "alice"}}
    sqs.send_message(QueueUrl=settings.queue_url, MessageBody=FOX, MessageAttributes=attribute)
    assert drawn(generate, queue) == 1
    assert status.for_tenant("alice").result("mine")["status"] == "completed"
    with pytest.raises(NotFound):
        status.result("mine")


@pytest.mark.parametrize("tenant", ["../bob", "a/b", "a.b", " ", "x" * 64, "ä"])
def test_a_bad_tenant_is_a_bad_message(generate: Generate, store: TaskStore, plain: PlainEngine, tenant: str) -> None:
    """Not another's task under the body's name: the record stands under the MessageId, without a tenant."""
    event = sqs_event(FOX, ids=["m-1"], tenant=tenant)
    assert generate.handle(event, None) == {"batchItemFailures": []}
    record = record_of(store, "m-1")
    assert (record.status, record.tenant, record.request) == ("failed", None, None)
    assert record.error is not None
    assert (record.error.code, record.error.details[0].field) == ("INVALID_REQUEST", "tenant")
    assert plain.drawn == []
    assert list(store.all_tenants())[1:] == []
    assert store.read("mine") is None


def test_an_attribute_that_is_no_text_is_a_bad_tenant(
    generate: Generate, store: TaskStore, queue: TaskQueue, settings: Settings
) -> None:
    sqs = boto3.client("sqs", "us-east-1", endpoint_url=settings.aws_endpoint_url)
    attribute: Any = {"tenant": {"DataType": "Binary", "BinaryValue": b"alice"}}
    sent = sqs.send_message(QueueUrl=settings.queue_url, MessageBody=FOX, MessageAttributes=attribute)
    assert drawn(generate, queue) == 1
    assert record_of(store, sent["MessageId"]).status == "failed"


def test_what_lambda_says_of_an_attribute_is_what_sqs_says(queue: TaskQueue) -> None:
    queue.send(FOX, tenant="alice")
    (message,) = queue.receive(wait=1)
    assert message.tenant == "alice"
    assert messages_of(event_of(message)) == [message]


def test_a_bad_message_fails_in_its_own_tenant(generate: Generate, store: TaskStore) -> None:
    generate.handle(sqs_event('{"prompt": ""}', ids=["m-1"], tenant="alice"), None)
    generate.handle(sqs_event(FOX, ids=["m-2"], tenant="alice"), None)
    generate.handle(sqs_event(OWL, ids=["m-3"], tenant="alice"), None)
    for message_id, code in (("m-1", "INVALID_REQUEST"), ("m-3", "CONFLICT")):
        record = record_of(store.for_tenant("alice"), message_id)
        assert record.error is not None
        assert (record.status, record.tenant, record.error.code) == ("failed", "alice", code)
        assert store.read(message_id) is None


def test_without_a_model_a_task_waits_in_its_own_tenant(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    def load(_: Settings) -> Engine:
        raise ModelUnavailable("no weights")

    generate = Generate(settings, store, queue, load, now=clock)
    generate.handle(sqs_event(FOX, ids=["m-1"], tenant="alice"), None)
    generate.handle(sqs_event(FOX, ids=["m-2"], tenant="no/body"), None)
    assert record_of(store.for_tenant("alice"), "mine").status == "pending"
    assert [(one.tenant, one.task_id) for one in store.open_tasks()] == [("alice", "mine")]


def test_a_suspended_task_goes_on_in_its_own_tenant(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    first = Generate(settings, store, queue, lambda _: plain)
    plain.between = first.suspend
    first.handle(sqs_event(FOX, ids=["m-1"], tenant="alice"), None)
    alice = store.for_tenant("alice")
    assert alice.read_checkpoint("mine") == b"step by step"
    assert store.read_checkpoint("mine") == b""
    plain.between = nothing
    assert drawn(Generate(settings, store, queue, lambda _: plain), queue) == 1
    assert record_of(alice, "mine").status == "completed"
    assert plain.resumed[-1] == b"step by step"
    assert alice.read_checkpoint("mine") == b""


def test_a_preview_is_its_tenants(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> None:
    shown = []
    status = Status(settings, store).for_tenant("alice")

    def look() -> None:
        sleep(0.2)
        shown.append(record_of(store.for_tenant("alice"), "mine").preview)
        if url := status.result("mine")["preview_url"]:
            with urllib.request.urlopen(url) as reply:
                assert reply.read() == b"a thumbnail"

    plain.between = look
    eager = replace(settings, previews=True, first_beat=0, beat_every=0.1)
    Generate(eager, store, queue, lambda _: plain).handle(sqs_event(FOX, tenant="alice"), None)
    assert "tenants/alice/tasks/mine/preview.jpg" in shown


def tried_once(clock: Clock, tenant: str | None) -> Record:
    """A task whose only try is used up."""
    asked = parse(FOX).accept()
    return moves.create("mine", asked, 7, clock(), timedelta(days=30), tenant).model_copy(update={"tries": 1})


def test_the_last_word_is_spoken_in_the_tasks_own_tenant(settings: Settings, store: TaskStore, clock: Clock) -> None:
    letters = DeadLetters(replace(settings, max_tries=1), store, None, now=clock)
    alice = store.for_tenant("alice")
    alice.create(tried_once(clock, "alice"))
    event = sqs_event(FOX, ids=["m-1"], tenant="alice")
    assert letters.handle(event, None) == {"batchItemFailures": []}
    record = record_of(alice, "mine")
    assert (record.status, record.tenant) == ("failed", "alice")
    letters.handle(sqs_event('{"prompt": "owl"}', ids=["m-3"], tenant="alice"), None)
    assert record_of(alice, "m-3").status == "pending"  # never seen by a worker
    letters.handle(sqs_event(FOX, ids=["m-2"], tenant="no/body"), None)
    lost = record_of(store, "m-2")
    assert lost.error is not None
    assert (lost.status, lost.tenant, lost.error.code) == ("failed", None, "RETRIES_EXHAUSTED")
    assert store.read("mine") is None


def test_an_operator_sees_every_tenant(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> None:
    clock.time = datetime.now(UTC)
    for tenant in (None, "alice", "bob"):
        Submit(settings, store, queue, now=clock).for_tenant(tenant).submit(FOX)
    while messages := queue.receive(10, wait=0):
        for message in messages:
            queue.delete(message.receipt_handle)
    clock.forward(24 * 3600)
    findings = Doctor(settings, store, queue, now=clock).examine(fix=True)
    assert [(one.tenant, one.task_id, one.mended) for one in findings] == [
        (None, "mine", True),
        ("alice", "mine", True),
        ("bob", "mine", True),
    ]
    pointers = [pointer_in(message.body) for message in queue.receive(10, wait=1)]
    assert sorted(str(one.tenant) for one in pointers if one) == ["None", "alice", "bob"]


def test_the_doctor_clears_up_after_each_tenant_and_touches_no_others(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, generate: Generate
) -> None:
    alice, bob = store.for_tenant("alice"), store.for_tenant("bob")
    for own in (alice, bob):
        own.put_image(own.image_key("mine", 1, 7, "png"), b"an image that the record does not name", "image/png")
        own.put_checkpoint("mine", b"steps")
        own.put_image(own.preview_key("mine"), b"a thumbnail", "image/jpeg")
        generate.handle(sqs_event(FOX, tenant=own.tenant), None)
        own.open("mine")  # as an attempt that is not the first leaves it
    clock.time = datetime.now(UTC) + timedelta(days=1, minutes=1)
    bob.close("mine")
    findings = Doctor(settings, store, queue, now=clock).examine(fix=True)
    assert [(one.tenant, one.kind, one.mended) for one in findings] == [("alice", "left behind", True)]
    assert alice.read_image(alice.image_key("mine", 1, 0, "png"))
    with pytest.raises(NotFound):
        alice.read_image(alice.image_key("mine", 1, 7, "png"))
    assert bob.read_image(bob.image_key("mine", 1, 7, "png"))
    assert (alice.read_checkpoint("mine"), bob.read_checkpoint("mine")) == (b"", b"steps")


def test_a_redriven_task_goes_back_to_its_own_tenant(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    letters = DeadLetters(replace(settings, max_tries=1), store, None, now=clock)
    for tenant in ("alice", "bob"):
        store.for_tenant(tenant).create(tried_once(clock, tenant))
        letters.handle(sqs_event(FOX, tenant=tenant), None)
    Redrive(store.for_tenant("alice"), queue, now=clock).one("mine")
    assert record_of(store.for_tenant("alice"), "mine").status == "pending"
    assert record_of(store.for_tenant("bob"), "mine").status == "failed"
    (message,) = queue.receive(10, wait=1)
    assert asked_by(message).tenant == "alice"


def test_redrive_on_the_command_line(
    environ: dict[str, str], settings: Settings, store: TaskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    letters = DeadLetters(replace(settings, max_tries=1), store, None, now=clock)
    for tenant in (None, "alice", "bob"):
        own = store.for_tenant(tenant)
        own.announce(tried_once(clock, tenant))
        own.create(tried_once(clock, tenant))
        letters.handle(sqs_event(FOX, tenant=tenant), None)
    shown = CliRunner().invoke(operations, ["redrive", "--task", "mine", "--tenant", "alice"]).stdout
    assert shown == "mine of alice is pending again, after 0 attempts\n"
    shown = CliRunner().invoke(operations, ["redrive", "--all", "--json"]).stdout
    assert [json.loads(line)["tenant"] for line in shown.splitlines()] == [None, "bob"]
    assert CliRunner().invoke(operations, ["redrive", "--all", "--tenant", "no/body"]).exit_code != 0
