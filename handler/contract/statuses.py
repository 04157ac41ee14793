"""The statuses of a task. Apart from the record, for handlers that do without pydantic."""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})
