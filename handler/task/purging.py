"""The one move of a task that has ended, beside redrive: its caller wants nothing of it to be left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.statuses import TERMINAL
from ..errors import Conflict

if TYPE_CHECKING:
    from ..contract.record import Record


def purge(record: Record) -> Record:
    """The record without what was asked for and what was drawn; its id, status and times stay until ``expires_at``.

    Without a request it can be neither retried nor redriven, and without a fingerprint it consumes every message of its
    id: a late duplicate draws nothing. Raises Conflict for a task that has not ended.
    """
    if record.status not in TERMINAL:
        raise Conflict(f"task {record.task_id} is {record.status}: cancel it first")
    if record.purged:
        return record
    nothing: dict[str, Any] = {
        "request": None,
        "fingerprint": None,
        "images": [],
        "input": None,
        "preview": None,
        "body": None,
    }
    return record.next(**nothing, purged=True, warnings=[])
