"""An attempt's time: does what comes next fit before the host's deadline, or before the worker stops? Is it stuck?"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

from ..errors import OutOfTime, Suspended, TimedOut

if TYPE_CHECKING:
    from ..contract.health import Measured
    from ..contract.request import GenerationRequest

RESERVE = 5.0
"""Seconds before a deadline that are kept for writing a checkpoint and releasing the task."""
TAIL = 1.0
"""Seconds that decoding, encoding and upload take after the last step, until this process has measured them."""
STUCK = 20
"""Times a step's usual seconds after which a task counts as stuck, if that is more than ``STEP_LIMIT``."""
USUAL_SIDE = 512
"""Pixels a side of a picture whose request and model name none."""

Part = Literal["text", "step", "tail"]


def size_of(request: GenerationRequest) -> int:
    """Pixels of all images of a request."""
    return (request.width or USUAL_SIDE) * (request.height or USUAL_SIDE) * (request.num_images or 1)


class Costs:
    """What a process has measured: seconds of a task's parts by size, each a moving average. Thread-safe.

    ``text``: from the claim to the first step, of any size; ``step``; ``tail``: decode, encode, upload. Sizes are kept
    by powers of two; one that was never drawn is reckoned from the nearest that was, by the pixels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Part, dict[int, float]] = {"text": {}, "step": {}, "tail": {}}
        self._seeded = False

    def seed(self, measured: Measured | None) -> None:
        """What loading has measured, unless it is known already."""
        if measured is None or self._seeded:
            return
        with self._lock:
            self._seeded = True
            bucket = measured.pixels.bit_length()
            self._seconds["step"].setdefault(bucket, measured.step)
            self._seconds["tail"].setdefault(bucket, measured.other)

    def learn(self, part: Part, size: int, seconds: float) -> None:
        with self._lock:
            known, bucket = self._seconds[part], 0 if part == "text" else size.bit_length()
            known[bucket] = (known.get(bucket, seconds) + seconds) / 2

    def of(self, part: Part, size: int) -> float | None:
        """Seconds that it is going to take; None before any was measured."""
        with self._lock:
            known, bucket = self._seconds[part], 0 if part == "text" else size.bit_length()
            if not known:
                return None
            nearest = min(known, key=lambda one: abs(one - bucket))
            return float(known[nearest] * 2.0 ** (bucket - nearest))

    def text(self) -> float:
        return self.of("text", 1) or 0.0

    def step(self, size: int) -> float:
        return self.of("step", size) or 0.0

    def tail(self, size: int) -> float:
        seconds = self.of("tail", size)
        return TAIL if seconds is None else seconds

    def least(self, size: int, left: int) -> float:
        """Seconds that an attempt takes at least, to save a step more, or to end a task with ``left`` steps to go."""
        return self.text() + (self.step(size) if left > 0 else 0.0) + (self.tail(size) if left <= 1 else 0.0)


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
    has left; ``step_limit``: seconds without a step that make it stuck.
    """

    def __init__(
        self, deadline: float = float("inf"), seconds: float = float("inf"), *, step_limit: float = float("inf")
    ) -> None:
        self._deadline, self._seconds, self._step_limit = deadline, seconds, step_limit
        self._costs, self._size, self._whole = Costs(), 1, float("inf")
        self._started = 0.0
        self._moved: float | None = None
        self._usual = 0.0
        self._began: float | None = None
        self._pace: Pace | None = None
        self._finish_by: float | None = None

    def know(self, costs: Costs, size: int, whole: float = float("inf")) -> None:
        """Reckons with ``costs``, and adds to them. ``whole``: seconds of an invocation from its beginning."""
        self._costs, self._size, self._whole = costs, size, whole

    def begin(self) -> None:
        """The attempt begins to draw: from here on it has to move."""
        self._started = self._moved = time.monotonic()
        self._usual = self._costs.step(self._size)

    def end(self) -> None:
        """The picture is decoded: what is left waits for S3, and cannot be stuck."""
        self._moved = None

    def text_is_done(self) -> None:
        self._began = now = time.monotonic()
        if self._moved is not None:
            self._costs.learn("text", self._size, now - self._started)
            self._moved = now

    def suspend_by(self, finish_by: float) -> None:
        """From now on steps are admitted only if the task will be done by ``finish_by`` (time.monotonic)."""
        self._finish_by = finish_by

    @property
    def spent(self) -> float:
        """Seconds since this attempt's first step."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def stuck(self) -> float | None:
        """Seconds without a step, once these are too many; None while it moves, or need not."""
        if (moved := self._moved) is None:
            return None
        seconds = time.monotonic() - moved
        return seconds if seconds > max(self._step_limit, STUCK * self._usual) else None

    def admit(self, step: int, steps: int) -> float | None:
        """Admits step ``step`` of ``steps``. Returns the estimated seconds until the task is done, None before a step
        was measured.

        Raises Suspended if the task must go on elsewhere, TimedOut if the next step fits into no invocation, and
        OutOfTime if the task has drawn for as long as it may.
        """
        seconds = self._measure(step)
        if self.spent >= self._seconds:
            raise OutOfTime("the task has used up its seconds of drawing")
        last = step + 1 >= steps
        tail = self._costs.tail(self._size)
        self._fits((seconds or self._costs.step(self._size)) + (tail if last else 0.0), "the next step")
        left = seconds * (steps - step) + tail
        if self._finish_by is not None and (not seconds or time.monotonic() + left > self._finish_by):
            raise Suspended("the worker stops")
        return left if seconds else None

    def admit_tail(self) -> None:
        """Admits what follows the last step. Raises Suspended or TimedOut as ``admit`` does."""
        tail = self._costs.tail(self._size)
        self._moved, self._usual = time.monotonic(), max(self._usual, tail)
        self._fits(tail, "what follows the last step")
        if self._finish_by is not None and time.monotonic() + tail > self._finish_by:
            raise Suspended("the worker stops")

    def _measure(self, step: int) -> float:
        """The attempt's mean seconds per step so far, 0 before the first was measured."""
        now = time.monotonic()
        if self._pace is None:
            self._pace, self._began = Pace(step), self._began or now
        elif self._moved is not None:
            self._costs.learn("step", self._size, now - self._moved)
        seconds = self._pace.step_seconds(step)
        self._moved, self._usual = now, max(self._usual, seconds)
        return seconds

    def _fits(self, seconds: float, what: str) -> None:
        if time.monotonic() + seconds + RESERVE <= self._deadline:
            return
        if self._costs.text() + seconds + RESERVE > self._whole:
            # Suspended it would come back for ever. TimedOut counts as a failed try instead.
            raise TimedOut(f"{what} does not fit into an invocation")
        raise Suspended(f"{what} does not fit into this invocation")
