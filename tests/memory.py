"""S3 and an event bus in memory, with the public methods of TaskStore, which passes the same contract (tests/aws); SQS
in memory_queue.py.

Time is passed in; nothing sleeps or connects. A ``gate`` is asked before each call what becomes of it, and may let
other processes go first: that is how trouble and every order of calls are made.
"""

from __future__ import annotations

import json
import re
import threading
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from handler.aws.events import Bus, detail
from handler.aws.listing import AGAIN, ENDED, TOLD, OpenTask, index_name
from handler.aws.s3 import Stored
from handler.aws.store import HealthReport, Upload
from handler.contract.ids import MAX_UPLOAD, TASK_ID, TENANT
from handler.errors import FieldError, InvalidRequest, LostRace, NotFound, ServiceFault
from handler.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date

    from handler.contract.record import Record

Trouble = Literal["none", "before", "after"]
"""What becomes of a call: done; not done; done, and its caller is told that it failed."""
HEALTH, UNAVAILABLE, DOCTOR = "health/available.json", "health/unavailable.json", "health/doctor.json"


def at_once(_: str) -> Trouble:
    """The gate where there is no trouble."""
    return "none"


@dataclass(frozen=True)
class Kept:
    """An object: ``at`` is when it was written, ``by`` what the bucket's ``writer`` said then."""

    body: bytes
    etag: str
    at: datetime
    by: str


@dataclass
class Bucket:
    """What all tenants' stores share. ``seen(key, old, new)`` is told every put; ``events`` are what the bus was told,
    None: there is no bus.
    """

    now: Callable[[], datetime]
    gate: Callable[[str], Trouble] = at_once
    seen: Callable[[str, Kept | None, Kept], None] = lambda *_: None
    writer: Callable[[], str] = str
    objects: dict[str, Kept] = field(default_factory=dict)
    versions: int = 0
    events: list[dict[str, Any]] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, key: str, body: bytes, etag: str | Literal[False] | None = False) -> Stored:
        """``etag``: the condition, that of the object, or None for no object; False: no condition."""
        with self.lock:
            there = self.objects.get(key)
            if etag is not False and (there.etag if there else None) != etag:
                if there is not None and there.body == body:
                    return Stored(body, there.etag)  # its own first try, whose answer was lost
                raise LostRace("the record has moved since it was read")
            self.versions += 1
            new = Kept(body, f'"{self.versions}"', self.now(), self.writer())
            self.objects[key] = new
            self.seen(key, there, new)
            return Stored(body, new.etag)

    def delete(self, key: str) -> None:
        with self.lock:
            self.objects.pop(key, None)

    def get(self, key: str) -> Stored | None:
        there = self.objects.get(key)
        return Stored(there.body, there.etag, there.at) if there else None

    def under(self, prefix: str, after: str = "") -> list[str]:
        """The keys that begin so, in S3's order."""
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix) and key > after)


class MemoryBus(Bus):
    """Keeps what it is told."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(Settings())
        self._bucket = bucket

    @property
    def on(self) -> bool:
        return self._bucket.events is not None

    def _send(self, record: Record) -> None:
        told = self._bucket.events
        if told is not None:
            through(self._bucket.gate, f"EventBridge: tell {record.task_id}", lambda: told.append(detail(record)))


class MemoryStore:
    """One tenant's part of a :class:`Bucket`. What it promises is TaskStore's; URLs it has none."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.bus = bucket, MemoryBus(bucket)
        self.tenant: str | None = None
        self._prefix = ""

    def now(self) -> datetime:
        return self.bucket.now()

    def age(self, stored: Stored) -> float:
        return (self.now() - stored.modified).total_seconds() if stored.modified else 0.0

    def attempt_of(self, key: str) -> int:
        part = key.partition("tasks/")[2].split("/")[1]
        return int(part) if part.isdigit() else 0

    def for_tenant(self, tenant: str | None) -> MemoryStore:
        if tenant is not None and not re.fullmatch(TENANT, tenant):
            raise InvalidRequest([FieldError("tenant", f"must match {TENANT}")])
        other = copy(self)
        other.tenant, other._prefix = tenant, f"tenants/{tenant}/" if tenant is not None else ""
        return other

    def all_tenants(self) -> Iterator[MemoryStore]:
        yield self.for_tenant(None)
        names = {key.split("/")[1] for key in self.bucket.under("tenants/")}
        yield from (self.for_tenant(name) for name in sorted(names) if re.fullmatch(TENANT, name))

    def record_key(self, task_id: str) -> str:
        return self._key(task_id, "status.json")

    def image_key(self, task_id: str, attempt: int, index: int, extension: str) -> str:
        return self._key(task_id, f"{attempt}/{index}.{extension}")

    def checkpoint_key(self, task_id: str, name: str = "") -> str:
        return self._key(task_id, f"checkpoint-{name}" if name else "checkpoint")

    def preview_key(self, task_id: str) -> str:
        return self._key(task_id, "preview.jpg")

    def upload_key(self, upload_id: str) -> str:
        return f"{self._prefix}uploads/{_name(upload_id)}"

    def _key(self, task_id: str, name: str) -> str:
        return f"{self._prefix}tasks/{_name(task_id)}/{name}"

    def _open_key(self, task_id: str) -> str:
        return f"open/{self.tenant or '-'}/{_name(task_id)}"

    def _own(self, key: str) -> str:
        if not key.startswith(f"{self._prefix}tasks/"):
            raise NotFound("there is nothing of this tenant's at this key")
        return key

    def _do(self, call: str, done: Callable[[], Any]) -> Any:
        return through(self.bucket.gate, f"S3: {call}", done)

    def _get(self, key: str) -> Stored | None:
        found: Stored | None = self._do(f"read {key}", lambda: self.bucket.get(key))
        return found

    def _put(self, key: str, body: bytes, etag: str | Literal[False] | None = False) -> Stored:
        stored: Stored = self._do(f"write {key}", lambda: self.bucket.put(key, body, etag))
        return stored

    def _delete(self, key: str) -> None:
        self._do(f"delete {key}", lambda: self.bucket.delete(key))

    def read(self, task_id: str) -> Stored | None:
        return self._get(self.record_key(task_id))

    def create(self, record: Record) -> Stored:
        stored = self._put(self.record_key(record.task_id), record.to_json(), None)
        self.bus.committed(record)
        return stored

    def change(self, stored: Stored, record: Record) -> Stored:
        stored = self._put(self.record_key(record.task_id), record.to_json(), stored.etag)
        self.bus.committed(record)
        return stored

    def announce(self, record: Record) -> None:
        self._put(f"{self._prefix}index/{index_name(record.task_id, record.created_at)}", b"")
        self.open(record.task_id)

    def open(self, task_id: str, *, again: bool = False) -> None:
        self._put(self._open_key(task_id) + AGAIN * again, b"")

    def close(self, task_id: str, *, again: bool = False, left: bool = False) -> None:
        key = self._open_key(task_id) + AGAIN * again
        try:
            if self.bus.missed(self.tenant, task_id):
                return
            if not left:
                self._delete(key)
            else:
                self._put(key, TOLD if self.bus.on else ENDED)
        except ServiceFault:
            """A failure leaves the entry to the doctor."""

    def open_tasks(self, after: str | None = None) -> Iterator[OpenTask]:
        for key in self._do("list open/", lambda: self.bucket.under("open/", f"open/{after or ''}")):
            there = self.bucket.objects.get(key)
            if there is not None:
                yield OpenTask.named(key.removeprefix("open/"), there.at, len(there.body))

    def open_here(self) -> Iterator[str]:
        prefix = f"open/{self.tenant or '-'}/"
        keys = self._do("list open/", lambda: self.bucket.under(prefix))
        empty = [key for key in keys if not self.bucket.objects[key].body]
        yield from dict.fromkeys(key.removeprefix(prefix).removesuffix(AGAIN) for key in empty)

    def read_request(self, bucket: str, key: str) -> bytes | None:
        there = self._do("read a request", lambda: self.bucket.objects.get(key))
        return there.body if there else None

    def objects_of(self, task_id: str) -> dict[str, datetime]:
        prefix, record = self._key(task_id, ""), self.record_key(task_id)
        keys = self._do(f"list {prefix}", lambda: self.bucket.under(prefix))
        return {key: self.bucket.objects[key].at for key in keys if key != record}

    def delete_objects(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            self._delete(self._own(key))

    def read_doctors_place(self) -> str | None:
        stored = self._get(DOCTOR)
        return json.loads(stored.body)["after"] if stored else None

    def write_doctors_place(self, after: str | None) -> None:
        self._put(DOCTOR, json.dumps({"after": after}).encode())

    def newest(
        self, limit: int, cursor: str | None = None, wanted: Callable[[dict[str, Any]], bool] | None = None
    ) -> tuple[list[Stored], str | None]:
        entries = f"{self._prefix}index/"
        names = self._do("list index/", lambda: self.bucket.under(entries, f"{entries}{cursor or ''}"))
        page: list[Stored] = []
        for place, name in enumerate(key.removeprefix(entries) for key in names):
            if len(page) == limit:
                return page, names[place - 1].removeprefix(entries)
            stored = self.read(name[14:])
            record = json.loads(stored.body) if stored else None
            if stored is None or record is None:
                continue
            current = index_name(name[14:], datetime.fromisoformat(record["created_at"])) == name
            page += [stored] if current and (wanted is None or wanted(record)) else []
        return page, None

    def put_image(self, key: str, body: bytes, content_type: str) -> None:
        self._put(self._own(key), body)

    def read_image(self, key: str) -> bytes:
        stored = self._get(self._own(key))
        if stored is None:
            raise NotFound("the image is no longer kept")
        return stored.body

    def delete_image(self, key: str) -> None:
        self._delete(self._own(key))

    def put_checkpoint(self, task_id: str, body: bytes, name: str = "") -> None:
        self._put(self.checkpoint_key(task_id, name), body)

    def read_checkpoint(self, task_id: str, name: str = "") -> bytes:
        stored = self._get(self.checkpoint_key(task_id, name))
        return stored.body if stored else b""

    def delete_checkpoint(self, task_id: str, name: str = "") -> None:
        self._delete(self.checkpoint_key(task_id, name))

    def put_upload(self, upload_id: str, body: bytes, content_type: str) -> None:
        self._put(self.upload_key(upload_id), body)

    def read_upload(self, upload_id: str) -> Upload | None:
        stored = self._get(self.upload_key(upload_id))
        if stored is None:
            return None
        return Upload(len(stored.body), stored.body if len(stored.body) <= MAX_UPLOAD else b"")

    def read_reports(self) -> list[HealthReport]:
        """Not through the gate: it is asked for by time, in whatever order."""
        found = [self.bucket.objects[key] for key in (HEALTH, UNAVAILABLE) if key in self.bucket.objects]
        return [HealthReport(json.loads(one.body), one.at) for one in found]

    def read_health(self) -> dict[str, Any] | None:
        reports = self.read_reports()
        return max(reports, key=lambda report: report.at).body if reports else None

    def write_health(self, health: Mapping[str, Any]) -> None:
        key = UNAVAILABLE if health["model_status"] == "unavailable" else HEALTH
        self.bucket.put(key, json.dumps(health).encode())

    def read_spending(self, day: date) -> Stored | None:
        return self._get(f"{self._prefix}spend/{day.isoformat()}.json")

    def write_spending(self, day: date, body: bytes, stored: Stored | None) -> Stored:
        return self._put(f"{self._prefix}spend/{day.isoformat()}.json", body, stored.etag if stored else None)


def through(gate: Callable[[str], Trouble], call: str, done: Callable[[], Any]) -> Any:
    """Makes a call as the gate says."""
    trouble = gate(call)
    if trouble == "before":
        raise ServiceFault(f"not done: {call}")
    result = done()
    if trouble == "after":
        raise ServiceFault(f"done, and the answer is lost: {call}")
    return result


def _name(name: str) -> str:
    if not re.fullmatch(TASK_ID, name):
        raise NotFound("there is no task of this name")
    return name
