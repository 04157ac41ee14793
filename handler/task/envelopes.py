"""What other services put around a request on its way to the queue, taken off again.

Sources: Amazon SNS developer guide, "HTTP/HTTPS notification JSON format" (subscriptions of a queue without raw message
delivery have the same); Amazon EventBridge user guide, "Events" and "EventBridge Pipes" (a pipe from a queue sends the
record as Lambda gets it). An envelope is recognised by all that it must have and by having nothing else: a request that
merely looks a little like one is refused by its own unknown fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

DEEPEST = 3
"""Envelopes in envelopes: an event that SNS was sent, by way of a pipe."""
MOST_KEPT = 4096
"""Bytes that are kept of a message that holds no request."""
SNS_ALWAYS = frozenset({"Type", "MessageId", "TopicArn", "Message", "Timestamp"})
SNS_PERHAPS = frozenset(
    {"Subject", "SignatureVersion", "Signature", "SigningCertURL", "UnsubscribeURL", "MessageAttributes"}
)
EVENT_ALWAYS = frozenset({"version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail"})
EVENT_PERHAPS = frozenset({"replay-name", "trace-header"})
RECORD_ALWAYS = frozenset({"messageId", "receiptHandle", "body", "attributes", "eventSource", "eventSourceARN"})
RECORD_PERHAPS = frozenset({"messageAttributes", "md5OfBody", "md5OfMessageAttributes", "awsRegion"})


FILE = re.compile(r"requests(/(?!\.)[^/\\]+)+(?<=\.json)")
"""Keys of files that hold a request: no part of them begins with a dot, or is empty."""
CREATED = frozenset({"PutObject", "POST Object", "CopyObject", "CompleteMultipartUpload"})
"""Reasons of an "Object Created" event; one of a deletion has others, and one of tags or classes has none."""
S3_TEST = frozenset({"Service", "Event", "Time", "Bucket", "RequestId", "HostId"})
"""What S3 sends when its notifications are switched on."""


@dataclass(frozen=True)
class File:
    """A file that S3 says is new. ``sequencer`` tells one writing of the key from another."""

    bucket: str
    key: str
    sequencer: str

    @property
    def task_id(self) -> str:
        """The same however often S3 tells of it: a task that the file does not name itself is drawn once."""
        told = f"{self.bucket} {self.key} {self.sequencer}"
        return f"file-{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def file_in(body: str) -> File | None:
    """The file that a notification of S3's tells of, or an "Object Created" event, whole or its detail alone; None for
    what is neither. Sources: Amazon S3 user guide, "Event message structure" and "EventBridge event message structure".
    """
    outer = _object(body)
    if outer is None:
        return None
    records = outer.get("Records")
    if outer.keys() == {"Records"} and isinstance(records, list) and len(records) == 1 and isinstance(records[0], dict):
        (told,) = records
        new = told.get("eventSource") == "aws:s3" and _is_created(told)
        return _file(told.get("s3"), quoted=True) if new else None
    if _is_event_of_s3(outer):
        return _file(outer["detail"], quoted=False) if outer["detail-type"] == "Object Created" else None
    return _file(outer, quoted=False) if _is_detail_of_s3(outer) and outer.get("reason") in CREATED else None


def is_other_news_of_s3(body: str) -> bool:
    """Whether S3 tells of something else: that it tries whether it may send, or of tags, of what is deleted.

    Where it tells of a new object in a way that :func:`file_in` cannot read this is none of it, or it would be lost.
    """
    outer = _object(body)
    if outer is None:
        return False
    if outer.keys() == S3_TEST:
        return bool(outer["Event"] == "s3:TestEvent")
    records = outer.get("Records")
    if outer.keys() == {"Records"} and isinstance(records, list) and records:
        return all(
            isinstance(one, dict) and one.get("eventSource") == "aws:s3" and not _is_created(one) for one in records
        )
    if _is_event_of_s3(outer):
        return bool(outer["detail-type"] != "Object Created")
    return _is_detail_of_s3(outer) and outer.get("reason") not in CREATED


def _is_created(record: dict[str, Any]) -> bool:
    return str(record.get("eventName")).startswith("ObjectCreated:")


def _is_event_of_s3(outer: dict[str, Any]) -> bool:
    return _is(outer, EVENT_ALWAYS, EVENT_PERHAPS) and outer["source"] == "aws.s3"


def _is_detail_of_s3(outer: dict[str, Any]) -> bool:
    return {"bucket", "object", "request-id"} <= outer.keys()


def _file(told: Any, *, quoted: bool) -> File | None:
    try:
        bucket, key, sequencer = told["bucket"]["name"], told["object"]["key"], told["object"].get("sequencer", "")
    except (KeyError, TypeError, AttributeError):
        return None
    if not all(isinstance(one, str) for one in (bucket, key, sequencer)):
        return None
    return File(bucket, unquote_plus(key) if quoted else key, sequencer)


def _object(body: str) -> dict[str, Any] | None:
    try:
        outer: Any = json.loads(body) if body.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return outer if isinstance(outer, dict) else None


def unwrapped(body: str) -> str:
    """The request that a message's body is or holds. A body in no envelope is returned as it is."""
    for _ in range(DEEPEST):
        held = _held(body)
        if held is None:
            break
        body = held
    return body


def beginning(body: str) -> str:
    """The first MOST_KEPT bytes of a body, at most, as text."""
    return body.encode("utf-8", "surrogatepass")[:MOST_KEPT].decode("utf-8", "ignore")


def _held(body: str) -> str | None:
    """What is in the outermost envelope; None if there is none."""
    outer = _object(body)
    if outer is None:
        return None
    if _is(outer, SNS_ALWAYS, SNS_PERHAPS) and outer["Type"] == "Notification":
        held = outer["Message"]
    elif _is_event_of_s3(outer):
        return None  # what kind of event it is says the envelope
    elif _is(outer, EVENT_ALWAYS, EVENT_PERHAPS):
        held = json.dumps(outer["detail"]) if isinstance(outer["detail"], dict) else None
    elif _is(outer, RECORD_ALWAYS, RECORD_PERHAPS) and outer["eventSource"] == "aws:sqs":
        held = outer["body"]
    else:
        return None
    return held if isinstance(held, str) else None


def _is(outer: dict[str, Any], always: frozenset[str], perhaps: frozenset[str]) -> bool:
    return always <= outer.keys() <= always | perhaps
