"""What must hold while it runs, seen at the server's side of the proxy: every write of a record, and who wrote it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from handler.contract.record import Lease, Record
from handler.contract.statuses import TERMINAL

from .care import CARE

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .proxy import Reply, Request

# Storage spells the keys; these are seen from outside, as any other reader of the bucket would.
RECORD = re.compile(r"/[^/]+/tasks/([^/]+)/status\.json")
IMAGE = re.compile(r"/[^/]+/(tasks/([^/]+)/\d+/\d+\.\w+)")


@dataclass(frozen=True)
class Seen:
    """A record that was written, when (``time.time()``) and through whose door."""

    at: float
    who: str
    record: Record


class Witness:
    """Keeps every task's history and all that must not have happened (``violations``)."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._orders: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.history: dict[str, list[Seen]] = {}
        self.violations: list[str] = []
        self.pids: dict[str, int] = {}
        self.received: Counter[str] = Counter()
        """Messages that SQS gave out, for the ``first`` time or ``again``."""
        self.disturbed: dict[str, list[float]] = defaultdict(list)
        """When a fault met a request about a task's record or message."""
        self.deliveries: dict[str, list[tuple[float, str]]] = defaultdict(list)
        """When SQS gave a message for the task to whom."""
        self.hidden: dict[str, list[float]] = defaultdict(list)
        """When somebody who had a message for the task said for how long it is hidden."""
        self._handles: dict[str, str] = {}

    def order(self, request: Request) -> AbstractContextManager[object]:
        name = _task(RECORD, request.path)
        if name is None or request.method not in {"PUT", "DELETE"}:
            return nullcontext()
        with self._guard:
            return self._orders[name]

    def saw(self, request: Request, reply: Reply) -> None:
        if reply.status not in {200, 204}:
            return
        if request.is_sqs:
            if request.headers["x-amz-target"].endswith(".ReceiveMessage"):
                self._received(request.who, reply.body)
            elif request.headers["x-amz-target"].endswith(".ChangeMessageVisibility"):
                with self._guard:
                    self.hidden[self._handles.get(json.loads(request.body)["ReceiptHandle"], "")].append(time.time())
            return
        name = _task(RECORD, request.path)
        if name is not None and request.method == "PUT":
            self._written(name, Seen(time.time(), request.who, Record.from_json(request.body)))
        elif name is not None and request.method == "DELETE":
            self._accuse(name, f"{request.who} deleted the record")
        elif request.method in {"PUT", "DELETE"} and (image := IMAGE.fullmatch(_path(request))):
            self._image(image[2], image[1], request)

    def met(self, request: Request, reply: Reply | None) -> None:
        if request.is_sqs:
            asked = json.loads(request.body)
            handles = [asked["ReceiptHandle"]] if "ReceiptHandle" in asked else []
            if (
                reply is not None
                and reply.status == 200
                and request.headers["x-amz-target"].endswith(".ReceiveMessage")
            ):
                handles = [one["ReceiptHandle"] for one in json.loads(reply.body or b"{}").get("Messages", [])]
            names = [self._handles.get(handle, "") for handle in handles]
        else:
            names = [_task(RECORD, request.path) or ""]
        with self._guard:
            for name in names:
                self.disturbed[name].append(time.time())

    def latest(self, name: str) -> Record | None:
        with self._guard:
            history = self.history.get(name)
            return history[-1].record if history else None

    def terminal(self) -> set[str]:
        """The tasks that have ended."""
        with self._guard:
            return {name for name, seen in self.history.items() if seen[-1].record.status in TERMINAL}

    def held_by(self, who: str) -> dict[str, int]:
        """The tasks that ``who`` holds at this moment, and the attempt."""
        with self._guard:
            last = {name: seen[-1] for name, seen in self.history.items()}
        return {
            name: seen.record.attempt
            for name, seen in last.items()
            if seen.record.status == "processing" and seen.who == who
        }

    def _received(self, who: str, body: bytes) -> None:
        for message in json.loads(body or b"{}").get("Messages", []):
            count = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            with self._guard:
                self.received["first" if count == 1 else "again"] += 1
                self._handles[message["ReceiptHandle"]] = _named(message)
                self.deliveries[_named(message)].append((time.time(), who))

    def _written(self, name: str, seen: Seen) -> None:
        before = self.history.get(name, [])
        record = seen.record
        if not before:
            if record.sequence not in {1, 2}:  # 2: created and claimed in one write
                self._accuse(name, f"its first record has the sequence {record.sequence}")
        else:
            self._check_move(name, before[-1].record, seen)
        if record.lease is not None and self.pids.get(seen.who) not in {None, _pid(record.lease.owner)}:
            self._accuse(name, f"{seen.who} wrote a lease of {record.lease.owner}")
        if record.status == "completed":
            others = [one.key for one in record.images if f"/{record.attempt}/" not in one.key]
            if others or not record.images:
                self._accuse(name, f"attempt {record.attempt} completed with the images {others}")
        with self._guard:
            self.history.setdefault(name, []).append(seen)

    def _check_move(self, name: str, old: Record, seen: Seen) -> None:
        new, told = seen.record, f"{seen.who} wrote {seen.record.status} of attempt {seen.record.attempt}"
        if new.sequence != old.sequence + 1:
            self._accuse(name, f"sequence went from {old.sequence} to {new.sequence}")
        redriven = seen.who == CARE and (old.status, new.status) == ("failed", "pending")
        if old.status in TERMINAL and not redriven:
            self._accuse(name, f"{told} over {old.status}")
        if (new.fingerprint, new.created_at, new.task_id) != (old.fingerprint, old.created_at, old.task_id):
            self._accuse(name, f"{told} of another request")
        if old.request and new.request and old.request.seed != new.request.seed:
            self._accuse(name, f"{told} with another seed")
        if new.attempt not in {old.attempt, old.attempt + 1}:
            self._accuse(name, f"{told} after attempt {old.attempt}")
        if old.lease is not None and new.status != "cancelled":  # whoever asks may cancel
            self._check_hold(name, old, old.lease, seen, told)

    def _check_hold(self, name: str, old: Record, held: Lease, seen: Seen, told: str) -> None:
        """A write over a record that an attempt holds, or held until its lease ran out."""
        new, by_holder = seen.record, self.pids.get(seen.who) == _pid(held.owner)
        claimed = new.attempt == old.attempt + 1 and new.status == "processing"
        if held.expires_at.timestamp() > seen.at and (claimed or not by_holder):
            self._accuse(name, f"{told} while {held.owner} held it")
        if not claimed and new.lease is not None and new.lease.owner != held.owner:
            self._accuse(name, f"{told}: {new.lease.owner} in place of {held.owner}")
        if not claimed and new.attempt != old.attempt:
            self._accuse(name, f"{told} after attempt {old.attempt}")
        if new.status == "completed" and not by_holder:
            self._accuse(name, f"{told}, which {held.owner} drew")

    def _image(self, name: str, key: str, request: Request) -> None:
        record = self.latest(name)
        if record is None or record.status != "completed":
            return
        for image in record.images:
            if image.key == key and (request.method == "DELETE" or sha256(request.body).hexdigest() != image.sha256):
                self._accuse(name, f"{request.who} changed the image {key} of a completed record")

    def _accuse(self, name: str, what: str) -> None:
        with self._guard:
            self.violations.append(f"{name}: {what}")


def _path(request: Request) -> str:
    return unquote(urlsplit(request.path).path)


def _task(pattern: re.Pattern[str], path: str) -> str | None:
    found = pattern.fullmatch(unquote(urlsplit(path).path))
    return found[1] if found else None


def _named(message: dict[str, str]) -> str:
    """The task that a message asks for."""
    try:
        return str(json.loads(message["Body"]).get("task_id") or message["MessageId"])
    except ValueError:
        return message["MessageId"]


def _pid(owner: str) -> int:
    """Owners are called ``{host}-{pid}-{name of the process}/{name of the claim}``."""
    return int(owner.split("/", maxsplit=1)[0].rsplit("-", 2)[1])
