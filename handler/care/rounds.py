"""The doctor: finds stuck tasks, orphaned images and old checkpoints, and repairs or deletes them if asked to.

It lists the bucket and reads records only where the listing is suspicious, so that a million finished tasks cost one
request per thousand keys. It is safe to run at any time and repeatedly: writes of records are conditional, and a
superfluous message meets a task that is held or terminal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from ..aws.queue import TaskQueue
from ..aws.store import TaskStore
from ..clock import utc_now
from ..contract.record import Record
from ..contract.statuses import TERMINAL
from ..errors import LostRace, Refused
from ..logs import logger
from ..task import moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ..aws.queue import Backlog
    from ..aws.s3 import Stored
    from ..aws.store import TaskObjects
    from ..settings import Settings

Kind = Literal["pending without a message", "processing without a worker", "images without a record", "old checkpoint"]
ORPHANED_AFTER = timedelta(days=1)
"""Age from which images that no record names, and checkpoints of ended tasks, are deleted."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``since``: when it was last changed; ``mended``: whether this round repaired it."""

    kind: Kind
    task_id: str
    since: datetime
    mended: bool = False
    tenant: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"since": self.since.isoformat()}


class Doctor:
    """Examines one bucket and its queue."""

    def __init__(
        self, settings: Settings, store: TaskStore, queue: TaskQueue, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store, self._queue, self._now = store, queue, now
        self._stuck_after = timedelta(seconds=settings.stuck_after)

    def examine(self, *, fix: bool) -> list[Finding]:
        """Everything that is wrong, for all tenants; repaired with ``fix``. Raises ServiceFault, which undoes no
        repair.
        """
        backlog = self._queue.backlog()
        findings: list[Finding] = []
        for store in self._store.all_tenants():
            tenant_round = _TenantRound(store, self._queue, backlog, self._now, self._stuck_after, fix)
            for objects in store.list_objects():
                for finding in tenant_round.examine(objects):
                    logger.warning("found", **finding.to_json())
                    findings.append(finding)
        return findings


@dataclass(frozen=True)
class _TenantRound:
    """One round over one tenant's tasks."""

    store: TaskStore
    queue: TaskQueue
    backlog: Backlog
    now: Callable[[], datetime]
    stuck_after: timedelta
    fix: bool

    def examine(self, objects: TaskObjects) -> Iterator[Finding]:
        if _looks_completed(objects):
            return
        stored = self.store.read(objects.task_id)
        if stored is None:
            yield from self._leftovers(objects, set())
            return
        record = Record.from_json(stored.body)
        if record.status in TERMINAL:
            yield from self._leftovers(objects, {image.key for image in record.images})
        else:
            yield from self._stuck(stored, record)

    def _found(self, kind: Kind, task_id: str, since: datetime, mended: bool) -> Finding:
        return Finding(kind, task_id, since, mended, self.store.tenant)

    def _stuck(self, stored: Stored, record: Record) -> Iterator[Finding]:
        now = self.now()
        if record.status == "processing" and record.lease is not None:
            since = record.lease.expires_at
            # By now its message should be visible again: it is hidden for a lease, or under Lambda for the queue's own
            # visibility timeout.
            if now - since > self.stuck_after:
                mended = self.fix and self._send(stored, record, moves.expire)
                yield self._found("processing without a worker", record.task_id, since, mended)
            return
        since = record.queued_at or record.created_at
        lost = timedelta(seconds=self.backlog.retention) if not self.backlog.empty else self.stuck_after
        if now - since > max(lost, self.stuck_after):
            mended = self.fix and self._send(stored, record, moves.requeue)
            yield self._found("pending without a message", record.task_id, since, mended)

    def _send(self, stored: Stored, record: Record, move: Callable[..., Record]) -> bool:
        """Writes the record, then sends a message, so that of two doctors only one sends. A crash between the two
        leaves the task to a later round.
        """
        if record.request is None:
            return False
        try:
            self.store.change(stored, move(record, now=self.now()))
        except (LostRace, Refused):
            return False  # it was claimed or cancelled meanwhile
        self.queue.send(record.request.message(record.task_id), tenant=self.store.tenant)
        return True

    def _leftovers(self, objects: TaskObjects, named: set[str]) -> Iterator[Finding]:
        """Old images that the record does not name, and old checkpoints: found, and deleted with ``fix``."""
        before = self.now() - ORPHANED_AFTER
        orphans = {key: at for key, at in objects.images.items() if key not in named and at < before}
        if orphans:
            if self.fix:
                for key in orphans:
                    self.store.delete_image(key)
            yield self._found("images without a record", objects.task_id, min(orphans.values()), self.fix)
        if objects.checkpoint is not None and objects.checkpoint < before:
            if self.fix:
                self.store.delete_checkpoint(objects.task_id)
            yield self._found("old checkpoint", objects.task_id, objects.checkpoint, self.fix)


def _looks_completed(objects: TaskObjects) -> bool:
    """Whether the listing alone shows a completed task: one attempt's images, and a record written after them."""
    if objects.recorded_at is None or objects.checkpoint is not None or len(objects.attempts) != 1:
        return False
    return objects.recorded_at >= max(objects.images.values())


def build(settings: Settings) -> Doctor:
    """The doctor on real S3 and SQS."""
    return Doctor(settings, TaskStore(settings), TaskQueue(settings))
