"""The event bus: who is told of what, on moto, whose rule leads to a queue, and on a server that answers badly."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest

from handler.api.submission import Submit
from handler.aws.events import DETAIL_TYPE, SOURCE, TRIES, Bus
from handler.aws.listing import AGAIN
from handler.aws.store import TaskStore
from handler.care.deadletters import DeadLetters
from handler.care.redrive import Redrive
from handler.care.rounds import ORPHANED_AFTER, Doctor
from handler.contract.record import Record
from handler.errors import Internal, OutOfMemory, ServiceFault, Suspended
from handler.work.serving import Generate

from ..infra.template import Template, read
from ..support import Clock, PlainEngine, held, record_of, sqs_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.settings import Settings

FOX = '{"prompt": "a fox that nobody may hear of", "task_id": "mine", "tags": ["secret"]}'


@dataclass
class Heard:
    """A bus, and what it has passed on since it was asked last."""

    name: str
    _sqs: Any
    _url: str

    def events(self) -> list[dict[str, Any]]:
        found = []
        while messages := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            for one in messages:
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=one["ReceiptHandle"])
                found.append(json.loads(one["Body"]))
        return found

    def ends(self) -> list[tuple[str, str, str | None]]:
        said = [one["detail"] for one in self.events()]
        return [(one["task_id"], one["status"], one["error"]) for one in said]


@pytest.fixture
def heard(endpoint: str) -> Heard:
    session = boto3.Session(region_name="us-east-1")
    events, sqs = session.client("events", endpoint_url=endpoint), session.client("sqs", endpoint_url=endpoint)
    name = f"ends-{uuid4().hex[:8]}"
    events.create_event_bus(Name=name)
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    pattern = json.dumps({"source": [SOURCE], "detail-type": [DETAIL_TYPE]})
    events.put_rule(Name="all", EventBusName=name, EventPattern=pattern)
    events.put_targets(Rule="all", EventBusName=name, Targets=[{"Id": "queue", "Arn": arn}])
    return Heard(name, sqs, url)


@pytest.fixture
def settings(settings: Settings, heard: Heard) -> Settings:
    return replace(settings, event_bus=heard.name, max_tries=2)


@pytest.fixture
def letters(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> DeadLetters:
    return DeadLetters(settings, store, None, queue, now=clock, new_seed=lambda: 6)


def begun(store: TaskStore, clock: Clock, *, tries: int = 0) -> Record:
    """A task whose attempt is going on."""
    store.open("mine")
    return held(store, clock, tries=tries)


def listed(store: TaskStore) -> dict[str, bool]:
    """The names on the list of open tasks, and whether their ends were told."""
    return {one.name: one.told for one in store.open_tasks()}


def rounds(doctor: Doctor, later: Clock) -> list[tuple[str, bool]]:
    """All that the doctor does until a day is over."""
    found: list[tuple[str, bool]] = []
    for seconds in (0, 1000, 1000, ORPHANED_AFTER.total_seconds(), 1000):
        later.forward(seconds)
        found += [(one.kind, one.mended) for one in doctor.examine(fix=True)]
    return found


@pytest.mark.contract
def test_an_event_says_how_a_task_ended_and_nothing_of_what_it_was(
    generate: Generate, heard: Heard, store: TaskStore, clock: Clock
) -> None:
    generate.handle(sqs_event(FOX, tenant="alice"), None)
    (event,) = heard.events()
    record = record_of(store.for_tenant("alice"), "mine")
    assert record.completed_at is not None
    assert (event["source"], event["detail-type"], event["resources"]) == ("darkroom", "Task ended", [])
    assert event["detail"] == {
        "task_id": "mine",
        "tenant": "alice",
        "status": "completed",
        "sequence": record.sequence,
        "created_at": record.created_at.isoformat(),
        "completed_at": record.completed_at.isoformat(),
        "error": None,
        "images": 1,
        "attempts": 1,
        "seconds": record.spent_seconds,
        "model": "built-in",
    }
    text = json.dumps(event)
    assert not [word for word in ("fox", "secret", "://", "tasks/", ".png") if word in text]
    assert listed(store) == {}


def test_of_a_model_in_s3_its_folder_is_named(generate: Generate, heard: Heard, plain: PlainEngine) -> None:
    plain.card = plain.card.model_copy(update={"id": "s3://my-bucket/models/sdxl/"})
    generate.handle(sqs_event(FOX), None)
    assert [one["detail"]["model"] for one in heard.events()] == ["sdxl"]


def test_a_bus_may_be_named_by_its_arn(settings: Settings, heard: Heard, clock: Clock, submit: Submit) -> None:
    arn = f"arn:aws:events:us-east-1:123456789012:event-bus/{heard.name}"
    store = TaskStore(replace(settings, event_bus=arn))
    Submit(settings, store, None, now=clock).cancel("mine", unseen=True)  # type: ignore[arg-type]
    assert heard.ends() == [("mine", "cancelled", "CANCELLED")]


@pytest.mark.contract
def test_whoever_draws_tells_once(
    generate: Generate, heard: Heard, doctor: Doctor, later: Clock, plain: PlainEngine, store: TaskStore
) -> None:
    generate.handle(sqs_event(FOX), None)
    generate.handle(sqs_event(FOX), None)  # a late duplicate
    plain.fault = OutOfMemory("too large")
    generate.handle(sqs_event('{"prompt": "owl", "task_id": "large"}'), None)
    generate.handle(sqs_event('{"prompt": "", "task_id": "empty"}', "nonsense", ids=["m-1", "m-2"]), None)
    refused = [("empty", "failed", "INVALID_REQUEST"), ("m-2", "failed", "INVALID_REQUEST")]
    ended = [("mine", "completed", None), ("large", "failed", "OUT_OF_MEMORY"), *refused]
    assert sorted(heard.ends()) == sorted(ended)
    assert listed(store) == {}
    rounds(doctor, later)
    assert heard.ends() == []


def test_who_gives_up_tells_once(
    generate: Generate, heard: Heard, doctor: Doctor, later: Clock, plain: PlainEngine, store: TaskStore
) -> None:
    """Its task may have left something, so it stays listed; its place says that it was told."""
    plain.fault = Internal("it broke")
    for name in ("m-1", "m-2"):
        generate.handle(sqs_event(FOX, ids=[name]), None)
    assert heard.ends() == [("mine", "failed", "RETRIES_EXHAUSTED")]
    assert listed(store) == {"-/mine": True}
    rounds(doctor, later)
    assert (heard.ends(), listed(store)) == ([], {})


def test_a_worker_that_meets_a_task_over_its_limits_tells_once(
    generate: Generate, heard: Heard, doctor: Doctor, later: Clock, store: TaskStore
) -> None:
    record = begun(store, later, tries=2)
    later.forward(100)
    generate.handle(sqs_event(record.pointer()), None)
    assert heard.ends() == [("mine", "failed", "RETRIES_EXHAUSTED")]
    rounds(doctor, later)
    assert heard.ends() == []


def cancel(submit: Submit) -> None:
    submit.cancel("mine")


def test_a_caller_who_cancels_is_told_once(
    submit: Submit, generate: Generate, heard: Heard, doctor: Doctor, later: Clock, plain: PlainEngine, store: TaskStore
) -> None:
    submit.submit('{"prompt": "owl", "task_id": "waits"}')
    submit.cancel("waits")
    submit.cancel("waits")
    submit.cancel("unseen", unseen=True)
    plain.between = lambda: cancel(submit)
    generate.handle(sqs_event(FOX), None)
    assert sorted(heard.ends()) == [(name, "cancelled", "CANCELLED") for name in ("mine", "unseen", "waits")]
    assert listed(store) == {"-/mine": True}
    rounds(doctor, later)
    assert heard.ends() == []


def test_dead_letters_tell_once(
    letters: DeadLetters, submit: Submit, heard: Heard, doctor: Doctor, later: Clock, store: TaskStore
) -> None:
    record = begun(store, later, tries=2)
    later.forward(100)
    letters.handle(sqs_event(record.pointer(), "nonsense", ids=["m-1", "m-2"]), None)
    exhausted = [(name, "failed", "RETRIES_EXHAUSTED") for name in ("m-2", "mine")]
    assert sorted(heard.ends()) == exhausted
    rounds(doctor, later)
    assert heard.ends() == []


def test_the_doctor_tells_once(doctor: Doctor, heard: Heard, later: Clock, store: TaskStore) -> None:
    begun(store, later, tries=1)
    later.forward(2000)
    assert [one.kind for one in doctor.examine(fix=True)] == ["processing without a worker"]
    assert heard.ends() == [("mine", "failed", "RETRIES_EXHAUSTED")]
    rounds(doctor, later)
    assert heard.ends() == []


def test_what_goes_on_and_what_is_purged_is_no_end(
    submit: Submit, generate: Generate, heard: Heard, plain: PlainEngine
) -> None:
    submit.submit('{"prompt": "owl", "task_id": "waits"}')
    plain.fault = Suspended("the worker stops")
    generate.handle(sqs_event(FOX, ids=["m-1"]), None)
    plain.fault = None
    assert heard.ends() == []
    submit.cancel("waits")
    assert heard.ends() == [("waits", "cancelled", "CANCELLED")]
    submit.purge("waits")
    submit.purge("waits")
    assert heard.ends() == []


def test_each_end_of_a_task_is_told(
    generate: Generate,
    heard: Heard,
    doctor: Doctor,
    later: Clock,
    plain: PlainEngine,
    store: TaskStore,
    queue: TaskQueue,
) -> None:
    """A task that is redriven ends twice; of the second end the doctor tells once more."""
    plain.fault = OutOfMemory("too large")
    generate.handle(sqs_event(FOX), None)
    plain.fault = None
    Redrive(store, queue, now=later).one("mine")
    (message,) = queue.receive(wait=1)
    generate.handle(sqs_event(message.body), None)
    first, second = (one["detail"] for one in heard.events())
    assert (first["status"], second["status"]) == ("failed", "completed")
    assert second["sequence"] > first["sequence"]
    rounds(doctor, later)
    assert [one["detail"] for one in heard.events()] == [second]
    assert listed(store) == {}


def unheard(settings: Settings, queue: TaskQueue, clock: Clock) -> Submit:
    """Of a process that cannot reach the bus."""
    nowhere = replace(settings, aws_endpoint_url_eventbridge="http://127.0.0.1:9")
    return Submit(nowhere, TaskStore(nowhere), queue, now=clock)


@pytest.mark.contract
def test_what_could_not_be_told_the_doctor_tells(
    settings: Settings, queue: TaskQueue, store: TaskStore, heard: Heard, doctor: Doctor, later: Clock
) -> None:
    submit = unheard(settings, queue, later)
    assert submit.for_tenant("alice").cancel("mine", unseen=True).status == "cancelled"
    assert record_of(store.for_tenant("alice"), "mine").status == "cancelled"
    assert listed(store) == {"alice/mine": False}
    assert doctor.examine(fix=True) == []  # its process may be about to
    later.forward(1000)
    assert [(one.kind, one.mended) for one in doctor.examine(fix=False)] == [("ended untold", False)]
    assert heard.ends() == []
    assert [(one.kind, one.tenant, one.mended) for one in doctor.examine(fix=True)] == [("ended untold", "alice", True)]
    assert heard.ends() == [("mine", "cancelled", "CANCELLED")]
    assert listed(store) == {"alice/mine": True}
    assert rounds(doctor, later) == []
    assert (heard.ends(), listed(store)) == ([], {})


def test_a_process_that_dies_before_it_tells_leaves_that_to_the_doctor(
    settings: Settings, store: TaskStore, heard: Heard, doctor: Doctor, later: Clock
) -> None:
    silent = TaskStore(replace(settings, event_bus=""))  # as far as it came
    record = begun(silent, later)
    stored = silent.read("mine")
    assert stored is not None
    ended = record.next(status="completed", completed_at=later(), lease=None)
    silent.change(stored, ended)
    assert rounds(doctor, later) == [("ended untold", True)]
    assert heard.ends() == [("mine", "completed", None)]


def test_the_doctor_tries_until_the_bus_takes_it(
    settings: Settings, queue: TaskQueue, store: TaskStore, heard: Heard, doctor: Doctor, later: Clock
) -> None:
    """However late that is: nothing is struck off the list untold."""
    unheard(settings, queue, later).cancel("mine", unseen=True)
    nowhere = replace(settings, aws_endpoint_url_eventbridge="http://127.0.0.1:9")
    deaf = Doctor(nowhere, TaskStore(nowhere), queue, now=later)
    for _ in range(3):
        later.forward(ORPHANED_AFTER.total_seconds())
        assert [(one.kind, one.mended) for one in deaf.examine(fix=True)] == [("ended untold", False)]
    assert listed(store) == {"-/mine": False}
    assert [(one.kind, one.mended) for one in doctor.examine(fix=True)] == [("ended untold", True)]
    assert heard.ends() == [("mine", "cancelled", "CANCELLED")]
    assert listed(store) == {}


def test_what_began_anew_meanwhile_is_not_marked_as_told(
    settings: Settings, queue: TaskQueue, store: TaskStore, heard: Heard, later: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redrive between the doctor's event and its note."""
    begun(store, later)
    stored = store.read("mine")
    assert stored is not None
    record = Record.from_json(stored.body)
    silent = TaskStore(replace(settings, event_bus=""))
    silent.change(stored, record.next(status="failed", completed_at=later(), lease=None))
    silent.open("mine", again=True)
    tell, redrive = Bus.tell, Redrive(silent, queue, now=later)

    def late(self: Bus, record: Record) -> bool:
        told = tell(self, record)
        if record_of(store, "mine").status == "failed":
            redrive.one("mine")
        return told

    monkeypatch.setattr(Bus, "tell", late)
    later.forward(2000)
    Doctor(settings, store, queue, now=later).examine(fix=True)
    assert record_of(store, "mine").status == "pending"
    assert listed(store)[f"-/mine{AGAIN}"] is False


def test_without_a_bus_nothing_is_noted(
    settings: Settings, queue: TaskQueue, store: TaskStore, heard: Heard, later: Clock
) -> None:
    mute = replace(settings, event_bus="")
    without = TaskStore(mute)
    begun(without, later)
    Submit(mute, without, queue, now=later).cancel("mine")
    assert listed(store) == {"-/mine": False}
    assert rounds(Doctor(mute, without, queue, now=later), later) == []
    assert (heard.ends(), listed(store)) == ([], {})


@pytest.mark.emulators
def test_the_webhook_of_the_template_is_called(
    endpoint: str, settings: Settings, queue: TaskQueue, later: Clock, away: Away
) -> None:
    """Its connection, destination and rule, made one by one: MiniStack's CloudFormation does not know the first two."""
    chosen = {"BusName": settings.event_bus, "WebhookUrl": "https://example.com", "WebhookSecret": "s3cret"}
    events = boto3.client("events", endpoint_url=endpoint, region_name="us-east-1")

    def made(name: str, **arns: str) -> Any:
        attributes = {one: {"Arn": arn, "Ref": settings.event_bus} for one, arn in arns.items()}
        return Template(read("events.yaml"), chosen, attributes).resources()[name]["Properties"]

    connection = events.create_connection(Name=f"{settings.event_bus}-c", **made("Connection"))["ConnectionArn"]
    there = made("Destination", Connection=connection)
    there |= {"InvocationEndpoint": away.url, "InvocationRateLimitPerSecond": 10}  # the template takes https alone
    destination = events.create_api_destination(Name=f"{settings.event_bus}-d", **there)["ApiDestinationArn"]
    rule = made("Webhook", Bus="", Destination=destination, CallRole="arn:aws:iam::000000000000:role/call")
    bus = rule["EventBusName"]
    events.put_rule(Name="hook", EventBusName=bus, EventPattern=json.dumps(rule["EventPattern"]))
    (target,) = rule["Targets"]
    events.put_targets(
        Rule="hook", EventBusName=bus, Targets=[target | {"DeadLetterConfig": {"Arn": queue_arn(settings)}}]
    )
    Submit(settings, TaskStore(settings), queue, now=later).cancel("mine", unseen=True)
    until = time.monotonic() + 10
    while not away.asked and time.monotonic() < until:
        time.sleep(0.05)
    headers, body = away.last
    assert headers["X-Darkroom-Secret"] == "s3cret"
    assert (body["source"], body["detail"]["task_id"], body["detail"]["status"]) == ("darkroom", "mine", "cancelled")


def queue_arn(settings: Settings) -> str:
    return f"arn:aws:sqs:us-east-1:000000000000:{settings.queue_url.rpartition('/')[2]}"


@dataclass(frozen=True)
class Answer:
    """``length``: what its header says, where that is not true; ``hangs``: seconds before it."""

    status: int = 200
    body: bytes = b'{"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}'
    length: int | None = None
    hangs: float = 0.0


def error(status: int, code: str) -> Answer:
    return Answer(status, json.dumps({"__type": code, "message": "no"}).encode())


@dataclass
class Away:
    """A server that gives one answer: EventBridge's stand-in, or a webhook. ``last``: what it was sent."""

    answer: Answer = field(default_factory=Answer)
    asked: int = 0
    url: str = ""
    last: tuple[dict[str, str], Any] = ({}, None)


@pytest.fixture
def away() -> Iterator[Away]:
    there = Away()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            there.last = dict(self.headers), json.loads(body)
            there.asked += 1
            time.sleep(there.answer.hangs)
            self.send_response(there.answer.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(there.answer.length or len(there.answer.body)))
            self.end_headers()
            self.wfile.write(there.answer.body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    yield there
    server.shutdown()
    server.server_close()
    thread.join()


ANSWERS = {
    "refused": (error(400, "AccessDeniedException"), 1),
    "throttled": (error(400, "ThrottlingException"), TRIES),
    "no such bus": (error(400, "ResourceNotFoundException"), 1),
    "broken": (error(500, "InternalException"), TRIES),
    "somewhere on the way": (Answer(503, b"<html>no</html>"), TRIES),
    "not taken": (
        Answer(body=b'{"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure", "ErrorMessage": "no"}]}'),
        1,
    ),
    "empty": (Answer(body=b"{}"), 1),
    "cut short": (Answer(body=b'{"FailedEntryCount": 0, "Ent'), 1),
    "torn": (Answer(body=b'{"FailedEntryCount": 0', length=5000), 1),
    "late": (Answer(hangs=3), TRIES),
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_bus_in_trouble_undoes_nothing(
    fault: str,
    settings: Settings,
    queue: TaskQueue,
    later: Clock,
    plain: PlainEngine,
    away: Away,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away.answer, asked = ANSWERS[fault]
    there = replace(settings, aws_endpoint_url_eventbridge=away.url)
    store = TaskStore(there)
    generate = Generate(there, store, queue, lambda _: plain, now=later, worker="w")
    began = time.monotonic()
    assert generate.handle(sqs_event(FOX), None) == {"batchItemFailures": []}
    assert time.monotonic() - began < 10
    assert record_of(store, "mine").status == "completed"
    assert away.asked == asked
    assert listed(store) == {"-/mine": False}
    assert "the doctor will tell it" in caplog.text
    away.answer = Answer()
    later.forward(1000)
    (found,) = Doctor(there, TaskStore(there), queue, now=later).examine(fix=True)
    assert (found.kind, found.mended, listed(store)) == ("ended untold", True, {"-/mine": True})


def test_a_bus_that_does_not_answer_is_left_alone_for_a_while(
    settings: Settings, queue: TaskQueue, later: Clock, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every task's end, and the doctor's round, would wait for it."""
    away.answer = Answer(hangs=0.3)
    monkeypatch.setattr("handler.aws.events.ANSWER_WITHIN", 0.1)
    there = replace(settings, aws_endpoint_url_eventbridge=away.url)
    store = TaskStore(there)
    submit = Submit(there, store, queue, now=later)
    submit.cancel("first", unseen=True)
    asked = away.asked
    submit.cancel("second", unseen=True)
    assert (asked, away.asked) == (TRIES, TRIES)
    assert listed(store) == {"-/first": False, "-/second": False}
    monkeypatch.setattr("handler.aws.events.ANSWER_WITHIN", 2)
    away.answer = Answer()
    later.forward(1000)
    assert [one.mended for one in Doctor(there, store, queue, now=later).examine(fix=True)] == [False, False]
    assert away.asked == TRIES
    assert [one.mended for one in Doctor(there, TaskStore(there), queue, now=later).examine(fix=True)] == [True, True]


def test_a_round_tells_so_many_and_the_next_goes_on(
    settings: Settings, queue: TaskQueue, heard: Heard, doctor: Doctor, later: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for a bus that was away does not keep the doctor from all the others."""
    monkeypatch.setattr("handler.care.rounds.MOST_SENDS", 2)
    submit = unheard(settings, queue, later)
    for number in range(5):
        submit.cancel(f"t{number}", unseen=True)
    later.forward(1000)
    rounds = [[one.task_id for one in doctor.examine(fix=True)] for _ in range(4)]
    assert rounds == [["t0", "t1"], ["t2", "t3"], ["t4"], []]
    assert [name for name, *_ in heard.ends()] == ["t0", "t1", "t2", "t3", "t4"]


def test_settings_that_no_client_takes_undo_nothing(settings: Settings, store: TaskStore, later: Clock) -> None:
    bad = TaskStore(settings)
    bad.bus._settings = replace(settings, aws_region="no region")
    begun(bad, later)
    stored = bad.read("mine")
    assert stored is not None
    bad.change(stored, Record.from_json(stored.body).next(status="cancelled", completed_at=later(), lease=None))
    bad.close("mine")
    assert listed(store) == {"-/mine": False}


def test_a_process_that_ends_no_task_makes_no_client(submit: Submit, store: TaskStore) -> None:
    submit.submit(FOX)
    assert store.bus._events is None


def test_a_failure_of_s3_is_told_of_nobody(settings: Settings, store: TaskStore, later: Clock, heard: Heard) -> None:
    record = begun(store, later)
    lost = TaskStore(replace(settings, bucket="nowhere-at-all"))
    stored = store.read("mine")
    assert stored is not None
    with pytest.raises(ServiceFault):
        lost.change(stored, record.next(status="cancelled", completed_at=later(), lease=None))
    assert heard.ends() == []
