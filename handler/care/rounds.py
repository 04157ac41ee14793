"""The doctor: finds tasks that nobody will come for any more, and what was left lying; mends it where told to.

It reads the bucket's listing, and records only where the listing is suspicious, so that a round over a million
finished tasks costs a request for a thousand keys. What it does is safe at any moment and as often as one likes: moves
are conditional, and a message too many meets a task that is held or terminal.
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
"""Age at which images that no record names, and checkpoints of ended tasks, are nobody's."""


@dataclass(frozen=True)
class Finding:
    """``since`` is when it was last touched; ``mended`` whether it was, in this round."""

    kind: Kind
    task_id: str
    since: datetime
    mended: bool = False
    tenant: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"since": self.since.isoformat()}


class Doctor:
    """One bucket and its queue."""

    def __init__(
        self, settings: Settings, store: TaskStore, queue: TaskQueue, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store, self._queue, self._now = store, queue, now
        self._stuck_after = timedelta(seconds=settings.stuck_after)

    def examine(self, *, fix: bool) -> list[Finding]:
        """All that is wrong, of every tenant, mended where ``fix``. Raises ServiceFault; what was mended before it
        stays mended.
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
    """What the doctor does for one tenant in one round."""

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
            # Its message should be back by now: hidden for a lease at most, or for the queue's own time under Lambda.
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
        """Record first: of two doctors one sends. A crash between leaves the task to a later round."""
        if record.request is None:
            return False
        try:
            self.store.change(stored, move(record, now=self.now()))
        except (LostRace, Refused):
            return False  # somebody came for it after all
        self.queue.send(record.request.message(record.task_id), tenant=self.store.tenant)
        return True

    def _leftovers(self, objects: TaskObjects, named: set[str]) -> Iterator[Finding]:
        """Images of attempts that lost their task, and checkpoints that nobody resumes: deleted once they are old."""
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
    """One set of images and a record that was written after it: the commit mark."""
    if objects.recorded_at is None or objects.checkpoint is not None or len(objects.attempts) != 1:
        return False
    return objects.recorded_at >= max(objects.images.values())


def build(settings: Settings) -> Doctor:
    """The doctor with its real surroundings."""
    return Doctor(settings, TaskStore(settings), TaskQueue(settings))
