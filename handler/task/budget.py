"""An attempt's time: does the next step fit before the host's deadline, or before the worker stops?"""

from __future__ import annotations

import time

from ..errors import OutOfTime, Suspended, TimedOut

RESERVE = 5.0
"""Seconds before a deadline that are kept for writing a checkpoint and releasing the task."""
TAIL = 1.0
"""Seconds that decoding, encoding and upload take after the last step, until this process has measured them."""


class Pace:
    """Step times of one attempt, measured from its step ``first``: steps taken from a checkpoint do not count."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._began = time.monotonic()

    def step_seconds(self, step: int) -> float:
        """Mean seconds per step so far; 0 before the first was measured."""
        return (time.monotonic() - self._began) / (step - self.first) if step > self.first else 0.0


class Budget:
    """One attempt's time. ``deadline`` (time.monotonic): when its host ends it; ``seconds``: of drawing that its task
    has left; ``tail``: seconds that follow the last step.
    """

    def __init__(self, deadline: float = float("inf"), seconds: float = float("inf"), tail: float = TAIL) -> None:
        self._deadline, self._seconds, self.tail = deadline, seconds, tail
        self._began: float | None = None
        self._pace: Pace | None = None
        self._finish_by: float | None = None

    def suspend_by(self, finish_by: float) -> None:
        """From now on steps are admitted only if the task will be done by ``finish_by`` (time.monotonic)."""
        self._finish_by = finish_by

    @property
    def spent(self) -> float:
        """Seconds since this attempt's first step."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def admit(self, step: int, steps: int) -> float | None:
        """Admits step ``step`` of ``steps``. Returns the estimated seconds until the task is done, None before a step
        was measured.

        Raises Suspended if the task must go on elsewhere, TimedOut if not even one step fits, and OutOfTime if the task
        has drawn for as long as it may.
        """
        if self._pace is None:
            self._pace, self._began = Pace(step), time.monotonic()
        if self.spent >= self._seconds:
            raise OutOfTime("the task has used up its seconds of drawing")
        seconds = self._pace.step_seconds(step)
        if time.monotonic() + seconds + RESERVE > self._deadline:
            if step == self._pace.first:
                # Suspending without any progress could repeat for ever. TimedOut counts as a failed try instead.
                raise TimedOut("not one step fits into what is left of this invocation")
            raise Suspended("the next step does not fit into this invocation")
        measured = step > self._pace.first
        left = seconds * (steps - step) + self.tail
        if self._finish_by is not None and (not measured or time.monotonic() + left > self._finish_by):
            raise Suspended("the worker stops")
        return left if measured else None
