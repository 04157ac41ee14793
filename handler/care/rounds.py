"""The doctor: finds tasks that nobody will come for any more, and what was left lying; mends it where told to.

It reads the list of open tasks, and of these the records: a round costs nothing for all the tasks that have ended. What
it does is safe at any moment and as often as one likes: moves are conditional, and a message too many meets a task that
is held or terminal.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ..aws.queue import TaskQueue
from ..aws.store import TaskStore
from ..clock import utc_now
from ..contract.record import Record
from ..contract.statuses import TERMINAL
from ..errors import LostRace, Refused, ServiceFault
from ..logs import logger
from ..task import limits, moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ..aws.listing import OpenTask
    from ..aws.s3 import Stored
    from ..settings import Settings

Kind = Literal[
    "pending without a message",
    "processing without a worker",
    "left behind",
    "ended untold",
    "listed without a record",
    "unreadable record",
]
ORPHANED_AFTER = timedelta(days=1)
"""After its end for which what a task left behind is kept: somebody may still be writing it."""
MOST_SENDS = 1000
"""Messages and events of one round. The next one goes on behind the last of them."""
READ_AT_ONCE = 32


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
        self._limits = limits.Limits.of(settings)
        self._sends = 0

    def examine(self, *, fix: bool) -> list[Finding]:
        """All that is wrong, of every tenant, mended where ``fix``: then at most MOST_SENDS messages and events
        are sent, and the next round goes on from there. Raises ServiceFault; what was mended before it stays mended.
        """
        self._sends = 0
        self._keep_awake()
        findings: list[Finding] = []
        place: str | None = None
        seen: set[tuple[str | None, str]] = set()
        for one, stored in self._listed(self._store.read_doctors_place() if fix else None):
            second = (one.tenant, one.task_id) in seen
            seen.add((one.tenant, one.task_id))
            if (finding := self._look(one, stored, fix, second=second)) is not None and not second:
                logger.warning("found", **finding.to_json())
                findings.append(finding)
            if self._sends >= MOST_SENDS:
                place = one.name
                break
        if fix:
            self._store.write_doctors_place(place)
        return findings

    def _keep_awake(self) -> None:
        """Asks the queue for its counts: SQS tells metrics of no queue that nobody has asked for six hours, and begins
        again up to 15 minutes late. Where only workers on GPUs draw, these metrics are what brings the first of them.
        """
        try:
            self._queue.backlog()
        except ServiceFault as fault:
            logger.warning("the queue does not tell its counts", fault=fault.message)

    def _listed(self, after: str | None) -> Iterator[tuple[OpenTask, Stored | None]]:
        """The open tasks that are not quite new, and their records, read some at a time."""
        now = self._store.now()
        old = (one for one in self._store.open_tasks(after) if now - one.since > self._stuck_after)
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            while some := list(islice(old, READ_AT_ONCE)):
                yield from zip(some, pool.map(self._read, some), strict=True)

    def _read(self, one: OpenTask) -> Stored | None:
        return self._store.for_tenant(one.tenant).read(one.task_id)

    def _look(self, one: OpenTask, stored: Stored | None, fix: bool, *, second: bool) -> Finding | None:
        """``second``: the task has just been looked at under its other name."""
        store = self._store.for_tenant(one.tenant)
        if stored is None:
            # Its caller's process died before it wrote the record, or the record's retention is over, and then that of
            # its objects as well. They are left to the bucket's lifecycle rules: somebody may be beginning just now.
            if fix:
                self._close(store, one)
            return Finding("listed without a record", one.task_id, one.since, fix, one.tenant)
        try:
            record = Record.from_json(stored.body)
        except ValidationError as fault:
            logger.error("a record cannot be read", task_id=one.task_id, fault=fault.errors(include_input=False)[:3])
            return Finding("unreadable record", one.task_id, one.since, mended=False, tenant=one.tenant)
        if record.status in TERMINAL:
            untold = self._untold(store, one, stored, record, fix)
            return self._clear_up(store, one, stored, record, fix) or untold
        return None if second else self._come_for(store, one, stored, record, fix)

    def _come_for(self, store: TaskStore, one: OpenTask, stored: Stored, record: Record, fix: bool) -> Finding | None:
        age = timedelta(seconds=store.age(stored))
        if record.lease is not None:
            # Its message should be back by now: it was hidden for a lease at most.
            if age <= self._stuck_after + timedelta(seconds=record.lease.seconds or 0):
                return None
            kind: Kind = "processing without a worker"
            move: Callable[..., Record] = partial(moves.expire, age=age.total_seconds())
        else:
            if age < self._stuck_after + self._waited(one, record):
                return None
            kind, move = "pending without a message", moves.requeue
        mended = fix and self._send(store, one, stored, record, move)
        return Finding(kind, record.task_id, self._store.now() - age, mended, one.tenant)

    def _waited(self, one: OpenTask, record: Record) -> timedelta:
        """How long the task had waited when its last message was sent. The next one is sent after as long again, and
        STUCK_AFTER: on a queue that is busy for hours a task gets a handful.
        """
        begun = max([one.since, record.created_at, *(attempt.ended_at for attempt in record.attempts[-1:])])
        return max(timedelta(), (record.queued_at or record.created_at) - begun)

    def _send(
        self, store: TaskStore, one: OpenTask, stored: Stored, record: Record, move: Callable[..., Record]
    ) -> bool:
        """Record first: of two doctors one sends. A crash between leaves the task to a later round."""
        now = self._now()
        try:
            moved = move(record, now=now)
            if fault := limits.over(moved, self._limits, now):
                store.change(stored, moves.exhaust(record, now=now, age=store.age(stored), fault=fault))
                store.close(record.task_id, again=one.again, left=True)
                logger.error("given up", task_id=record.task_id, tenant=store.tenant, fault=fault.message)
                return True
            store.change(stored, moved)
        except (LostRace, Refused):
            return False  # somebody came for it after all
        self._sends += 1
        self._queue.send(moved.pointer())
        return True

    def _untold(self, store: TaskStore, one: OpenTask, stored: Stored, record: Record, fix: bool) -> Finding | None:
        """Tells how a task ended, where whoever ended it could not, or died before it had; until the bus takes it."""
        age = timedelta(seconds=store.age(stored))
        if one.told or not store.bus.on or age <= self._stuck_after:
            return None
        self._sends += fix
        told = fix and store.bus.tell(record)
        if told:
            store.close(one.task_id, again=one.again, left=True)
            self._reopen(store, one)
        return Finding("ended untold", record.task_id, self._store.now() - age, told, record.tenant)

    def _clear_up(self, store: TaskStore, one: OpenTask, stored: Stored, record: Record, fix: bool) -> Finding | None:
        """Images of attempts that lost their task, checkpoints, previews: deleted once nobody can be writing them."""
        if store.age(stored) < ORPHANED_AFTER.total_seconds():
            return None
        ended = record.completed_at or record.created_at
        left = store.objects_of(record.task_id).keys() - {image.key for image in record.images}
        # A later attempt, of a task that was redriven a moment ago, may be writing its own.
        left = {key for key in left if store.attempt_of(key) <= record.attempt}
        if fix:
            store.delete_objects(left)
            self._close(store, one)
        return Finding("left behind", record.task_id, ended, fix, record.tenant) if left else None

    def _close(self, store: TaskStore, one: OpenTask) -> None:
        """Takes the task off the list, but if its end is untold."""
        store.close(one.task_id, again=one.again)
        self._reopen(store, one)

    def _reopen(self, store: TaskStore, one: OpenTask) -> None:
        """Lists the task as open if it has begun anew since its record was read."""
        stored = store.read(one.task_id)
        if stored is not None and Record.from_json(stored.body).status not in TERMINAL:
            store.open(one.task_id, again=one.again)


def build(settings: Settings) -> Doctor:
    """The doctor on real S3 and SQS."""
    return Doctor(settings, TaskStore(settings), TaskQueue(settings))
