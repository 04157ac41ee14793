"""One attempt's hold on a task: its record, moved by compare-and-swap for as long as the lease is this attempt's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from ..contract.record import Record
from ..errors import LostRace

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.s3 import Stored


class Records(Protocol):
    """Where records are kept: the part of TaskStore that a hold needs."""

    def read(self, task_id: str) -> Stored | None: ...
    def change(self, stored: Stored, record: Record) -> Stored: ...


class Hold:
    """The record as this attempt last wrote it.

    Every move goes through ``If-Match``, so an attempt that was superseded or cancelled meets a LostRace and writes
    nothing more. Safe to use in many threads: moves are made one after another.
    """

    def __init__(self, records: Records, stored: Stored, record: Record, now: Callable[[], datetime]) -> None:
        self._records, self._stored, self._now = records, stored, now
        self._lock = threading.Lock()
        self.record = record

    @property
    def ended(self) -> bool:
        """Whether this attempt has written its end: the record is terminal, or given back."""
        return self.record.lease is None

    @property
    def lapsed(self) -> bool:
        """Whether signs of life failed for a whole lease, so that another worker may already have the task."""
        return self.record.lease is not None and self.record.lease.expires_at <= self._now()

    def move(self, move: Callable[[Record], Record]) -> None:
        """Writes what ``move`` makes of the record. Raises LostRace when the task is another's, and ServiceFault."""
        with self._lock:
            self._write(move(self.record))

    def _write(self, record: Record) -> None:
        try:
            self._stored = self._records.change(self._stored, record)
        except LostRace:
            # An earlier write of ours may have been done although its answer said otherwise: then the task is still
            # this attempt's, and only the ETag is not the one that we know.
            there = self._records.read(self.record.task_id)
            found = Record.from_json(there.body) if there else None
            if there is None or found is None or not self._is_ours(found):
                raise
            record = record.model_copy(update={"sequence": found.sequence + 1})
            self._stored = self._records.change(there, record)
        self.record = record

    def _is_ours(self, found: Record) -> bool:
        """Owners' names are never used twice."""
        ours = self.record.lease
        return ours is not None and found.lease is not None and found.lease.owner == ours.owner
