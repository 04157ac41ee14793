"""What still fits: into the time that the host grants, and into the time until it goes."""

from __future__ import annotations

import time

from ..errors import Suspended, TimedOut

RESERVE = 5.0
"""Seconds before a deadline that are kept for saving a checkpoint and giving the task back."""
TAIL = 1.0
"""Seconds for what follows the last step (decoding, encoding, upload), until a task of this process has shown it."""


class Pace:
    """An attempt's own measured steps; those that a checkpoint answered do not count."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._began = time.monotonic()

    def step_seconds(self, step: int) -> float:
        """Mean seconds a step so far; 0 before the first was measured."""
        return (time.monotonic() - self._began) / (step - self.first) if step > self.first else 0.0


class Budget:
    """One attempt's time: ``deadline`` (time.monotonic) is when its host ends it; ``tail`` what follows the last step,
    in seconds.
    """

    def __init__(self, deadline: float = float("inf"), tail: float = TAIL) -> None:
        self._deadline, self.tail = deadline, tail
        self._pace: Pace | None = None
        self._finish_by: float | None = None

    def suspend_by(self, finish_by: float) -> None:
        """From now on only steps of a task that will be done by then (time.monotonic) are admitted."""
        self._finish_by = finish_by

    def admit(self, step: int, steps: int) -> float | None:
        """Lets step ``step`` of ``steps`` begin. Returns the seconds until the task is done, None before one is known.

        Raises Suspended where it has to go on elsewhere, and TimedOut where not one step fits.
        """
        if self._pace is None:
            self._pace = Pace(step)
        seconds = self._pace.step_seconds(step)
        if time.monotonic() + seconds + RESERVE > self._deadline:
            if step == self._pace.first:
                # Going on elsewhere without a step done could go on for ever: this way the queue counts.
                raise TimedOut("not one step fits into what is left of this invocation")
            raise Suspended("the next step does not fit into this invocation")
        measured = step > self._pace.first
        left = seconds * (steps - step) + self.tail
        if self._finish_by is not None and (not measured or time.monotonic() + left > self._finish_by):
            raise Suspended("the worker stops")
        return left if measured else None
