"""Stand-ins that the tests pass in: a clock, an engine without weights, events as AWS sends them."""

from __future__ import annotations

import json
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from PIL import Image

from handler.contract.card import Defaults, ModelCard
from handler.contract.record import Lease, ModelRef, Record
from handler.contract.request import GenerationRequest
from handler.engine import Developed, EncodedImage
from handler.engine.imaging import encode_images
from handler.engine.slots import Slots
from handler.task import moves
from handler.task.attempt import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from handler.aws.queue import Message
    from handler.aws.store import TaskStore
    from handler.contract.health import Measured
    from handler.engine import Observer
    from handler.work.serving import Generate

CARD = ModelCard(
    id="built-in",
    pipeline="TestPipeline",
    dtype="float32",
    parameters=["negative_prompt", "num_inference_steps", "guidance_scale", "seed", "width", "height", "num_images"],
    defaults=Defaults(num_inference_steps=4, guidance_scale=4.0, width=64, height=64),
    size_multiple=8,
)

DRAWS = CARD.model_copy(
    update={
        "parameters": [*CARD.parameters, "image", "strength"],
        "defaults": CARD.defaults.model_copy(update={"strength": 0.5}),
    }
)


@dataclass
class Clock:
    """A time that moves when it is told to."""

    time: datetime = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)

    def __call__(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    def age(self, record: Record) -> float:
        """Seconds since the record was written, by what stands in it."""
        lease = record.lease
        written = record.completed_at or record.queued_at or record.created_at
        if lease is not None:
            written = lease.expires_at - timedelta(seconds=60 if lease.seconds is None else lease.seconds)
        return (self.time - written).total_seconds()


@contextmanager
def on_one_core() -> Iterator[None]:
    """Processes that are started in the block compute on one core: teams of threads that compete for the same ones, as
    those of tests in other processes, spin longer than they compute.
    """
    there = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(sorted(there))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, there)


def nothing() -> None:
    """What an engine does between steps unless a test says otherwise."""


class Halfway:
    """What the plain engine says of a task that is being drawn."""

    def snapshot(self) -> bytes:
        return b"step by step"

    def saved_steps(self) -> int:
        return 1

    def preview(self) -> bytes:
        return b"a thumbnail"


@dataclass
class PlainEngine:
    """Draws squares in the seed's colour. ``between`` runs at every step, ``decoding`` after the last;
    ``fault`` is raised in place of a picture.
    """

    card: ModelCard = CARD
    load_seconds: float = 0.25
    capacity: int = 4
    measured: Measured | None = None
    between: Callable[[], None] = nothing
    decoding: Callable[[], None] = nothing
    fault: BaseException | None = None
    named: str = ""
    unsafe: frozenset[int] = frozenset()
    warnings: tuple[tuple[str, str], ...] = ()
    drawn: list[str] = field(default_factory=list)
    resumed: list[bytes] = field(default_factory=list)
    given: list[bytes] = field(default_factory=list)
    _slots: Slots = field(default_factory=Slots)

    def slot(self, timeout: float | None = None, *, alone: bool = False) -> AbstractContextManager[None]:
        return self._slots.hold(self.capacity, timeout, alone=alone)

    def develop(
        self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        observer.begins(Halfway())
        self.resumed.append(checkpoint)
        self.given.append(image)
        steps = request.num_inference_steps or 1
        for step in range(steps):
            observer.at_step(step, steps)
            self.between()
        if self.fault is not None:
            raise self.fault
        if (all_drawn := getattr(observer, "all_drawn", None)) is not None:
            all_drawn(steps)
        self.decoding()
        self.drawn.append(request.prompt)
        size = (request.width or 64, request.height or 64)
        pictures = [Image.new("RGB", size, (seed % 256, 100, 50)) for seed in request.seeds()]
        told = {"unsafe": self.unsafe, "warnings": self.warnings}
        return Developed(pictures, text=0.01, denoise=0.02, decode=0.01, batch_size=1, **told)  # type: ignore[arg-type]

    def checkpoint_name(self, request: GenerationRequest, image: bytes = b"") -> str:
        return self.named

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        return encode_images(developed, request)

    def close(self) -> None:
        """Holds nothing."""


def sqs_event(
    *bodies: str,
    ids: list[str] | None = None,
    sent_ms: int = 1767323045000,
    count: int = 1,
    tenant: str | None = None,
) -> dict[str, Any]:
    """The event that Lambda makes of these message bodies, all of one tenant."""
    said = {} if tenant is None else {"tenant": {"stringValue": tenant, "dataType": "String"}}
    names = ids or [str(uuid4()) for _ in bodies]
    return {
        "Records": [
            {
                "messageId": name,
                "receiptHandle": f"handle-of-{name}",
                "body": body,
                "attributes": {"ApproximateReceiveCount": str(count), "SentTimestamp": str(sent_ms)},
                "messageAttributes": said,
                "md5OfBody": "",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:tasks",
                "awsRegion": "us-east-1",
            }
            for name, body in zip(names, bodies, strict=True)
        ]
    }


def http_event(
    method: str,
    path: str,
    *,
    body: str | None = None,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    version: str = "1.0",
) -> dict[str, Any]:
    """The event that API Gateway makes of a request, in either payload format."""
    if version == "2.0":
        context: dict[str, Any] = {"http": {"method": method, "path": path}, "stage": "$default"}
        return {
            "version": "2.0",
            "rawPath": path,
            "headers": {name.lower(): value for name, value in (headers or {}).items()},
            "queryStringParameters": query,
            "requestContext": context,
            "body": body,
            "isBase64Encoded": False,
        }
    return {
        "version": "1.0",
        "path": path,
        "httpMethod": method,
        "headers": headers or {},
        "multiValueHeaders": {name: [value] for name, value in (headers or {}).items()},
        "queryStringParameters": query,
        "multiValueQueryStringParameters": {name: [value] for name, value in (query or {}).items()} or None,
        "requestContext": {"requestId": "r", "stage": "prod"},
        "body": body,
        "isBase64Encoded": False,
    }


def answer_of(response: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON body of a handler's answer."""
    return response["statusCode"], json.loads(response["body"])


def record_of(store: TaskStore, task_id: str) -> Record:
    """The task's record; there must be one."""
    stored = store.read(task_id)
    assert stored is not None
    return Record.from_json(stored.body)


def held(store: TaskStore, clock: Clock, *, lease: float = 60, message_id: str | None = None, tries: int = 0) -> Record:
    """The record of the task "mine", a fox, that a worker elsewhere has claimed."""
    record = moves.create("mine", GenerationRequest(prompt="fox"), 7, clock(), timedelta(days=1))
    assert record.request is not None
    claimed = moves.claim(
        record,
        lease=Lease(
            owner="elsewhere", expires_at=clock() + timedelta(seconds=lease), seconds=lease, message_id=message_id
        ),
        now=clock(),
        age=0,
        request=CARD.resolve(record.request),
        model=ModelRef(id="m", pipeline="P", dtype="float32"),
    ).model_copy(update={"tries": tries})
    store.create(claimed)
    return claimed


def event_of(*messages: Message) -> dict[str, Any]:
    """The SQS event that Lambda makes of received messages."""
    return {
        "Records": [
            {
                "messageId": message.message_id,
                "receiptHandle": message.receipt_handle,
                "body": message.body,
                "attributes": dict(message.attributes),
                "messageAttributes": {
                    name: {"dataType": "String", "stringValue": str(value)}
                    for name, value in (("tenant", message.tenant), ("delay", message.delay or None))
                    if value is not None
                },
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:local:000000000000:worker",
                "awsRegion": "local",
            }
            for message in messages
        ]
    }


def lose_the_lease(generate: Generate, clock: Clock) -> None:
    """All attempts of the process have not been heard of for longer than a lease, by S3's clock and by their own."""
    clock.forward(63)
    for one in list(generate._heartbeat._attempts):
        if isinstance(one, Attempt):
            one.hold.signed_at -= 63
