"""How fast a task goes, and so what still fits."""

from __future__ import annotations

import time


class Pace:
    """This attempt's own measured steps; those that a checkpoint answered do not count."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._began = time.monotonic()

    def step_seconds(self, step: int) -> float:
        """Mean seconds a step so far; 0 before the first was measured."""
        return (time.monotonic() - self._began) / (step - self.first) if step > self.first else 0.0
