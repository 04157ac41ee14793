"""TaskQueue: the SQS queue of requests. The only module that calls SQS.

botocore without boto3's resource layer: 30 ms less at every cold start, the same credentials, regions and endpoints.
SQS delivers at least once and in any order; a received message is hidden from others until its visibility timeout ends.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import botocore.session
from aws_lambda_powertools.utilities.data_classes import SQSEvent
from botocore.exceptions import BotoCoreError, ClientError

from ..contract.pointer import pointer_in
from ..errors import ServiceFault, SettingsError
from ..logs import logger
from .endpoints import client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mypy_boto3_sqs.client import SQSClient

    from ..settings import Settings

MAX_VISIBILITY = 12 * 3600
LONG_POLL = 20
SQS = "aws:sqs"
FIFO = ".fifo"
"""What the names of such queues end with."""
MOST_NAME = 128
DELAY, MOST_DELAY = "delay", 900
"""The message attribute that FIFO queues' messages have in place of a delay of their own; SQS's most. In seconds."""
TENANT = "tenant"
"""The message attribute that names the task's tenant; without it the task belongs to no tenant."""
STALE_HANDLE = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"})


@dataclass(frozen=True)
class Message:
    """A message as received; ``attributes`` are SQS's own (ApproximateReceiveCount, SentTimestamp, …).

    ``tenant`` is what the sender wrote, unchecked: whoever may send to the queue may name any tenant, or an invalid one
    (see :func:`handler.task.messages.asked_by`). An attribute that is no string counts as the invalid name "".
    """

    message_id: str
    receipt_handle: str
    body: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    delay: int = 0
    """Seconds after it was sent before which nobody is to serve it, where SQS itself has no delays."""

    def due_in(self, now: datetime) -> float:
        """Seconds for which it has to be hidden first; 0 or less if it may be served."""
        return self.delay - (now - self.sent_at(now)).total_seconds()

    @property
    def trace(self) -> str | None:
        """The X-Ray tracing header that came with it."""
        return self.attributes.get("AWSTraceHeader")

    def sent_at(self, now: datetime) -> datetime:
        """When SQS accepted the message; ``now`` if it does not say."""
        sent = self.attributes.get("SentTimestamp", "")
        return min(now, datetime.fromtimestamp(int(sent) / 1000, UTC)) if sent.isdigit() else now


@dataclass(frozen=True)
class Backlog:
    """SQS's approximate message counts, about a minute late. ``retention``: seconds after which it drops a message."""

    visible: int
    hidden: int
    delayed: int
    retention: float

    @property
    def empty(self) -> bool:
        return not self.visible and not self.hidden and not self.delayed


class TaskQueue:
    """One queue. Every method raises ServiceFault when SQS fails, never one of botocore's errors."""

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        """The queue of the settings, or the one at ``url``."""
        self.url = url or settings.require("queue_url").queue_url
        self._sqs = _connect(settings)

    def send(self, body: str, delay: float = 0, *, trace: str | None = None, tenant: str | None = None) -> str:
        """Sends a message that appears after ``delay`` seconds (at most 900). Returns its MessageId.

        ``trace`` (an X-Ray tracing header) and ``tenant`` are sent as attributes. On a standard queue the tenant is the
        message's group: SQS then serves tenants fairly ("fair queues"). A FIFO queue has a group for each task, and
        takes a send of a task once. It knows no delay of a message: there it is an attribute, and whoever receives the
        message too early hides it for the rest.

        After a ServiceFault the message may have been sent all the same. Sending it again is safe: one attempt claims
        the task, whatever the number of messages.
        """
        seconds = min(round(delay), MOST_DELAY)
        attributes: dict[str, Any] = {}
        if tenant is not None:
            attributes[TENANT] = {"DataType": "String", "StringValue": tenant}
        if seconds and self.url.endswith(FIFO):
            attributes[DELAY] = {"DataType": "Number", "StringValue": str(seconds)}
        with _translated("send a message"):
            sent = self._sqs.send_message(
                QueueUrl=self.url,
                MessageBody=body,
                **self._ordered(body, tenant, seconds),
                MessageSystemAttributes={"AWSTraceHeader": {"DataType": "String", "StringValue": trace}}
                if trace
                else {},
                MessageAttributes=attributes,
            )
        if "MessageId" not in sent:
            # botocore takes a truncated response for an empty one.
            raise ServiceFault("SQS failed to send a message: its answer is torn")
        return sent["MessageId"]

    def _ordered(self, body: str, tenant: str | None, delay: int) -> dict[str, Any]:
        """What sets a message among the others: its delay, its group, and on FIFO queues what it is a repetition of."""
        pointer = pointer_in(body)
        if not self.url.endswith(FIFO):
            group = tenant or (pointer.tenant if pointer else None)
            return {"DelaySeconds": delay, **({"MessageGroupId": group} if group else {})}
        if pointer is None:
            return {"MessageGroupId": str(uuid4()), "MessageDeduplicationId": str(uuid4())}
        task = f"{pointer.tenant or '-'}:{pointer.task_id}"
        return {"MessageGroupId": _short(task), "MessageDeduplicationId": _short(f"{task}:{pointer.send}")}

    def receive(self, most: int = 1, wait: float = LONG_POLL, hidden: float | None = None) -> list[Message]:
        """Up to ``most`` (1 to 10) messages, waiting up to ``wait`` seconds (0 to 20: a long poll) for the first.

        ``hidden``: their visibility timeout in seconds; None means the queue's own.
        """
        hide: dict[str, Any] = {} if hidden is None else {"VisibilityTimeout": round(hidden)}
        with _translated("receive messages"):
            reply = self._sqs.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=round(wait),
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=[TENANT, DELAY],
                **hide,
            )
        return [
            Message(
                raw["MessageId"],
                raw["ReceiptHandle"],
                raw["Body"],
                cast("Mapping[str, str]", raw["Attributes"]),
                _tenant(raw.get("MessageAttributes", {}), "StringValue"),
                _delay(raw.get("MessageAttributes", {}), "StringValue"),
            )
            for raw in reply.get("Messages", [])
        ]

    def delete(self, receipt_handle: str) -> None:
        """Deletes the message. After a crash before this it is delivered again, and meets a terminal record."""
        with _translated("delete a message"), _stale_handle_passes():
            self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=receipt_handle)

    def change_visibility(self, receipt_handle: str, seconds: float) -> None:
        """Hides the message for ``seconds`` from now (at most 12 hours); 0 makes it visible at once."""
        visible_in = min(max(0, round(seconds)), MAX_VISIBILITY)
        with _translated("change a message's visibility"), _stale_handle_passes():
            self._sqs.change_message_visibility(
                QueueUrl=self.url, ReceiptHandle=receipt_handle, VisibilityTimeout=visible_in
            )

    def backlog(self) -> Backlog:
        """How many messages there are."""
        with _translated("count messages"):
            counts = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return Backlog(
            visible=int(counts["ApproximateNumberOfMessages"]),
            hidden=int(counts["ApproximateNumberOfMessagesNotVisible"]),
            delayed=int(counts["ApproximateNumberOfMessagesDelayed"]),
            retention=float(counts["MessageRetentionPeriod"]),
        )


def _short(name: str) -> str:
    """A name that SQS takes for a group or a repetition: 128 characters at most."""
    return name if len(name) <= MOST_NAME else hashlib.sha256(name.encode()).hexdigest()


def messages_of(event: dict[str, Any]) -> list[Message]:
    """The messages of a Lambda SQS event. Of an event that is none (a schedule's test, a warm-up) there are none: the
    log says what it was.
    """
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list) or not all(_is_message(one) for one in records):
        told = sorted(map(str, event))[:8] if isinstance(event, dict) else type(event).__name__
        logger.info("an event that is none of ours", keys=told)
        return []
    return [
        Message(
            record.message_id,
            record.receipt_handle,
            record.body,
            dict(record.attributes.raw_event),
            _tenant(record.raw_event.get("messageAttributes") or {}, "stringValue"),
            _delay(record.raw_event.get("messageAttributes") or {}, "stringValue"),
        )
        for record in SQSEvent(event).records
    ]


def _is_message(record: Any) -> bool:
    return isinstance(record, dict) and record.get("eventSource", SQS) == SQS


def partial_response(messages: Iterable[Message], consumed: Iterable[bool]) -> dict[str, Any]:
    """A Lambda function's partial batch response: the messages that were not ``consumed`` stay in the queue.

    Source: AWS Lambda developer guide, "Reporting batch item failures for Lambda functions with SQS event sources".
    """
    left = [message for message, done in zip(messages, consumed, strict=True) if not done]
    return {"batchItemFailures": [{"itemIdentifier": message.message_id} for message in left]}


def _tenant(attributes: Mapping[str, Any], text: str) -> str | None:
    """The tenant among a message's attributes; ``text`` is what the value is called there."""
    return str(attributes[TENANT].get(text) or "") if TENANT in attributes else None


def _delay(attributes: Mapping[str, Any], text: str) -> int:
    """Likewise its delay; what is no number, or more than SQS delays a message, is none."""
    told = str(attributes.get(DELAY, {}).get(text) or "")
    return int(told) if told.isascii() and told.isdigit() and len(told) <= 3 and int(told) <= MOST_DELAY else 0


@contextmanager
def _stale_handle_passes() -> Iterator[None]:
    """Ignores SQS's error for a receipt handle whose message was deleted, or was received again by somebody else."""
    try:
        yield
    except ClientError as fault:
        if fault.response["Error"]["Code"] not in STALE_HANDLE:
            raise


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turns botocore's errors into ServiceFault: the only place that does."""
    try:
        yield
    except (ClientError, BotoCoreError) as fault:
        raise ServiceFault(f"SQS failed to {doing}") from fault


def _connect(settings: Settings) -> SQSClient:
    """The SQS client: five tries in all, with jittered backoff. Its read timeout must outlast a long poll.

    Raises SettingsError for an unknown profile, and for credentials or an endpoint that it cannot take.
    """
    session = botocore.session.Session(profile=settings.aws_profile or None)
    try:
        found = client(
            "sqs",
            settings,
            session,
            connect_timeout=3,
            read_timeout=LONG_POLL + 5,
            retries={"mode": "standard", "total_max_attempts": 5},
            tcp_keepalive=True,
        )
    except (BotoCoreError, ValueError) as fault:  # half a set of credentials, an endpoint that is no URL
        raise SettingsError(f"SQS cannot be used: {fault}") from fault
    return cast("SQSClient", found)
