"""The words for where a task is; apart from the record, for handlers that answer without pydantic."""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})
