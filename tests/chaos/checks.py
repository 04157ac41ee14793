"""What must hold at the end: read from the bucket and the queues themselves, not through the proxy."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
from PIL import Image

from handler.cli.local.aws import CREDENTIALS
from handler.contract.record import Record
from handler.contract.statuses import TERMINAL

from .references import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

    from handler.cli.local.aws import Resources

    from ..warm import Zygote
    from .load import Planned

TOLERANCE = 1
"""Of 255. What design.md promises: a picture that was resumed, or drawn in other company, differs from the undisturbed
one by the rounding of merged float32 forwards, at most this much in any pixel; with the same company by nothing.
"""


@dataclass
class Ended:
    """All tasks that have a record, by outcome, and what is wrong with them."""

    records: dict[str, Record] = field(default_factory=dict)
    images: int = 0
    identical: int = 0
    largest: int = 0
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    needed: dict[str, int] = field(default_factory=dict)


class Backstage:
    """Bucket and queues as their owner sees them."""

    def __init__(self, endpoint: str, resources: Resources) -> None:
        session = boto3.Session(
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=CREDENTIALS["AWS_REGION"],
        )
        self._s3 = session.client("s3", endpoint_url=endpoint)
        self._sqs = session.client("sqs", endpoint_url=endpoint)
        self._resources = resources

    def messages(self) -> dict[str, int]:
        """What either queue still holds: visible, in flight or delayed."""
        left = {}
        for name, url in (("queue", self._resources.queue_url), ("dead", self._resources.dead_letter_queue_url)):
            found: Any = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            left[name] = sum(int(found[f"ApproximateNumberOfMessages{kind}"]) for kind in ("", "NotVisible", "Delayed"))
        return left

    def objects(self) -> dict[str, bytes]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._resources.bucket, Prefix="tasks/")
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key: self._s3.get_object(Bucket=self._resources.bucket, Key=key)["Body"].read() for key in keys}


def check(backstage: Backstage, accepted: dict[str, Planned], completions: dict[str, int]) -> tuple[Ended, Any]:
    """All but the pictures' content. ``completions``: how many completed records were written, by task."""
    objects, ended = backstage.objects(), Ended()
    pictures: dict[str, list[np.ndarray[Any, Any]]] = {}
    for key, body in objects.items():
        if key.endswith("/status.json"):
            record = Record.from_json(body)
            ended.records[record.task_id] = record
    for name, one in accepted.items():
        found = ended.records.get(name)
        allowed = (
            {"failed"} if not one.good else {"completed"} | ({"cancelled"} if one.cancel_after is not None else set())
        )
        if found is None:
            ended.lost.append(f"{name}: accepted, and there is no record")
        elif found.status in TERMINAL and found.status not in allowed:
            ended.lost.append(f"{name}: {found.status}, {found.error}")
    for name, record in ended.records.items():
        if record.status not in TERMINAL:
            ended.stuck.append(f"{name}: {record.status}, attempt {record.attempt}, {record.error}")
        if completions.get(name, 0) > 1:
            ended.doubled.append(f"{name}: completed {completions[name]} times")
        if record.status == "completed":
            pictures[name] = _decode(record, objects, ended)
    ended.left = [f"{count} messages in the {name} queue" for name, count in backstage.messages().items() if count]
    return ended, pictures


def _decode(record: Record, objects: dict[str, bytes], ended: Ended) -> list[np.ndarray[Any, Any]]:
    """The record's one set of pictures, each as recorded."""
    decoded = []
    if record.request is None or len(record.images) != record.request.num_images:
        ended.wrong.append(f"{record.task_id}: {len(record.images)} images")
    for image in record.images:
        ended.images += 1
        body = objects.get(image.key, b"")
        if sha256(body).hexdigest() != image.sha256 or len(body) != image.bytes:
            ended.wrong.append(f"{image.key}: not the bytes that are recorded")
            continue
        try:
            decoded.append(np.asarray(Image.open(io.BytesIO(body)).convert("RGB")))
        except OSError as fault:
            ended.wrong.append(f"{image.key}: {fault}")
    return decoded


def compare(
    ended: Ended,
    pictures: dict[str, list[np.ndarray[Any, Any]]],
    zygote: Zygote,
    environ: dict[str, str],
    folder: Path,
) -> None:
    """Draws every different request once, undisturbed, and holds the pictures against it."""
    by_request: dict[str, list[str]] = defaultdict(list)
    for name in pictures:
        request = ended.records[name].request
        assert request is not None
        by_request[request.model_dump_json(exclude={"task_id"}, exclude_none=True)].append(name)
    folder.mkdir()
    (folder / "requests.json").write_text(f"[{','.join(by_request)}]")
    log = folder / "log"
    pid = zygote.start("tests.chaos.references", [], {**environ, FOLDER: str(folder)}, out=log, err=log)
    status = zygote.status(pid, 600)
    assert status == 0, f"the undisturbed run ended with {status}: {log.read_text()[-2000:]}"
    steps = json.loads((folder / "steps.json").read_text())
    for number, names in enumerate(by_request.values()):
        right = np.load(folder / f"{number}.npy").astype(int)
        for name in names:
            ended.needed[name] = steps[number]
            for at, seen in enumerate(pictures[name]):
                if seen.shape != right[at].shape:
                    ended.wrong.append(f"{name}/{at}: {seen.shape} in place of {right[at].shape}")
                    continue
                difference = int(np.abs(seen.astype(int) - right[at]).max())
                ended.identical += difference == 0
                ended.largest = max(ended.largest, difference)
                if difference > TOLERANCE:
                    ended.wrong.append(f"{name}/{at}: a pixel differs by {difference} of 255")
