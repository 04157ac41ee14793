"""The load: tasks that arrive over time, driven through a server."""

from __future__ import annotations

import math
import threading
import time
import urllib.error
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 300
"""Seconds; a task that has no picture by then has failed."""
SWEEP_WITHIN = 30
"""Seconds to ask once more after all that were not found ready, when the time is up."""
POLL_EVERY = 0.25
"""Seconds between two questions, each about another task: finished times are the servers' own, on the same clock, and
whoever asks more often takes the cores that the pictures need.
"""


@dataclass(frozen=True)
class Task:
    """One request and when it arrives, in seconds from the start."""

    due: float
    prompt: str
    steps: int
    guidance: float
    seed: int

    def body(self) -> dict[str, Any]:
        """The fields that all of the servers share."""
        return {
            "prompt": self.prompt,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Outcome:
    """A PNG and when it could be had (seconds of ``time.time``), or a fault; ``late``: there was none in time."""

    finished: float
    picture: bytes = b""
    fault: str = ""
    late: bool = False


class Client(Protocol):
    def ask(self, task: Task) -> Outcome | str:
        """Asks for a picture. Returns it, or the name under which ``look`` will find it."""

    def look(self, name: str) -> Outcome | None:
        """None while there is neither a picture nor a failure."""


class Load:
    """Drives tasks through a server: each in a thread when it is due, and one thread that asks after them in turns."""

    def __init__(self, client: Client, tasks: Sequence[Task], patience: float = LIMIT) -> None:
        """``patience``: seconds after the last arrival; a task that has no picture by then has failed."""
        self._client, self._tasks, self._patience = client, tasks, patience
        self._outcomes: dict[int, Outcome] = {}
        self._asked: deque[tuple[int, str]] = deque()
        self._over = threading.Event()

    def run(self) -> tuple[float, list[Outcome]]:
        """When the first task was due (seconds of ``time.time``) and how each ended."""
        pool = ThreadPoolExecutor(len(self._tasks) + 1)
        began, ended = time.time(), math.inf
        try:
            polling = pool.submit(self._poll)
            for at, task in sorted(enumerate(self._tasks), key=lambda pair: pair[1].due):
                time.sleep(max(0.0, began + task.due - time.time()))
                pool.submit(self._ask, at)
            if not self._over.wait(self._patience):
                ended = time.time()
                self._over.set()
                wait([polling], SWEEP_WITHIN)
        finally:
            self._over.set()
            # Who still waits ends with the server, at the latest.
            pool.shutdown(wait=False, cancel_futures=True)
        late = Outcome(time.time(), fault=f"no picture within {self._patience} s", late=True)
        outcomes = [self._outcomes.get(at, late) for at in range(len(self._tasks))]
        return began, [one if one.finished <= ended else late for one in outcomes]

    def _ask(self, at: int) -> None:
        try:
            answer = self._client.ask(self._tasks[at])
        except Exception as fault:
            answer = Outcome(time.time(), fault=_words(fault))
        if isinstance(answer, Outcome):
            self._end(at, answer)
        else:
            self._asked.append((at, answer))

    def _poll(self) -> None:
        while not self._over.wait(POLL_EVERY):
            if self._asked:
                self._look()
        # A picture that is there was in time, even if its turn to be asked after had not come.
        for _ in range(len(self._asked)):
            self._look()

    def _look(self) -> None:
        at, name = self._asked.popleft()
        try:
            outcome = self._client.look(name)
        except Exception as fault:
            outcome = Outcome(time.time(), fault=_words(fault))
        if outcome is None:
            self._asked.append((at, name))
        else:
            self._end(at, outcome)

    def _end(self, at: int, outcome: Outcome) -> None:
        self._outcomes[at] = outcome
        if len(self._outcomes) == len(self._tasks):
            self._over.set()


def _words(fault: Exception) -> str:
    body = fault.read().decode(errors="replace") if isinstance(fault, urllib.error.HTTPError) else ""
    return f"{type(fault).__name__}: {fault} {body}".strip()
