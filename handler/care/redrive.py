"""Redrive: puts failed tasks back into the queue, at an operator's request."""

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
    """Redrives the failed tasks of the store's tenant: sets them to pending, keeping their past attempts, and sends a
    message.
    """

    def __init__(self, store: TaskStore, queue: TaskQueue, *, now: Callable[[], datetime] = utc_now) -> None:
        self._store, self._queue, self._now = store, queue, now

    def one(self, task_id: str, *, dry_run: bool = False) -> Record:
        """Redrives one task and returns its record (with ``dry_run`` what it would become).

        Raises NotFound, Conflict if it has not failed, has no valid request or changes meanwhile, and ServiceFault.
        """
        stored = self._store.read(task_id)
        if stored is None:
            raise NotFound(f"there is no task {task_id!r}")
        again = moves.redrive(Record.from_json(stored.body), now=self._now())
        if dry_run or again.request is None:
            return again
        # Listed first: should this process die before the send, the doctor comes for the task.
        self._store.open(task_id, again=True)
        try:
            self._store.change(stored, again)
        except LostRace as lost:
            raise Conflict("the task has just moved") from lost
        # Once more: a doctor who cleared up after the failed task may have struck it off meanwhile.
        self._store.open(task_id, again=True)
        # A crash here leaves a pending task without a message, which the doctor finds.
        self._queue.send(again.pointer())
        return again

    def all(self, since: datetime | None = None, *, dry_run: bool = False) -> Iterator[Record]:
        """Redrives every task that failed with RETRIES_EXHAUSTED since ``since``, newest first. Others are left alone:
        they would fail again.
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
        """All records, newest first by creation, which says nothing about when they ended."""
        cursor: str | None = None
        while True:
            page, cursor = self._store.newest(PAGE, cursor)
            yield from (Record.from_json(stored.body) for stored in page)
            if cursor is None:
                return
