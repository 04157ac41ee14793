"""What a task may use, what it has used, and when that is too much. Pure, as the moves are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DarkroomError, OutOfTime, RetriesExhausted

if TYPE_CHECKING:
    from datetime import datetime

    from ..contract.record import Record
    from ..settings import Settings


@dataclass(frozen=True)
class Limits:
    """What a task may use: ``tries``, and ``seconds`` of drawing over all attempts (0: any number)."""

    tries: int = 5
    seconds: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.max_tries, settings.max_task_seconds)


@dataclass(frozen=True)
class Done:
    """What an attempt has done so far: ``seconds`` of drawing, and the steps that are saved."""

    seconds: float = 0.0
    saved_step: int = 0


def over(record: Record, limits: Limits, now: datetime) -> DarkroomError | None:
    """Why the task may not go on: its tries or its time are used up, or it is past its retention. None if it may."""
    if record.expires_at <= now:
        return OutOfTime("the task was not finished before it expired")
    if record.tries >= limits.tries:
        tried = f"{record.tries} {'try' if record.tries == 1 else 'tries'}"
        return RetriesExhausted(f"given up after {tried}; the last fault: {last_fault(record)}")
    if limits.seconds and record.spent_seconds >= limits.seconds:
        return OutOfTime(f"the task has used up its {limits.seconds:g} seconds of drawing")
    return None


def last_fault(record: Record) -> str:
    if record.attempts and record.attempts[-1].outcome == "expired":
        return "its worker was not heard of again"
    if record.error is not None:
        return f"{record.error.code}: {record.error.message}"
    return "none was recorded; no attempt ever began"
