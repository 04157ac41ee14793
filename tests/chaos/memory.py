"""S3 and SQS as a model in memory: compare-and-swap, lost answers, duplicates, any order. No server, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from handler.aws.queue import Message
from handler.aws.s3 import Stored
from handler.contract.record import Record
from handler.errors import LostRace, ServiceFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.aws.store import Document, HealthReport

Trouble = Literal["none", "before", "after"]
"""What becomes of the next write or send: done; not done; done, and its caller is told that it failed."""


@dataclass
class Written:
    """A write that was done: over what, and by whom (an attempt's owner; ``""``: anybody else)."""

    old: Record | None
    new: Record
    writer: str
    age: float = 0.0
    """Of the old record, by the store's own clock."""


class MemoryStore:
    """What handlers need of a TaskStore. ``seen`` is told every write that was done."""

    def __init__(self, seen: Callable[[Written], None]) -> None:
        self._objects: dict[str, Stored] = {}
        self._versions = 0
        self._seen = seen
        self.fault: Trouble = "none"
        self.clock: Callable[[], float] = lambda: 0.0
        self._written: dict[str, float] = {}
        self.writer = ""
        self.checkpoints: set[str] = set()
        self.tenant: str | None = None

    def for_tenant(self, tenant: str | None) -> MemoryStore:
        assert tenant is None, "the model has no tenants"
        return self

    def read(self, task_id: str) -> Stored | None:
        return self._objects.get(task_id)

    def record(self, task_id: str) -> Record | None:
        stored = self.read(task_id)
        return Record.from_json(stored.body) if stored else None

    def names(self) -> list[str]:
        return list(self._objects)

    def create(self, record: Document) -> Stored:
        return self._put(record, None)

    def change(self, stored: Stored, record: Document) -> Stored:
        return self._put(record, stored.etag)

    def age(self, stored: Stored) -> float:
        return self.clock() - self._written[stored.etag]

    def open(self, task_id: str) -> None:
        """Nobody reads the list here."""

    def close(self, task_id: str) -> None:
        """Nobody reads the list here."""

    def announce(self, record: Document) -> None:
        """May lag."""

    def read_reports(self) -> list[HealthReport]:
        return []

    def read_checkpoint(self, task_id: str) -> bytes:
        return b"some steps" if task_id in self.checkpoints else b""

    def put_checkpoint(self, task_id: str, body: bytes) -> None:
        self.checkpoints.add(task_id)

    def delete_checkpoint(self, task_id: str) -> None:
        self.checkpoints.discard(task_id)

    def _put(self, record: Document, etag: str | None) -> Stored:
        fault, self.fault = self.fault, "none"
        if fault == "before":
            raise ServiceFault("not done")
        there = self._objects.get(record.task_id)
        if (there.etag if there else None) != etag:
            raise LostRace("moved")
        new = Record.from_json(record.to_json())  # as S3 would keep it: through JSON
        self._versions += 1
        stored = Stored(record.to_json(), f"version-{self._versions}")
        self._written[stored.etag] = self.clock()
        self._objects[record.task_id] = stored
        age = self.age(there) if there else 0.0
        self._seen(Written(Record.from_json(there.body) if there else None, new, self.writer, age))
        if fault == "after":
            raise ServiceFault("done, and the answer is lost")
        return stored


@dataclass
class Held:
    """A message in the queue. ``visible_at``: model time in seconds; ``handles`` that were given out for it."""

    name: str
    body: str
    visible_at: float
    receives: int = 0
    handles: list[str] = field(default_factory=list)


class MemoryQueue:
    """What handlers need of a TaskQueue. Any visible message may come next, and may come to two receivers at once."""

    url = "memory"

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._given = 0
        self.messages: list[Held] = []
        self.fault: Trouble = "none"

    def send(self, body: str, delay: float = 0, *, trace: str | None = None, tenant: str | None = None) -> str:
        fault, self.fault = self.fault, "none"
        if fault == "before":
            raise ServiceFault("not sent")
        self._given += 1
        name = f"message-{self._given}"
        self.messages.append(Held(name, body, self._now() + delay))
        if fault == "after":
            raise ServiceFault("sent, and the answer is lost")
        return name

    def visible(self) -> list[Held]:
        return [one for one in self.messages if one.visible_at <= self._now()]

    def give(self, message: Held, *, hidden: float) -> Message:
        """Delivers it; with ``hidden`` 0 it stays to be delivered once more, as SQS may do."""
        self._given += 1
        handle = f"handle-{self._given}"
        message.handles.append(handle)
        message.receives += 1
        message.visible_at = self._now() + hidden
        return Message(message.name, handle, message.body, {"ApproximateReceiveCount": str(message.receives)})

    def delete(self, receipt_handle: str) -> None:
        self.messages = [one for one in self.messages if receipt_handle not in one.handles]

    def change_visibility(self, receipt_handle: str, seconds: float) -> None:
        for one in self.messages:
            if receipt_handle in one.handles:
                one.visible_at = self._now() + max(0.0, seconds)
