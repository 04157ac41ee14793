"""Redrive: an operator gives failed tasks another chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..clock import utc_now
from ..contract.record import Record
from ..errors import Conflict, LostRace, NotFound
from ..task import moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ..aws.queue import TaskQueue
    from ..aws.store import TaskStore

PAGE = 100


class Redrive:
    """Puts failed tasks back: pending again by compare-and-swap, what became of their attempts kept, a message sent.

    ``store`` tells of which tenant.
    """

    def __init__(self, store: TaskStore, queue: TaskQueue, *, now: Callable[[], datetime] = utc_now) -> None:
        self._store, self._queue, self._now = store, queue, now

    def one(self, task_id: str, *, dry_run: bool = False) -> Record:
        """The record, pending again, or as it would be. Raises NotFound, and Conflict where it has not failed, holds
        no valid request or moves meanwhile.
        """
        stored = self._store.read(task_id)
        if stored is None:
            raise NotFound(f"there is no task {task_id!r}")
        again = moves.redrive(Record.from_json(stored.body), now=self._now())
        if dry_run or again.request is None:
            return again
        try:
            self._store.change(stored, again)
        except LostRace as lost:
            raise Conflict("the task has just moved") from lost
        # A crash here leaves a pending task without a message: the doctor finds it.
        self._queue.send(again.request.message(task_id), tenant=self._store.tenant)
        return again

    def all(self, since: datetime | None = None, *, dry_run: bool = False) -> Iterator[Record]:
        """Every task that the queue had given up on (RETRIES_EXHAUSTED) since then, newest first. Permanent faults are
        left alone: they would only fail again.
        """
        for record in self._records():
            exhausted = record.error is not None and record.error.code == "RETRIES_EXHAUSTED"
            ended = record.completed_at or record.created_at
            if record.status == "failed" and exhausted and record.request and (since is None or ended >= since):
                try:
                    yield self.one(record.task_id, dry_run=dry_run)
                except (Conflict, NotFound):
                    continue  # somebody else has just done it

    def _records(self) -> Iterator[Record]:
        """All that are listed. In the order of creation, which says nothing of when they ended."""
        cursor: str | None = None
        while True:
            page, cursor = self._store.newest(PAGE, cursor)
            yield from (Record.from_json(stored.body) for stored in page)
            if cursor is None:
                return
