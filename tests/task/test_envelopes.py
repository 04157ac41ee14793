"""Requests in the envelopes of other services; what only looks like one is left as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import obstore
import pytest

from handler.aws.queue import TaskQueue
from handler.care.deadletters import DeadLetters
from handler.contract.record import Record
from handler.task.envelopes import MOST_KEPT, beginning, unwrapped

from ..support import sqs_event

if TYPE_CHECKING:
    from handler.aws.store import TaskStore
    from handler.cli.local.aws import Resources
    from handler.settings import Settings
    from handler.work.serving import Generate

    from ..support import PlainEngine

REQUEST = '{"prompt": "fox", "task_id": "fox-1"}'


def sns(message: str, **more: Any) -> str:
    """As SNS documents it, without raw message delivery."""
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
            "Subject": "My First Message",
            "Message": message,
            "Timestamp": "2012-05-02T00:54:06.655Z",
            "SignatureVersion": "1",
            "Signature": "EXAMPLEw6JRN",
            "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService.pem",
            "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe",
            **more,
        }
    )


def event(detail: Any, **more: Any) -> str:
    """As EventBridge documents it."""
    return json.dumps(
        {
            "version": "0",
            "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
            "detail-type": "picture wanted",
            "source": "my.shop",
            "account": "111122223333",
            "time": "2017-12-22T18:43:48Z",
            "region": "us-west-1",
            "resources": [],
            "detail": detail,
            **more,
        }
    )


def piped(body: str) -> str:
    """As a pipe from a queue sends it on."""
    return json.dumps({**sqs_event(body, ids=["m-0"])["Records"][0], "awsRegion": "us-east-1"})


@pytest.mark.parametrize(
    "body",
    [
        REQUEST,
        sns(REQUEST),
        event(json.loads(REQUEST)),
        piped(REQUEST),
        sns(event(json.loads(REQUEST))),
        piped(sns(REQUEST)),
    ],
    ids=["raw", "sns", "eventbridge", "pipe", "eventbridge-in-sns", "sns-in-pipe"],
)
def test_a_request_is_drawn_however_it_is_wrapped(generate: Generate, store: TaskStore, body: str) -> None:
    assert generate.handle(sqs_event(body, ids=["m-1"]), None) == {"batchItemFailures": []}
    stored = store.read("fox-1")
    assert stored is not None
    assert Record.from_json(stored.body).status == "completed"


@pytest.mark.parametrize(
    "body",
    [
        sns(REQUEST, Type="SubscriptionConfirmation"),
        sns(REQUEST, prompt="fox"),
        event(REQUEST),
        event(json.loads(REQUEST), prompt="fox"),
        '{"Message": "fox", "Type": "Notification"}',
        "[]",
        "{",
        "fox",
        "",
        "[" * 5000,
        "{" * 5000,
    ],
)
def test_what_only_looks_like_one_is_left_as_it_is(body: str) -> None:
    assert unwrapped(body) == body


def test_wrapping_has_an_end() -> None:
    deep = REQUEST
    for _ in range(10):
        deep = sns(deep)
    assert unwrapped(deep).startswith('{"Type"')


@pytest.mark.parametrize("body", ["no JSON at all", '{"prompt": 5}', '{"promt": "fox"}', sns("hello"), "ü" * 5000])
def test_what_is_no_request_is_kept_in_the_failed_record(generate: Generate, store: TaskStore, body: str) -> None:
    generate.handle(sqs_event(body, ids=["m-1"]), None)
    stored = store.read("m-1")
    assert stored is not None
    record = Record.from_json(stored.body)
    assert (record.status, record.body) == ("failed", beginning(unwrapped(body)))
    assert len((record.body or "").encode()) <= MOST_KEPT


def test_what_asks_for_the_name_of_another_is_kept_too(generate: Generate, store: TaskStore) -> None:
    generate.handle(sqs_event(REQUEST, ids=["m-1"]), None)
    other = '{"prompt": "owl", "task_id": "fox-1"}'
    generate.handle(sqs_event(other, ids=["m-2"]), None)
    stored = store.read("m-2")
    assert stored is not None
    assert Record.from_json(stored.body).body == other


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
        {"warmup": True},
        {"Records": None},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}]},
        {"Service": "Amazon S3", "Event": "s3:TestEvent"},
    ],
)
def test_events_that_are_none_of_ours_do_nothing(generate: Generate, store: TaskStore, foreign: dict[str, Any]) -> None:
    assert generate.handle(foreign, None) == {"batchItemFailures": []}
    assert store.newest(10, None)[0] == []


def notified(bucket: str, key: str, sequencer: str = "0055AED6DCD90281E5") -> str:
    """As S3 documents what it sends to a queue."""
    about = {
        "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
        "object": {"key": key, "sequencer": sequencer},
    }
    told = {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": about}
    return json.dumps({"Records": [told]})


def by_eventbridge(bucket: str, key: str, sequencer: str = "0055AED6DCD90281E5") -> str:
    """As EventBridge documents an "Object Created" event."""
    about = {"version": "0", "bucket": {"name": bucket}, "object": {"key": key, "size": 5, "sequencer": sequencer}}
    told = {**about, "request-id": "N4N7GDK58NMKJ12R", "reason": "PutObject"}
    return event(told, source="aws.s3", **{"detail-type": "Object Created"})


def detail_alone(bucket: str, key: str, sequencer: str = "0055AED6DCD90281E5") -> str:
    """As a rule with the input path ``$.detail`` sends it."""
    return json.dumps(json.loads(by_eventbridge(bucket, key, sequencer))["detail"])


@pytest.fixture
def wish(settings: Settings, store: TaskStore) -> str:
    """A file in the bucket that holds a request."""
    key = "requests/for the wall/fox 1.json"
    obstore.put(store._s3, key, b'{"prompt": "fox"}')
    return key


@pytest.mark.parametrize("told", [notified, by_eventbridge, detail_alone])
def test_a_file_that_s3_says_is_new_is_a_request(
    generate: Generate, plain: PlainEngine, settings: Settings, store: TaskStore, wish: str, told: Any
) -> None:
    """S3 may tell of it more than once: it is drawn once, and again when the file is written again."""
    key = quote_plus(wish, safe="/") if told is notified else wish
    for message in ("m-1", "m-2"):
        generate.handle(sqs_event(told(settings.bucket, key), ids=[message]), None)
    assert plain.drawn == ["fox"]
    generate.handle(sqs_event(told(settings.bucket, key, "0055AED6DCD90281E6"), ids=["m-3"]), None)
    assert plain.drawn == ["fox", "fox"]
    assert {Record.from_json(one.body).status for one in store.newest(10, None)[0]} == {"completed"}


@pytest.mark.parametrize("told", [notified, by_eventbridge])
@pytest.mark.parametrize(
    "key", ["tasks/a/status.json", "tasks/a/1/0.png", "requests/picture.png", "requests/../x.json", "requests//x.json"]
)
def test_of_other_objects_nothing_is_written(
    generate: Generate, settings: Settings, store: TaskStore, key: str, told: Any
) -> None:
    """Where S3 tells of the whole bucket a record of each would be three objects more, and three messages."""
    assert generate.handle(sqs_event(told(settings.bucket, key), ids=["m-1"]), None) == {"batchItemFailures": []}
    assert [meta for chunk in obstore.list(store._s3) for meta in chunk if not meta["path"].startswith("health/")] == []


@pytest.mark.parametrize("kind", ["Object Deleted", "Object Tags Added", "Object Restore Completed"])
def test_other_news_of_a_file_draws_nothing(
    generate: Generate, settings: Settings, store: TaskStore, wish: str, kind: str
) -> None:
    told = json.loads(by_eventbridge(settings.bucket, wish)) | {"detail-type": kind}
    bare = {name: value for name, value in told["detail"].items() if name != "reason"}
    removed = json.loads(notified(settings.bucket, wish))
    removed["Records"][0]["eventName"] = "ObjectRemoved:Delete"
    for body in (told, bare, {**bare, "reason": "DeleteObject"}, removed):
        assert generate.handle(sqs_event(json.dumps(body), ids=["m-1"]), None) == {"batchItemFailures": []}
    assert store.newest(10, None)[0] == []


def test_news_of_a_file_that_cannot_be_read_is_kept(generate: Generate, settings: Settings, store: TaskStore) -> None:
    """In a failed record, as all else that holds no request: S3 tells of one object at a time, and by its documents."""
    two = json.loads(notified(settings.bucket, "requests/a.json"))
    two["Records"] *= 2
    nameless = json.loads(notified(settings.bucket, "requests/a.json"))
    del nameless["Records"][0]["s3"]["object"]["key"]
    event_of_none = json.loads(by_eventbridge(settings.bucket, "requests/a.json"))
    del event_of_none["detail"]["object"]
    for number, body in enumerate((two, nameless, event_of_none)):
        generate.handle(sqs_event(json.dumps(body), ids=[f"m-{number}"]), None)
    found = [Record.from_json(one.body) for one in store.newest(10, None)[0]]
    assert [record.status for record in found] == ["failed"] * 3
    assert all(record.body for record in found)


def test_a_file_that_is_gone_is_told_of(generate: Generate, settings: Settings, store: TaskStore) -> None:
    generate.handle(sqs_event(notified(settings.bucket, "requests/gone.json"), ids=["m-1"]), None)
    (failed,) = [Record.from_json(one.body) for one in store.newest(10, None)[0]]
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "INVALID_REQUEST"


def test_another_bucket_is_not_read(generate: Generate, store: TaskStore, wish: str) -> None:
    generate.handle(sqs_event(notified("somebody-elses", wish), ids=["m-1"]), None)
    assert [Record.from_json(one.body).status for one in store.newest(10, None)[0]] == ["failed"]


def test_a_file_among_dead_letters(settings: Settings, store: TaskStore, resources: Resources, wish: str) -> None:
    letters = DeadLetters(settings, store, TaskQueue(settings, resources.dead_letter_queue_url))
    letters.handle(sqs_event(notified(settings.bucket, quote_plus(wish, safe="/")), ids=["m-1"]), None)
    (record,) = [Record.from_json(one.body) for one in store.newest(10, None)[0]]
    assert record.request is not None
    assert record.request.prompt == "fox"


def test_that_s3_tries_whether_it_may_send_does_nothing(generate: Generate, store: TaskStore) -> None:
    tried = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2014-10-13T15:57:02.089Z", "Bucket": "b"}
    body = json.dumps({**tried, "RequestId": "5582815E1AEA5ADF", "HostId": "8cLeGAmw098X5cv4Zkwcmo"})
    assert generate.handle(sqs_event(body, ids=["m-1"]), None) == {"batchItemFailures": []}
    assert store.newest(10, None)[0] == []
