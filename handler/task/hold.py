"""An attempt's hold on a task: writes its record by compare-and-swap for as long as the lease is this attempt's."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from ..contract.record import Record
from ..errors import LostRace

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.s3 import Stored


class Records(Protocol):
    """The part of TaskStore that a hold needs."""

    def read(self, task_id: str) -> Stored | None: ...
    def change(self, stored: Stored, record: Record) -> Stored: ...


class Hold:
    """The record as this attempt last wrote it.

    Every write is conditional (``If-Match``), so an attempt that was superseded or cancelled gets LostRace and writes
    nothing more. Thread-safe: writes are made one after another.
    """

    def __init__(self, records: Records, stored: Stored, record: Record, now: Callable[[], datetime]) -> None:
        self._records, self._stored, self._now = records, stored, now
        self._lock = threading.Lock()
        self.record = record
        self.signed_at = time.monotonic()
        """When the write of the last sign of life began, by this process's own clock."""

    @property
    def ended(self) -> bool:
        """Whether this attempt has ended: its record is terminal, or was released."""
        return self.record.lease is None

    @property
    def lapsed(self) -> bool:
        """Whether heartbeats failed for a whole lease, so that another worker may already have the task."""
        lease = self.record.lease
        if lease is None:
            return False
        if lease.seconds is None:
            return lease.expires_at <= self._now()
        return time.monotonic() - self.signed_at >= lease.seconds

    def move(self, move: Callable[[Record], Record]) -> None:
        """Applies ``move`` to the record and writes it. Raises LostRace if the task is no longer this attempt's, and
        ServiceFault.
        """
        with self._lock:
            began = time.monotonic()
            self._write(move(self.record))
            self.signed_at = began

    def _write(self, record: Record) -> None:
        try:
            self._stored = self._records.change(self._stored, record)
        except LostRace:
            # An earlier write may have succeeded although its response was an error: then the task is still this
            # attempt's, and only the ETag differs from the one that we know.
            latest = self._records.read(self.record.task_id)
            current = Record.from_json(latest.body) if latest else None
            if latest is None or current is None or not self._is_ours(current):
                raise
            record = record.model_copy(update={"sequence": current.sequence + 1})
            self._stored = self._records.change(latest, record)
        self.record = record

    def _is_ours(self, found: Record) -> bool:
        """Whether ``found`` is held by this attempt; owners' names are never used twice."""
        ours = self.record.lease
        return ours is not None and found.lease is not None and found.lease.owner == ours.owner
