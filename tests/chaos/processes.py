"""Processes whose every call of S3 and SQS, and every step of a picture, waits to be let through.

One runs at a time, in a thread of its own, until it is about to make its next call. Then whoever drives decides who
goes on, what becomes of the call, and whether the process lives to see it. So calls come in any order, a process dies
between any two of them, and nothing sleeps.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..memory import Trouble

LONGEST = 30.0
"""Seconds after which a process that does not come to its next call hangs."""
RUNNING = threading.local()


TIMED = (
    *("work.serving", "work.delivery", "work.developing"),
    *("task.budget", "task.claims", "task.heartbeat", "task.hold", "task.saved"),
)
"""Modules of ``handler`` that measure time for a task, in the thread that serves it."""


class HistorysTime:
    """In place of the module ``time``: a process of a history sees that history's seconds, all others the real ones."""

    @staticmethod
    def monotonic() -> float:
        process = running()
        return process.seconds() if process else time.monotonic()

    perf_counter = monotonic


def keep_time() -> None:
    """From now on, in all of TIMED."""
    for name in TIMED:
        vars(importlib.import_module(f"handler.{name}"))["time"] = HistorysTime


class Killed(BaseException):
    """The process ends here, as by SIGKILL: none of its calls is made any more."""


class Process:
    """``kind``: what it does. ``ends``: when, by ``seconds``, its host kills it. ``at``: the call that it is about to
    make.
    """

    def __init__(self, kind: str, work: Callable[[], object], seconds: Callable[[], float], within: float) -> None:
        self.kind, self.seconds, self.ends, self.at, self.done = kind, seconds, seconds() + within, "begin", False
        self.owner = ""
        """Of the attempt that it makes, if it makes one."""
        self.broke = False
        """Whether that attempt ended by its task's own fault."""
        self.fault: BaseException | None = None
        self._trouble: Trouble = "none"
        self._order = "go on"
        self._killed = False
        self._work = work
        self._turn, self._parked = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._parked.acquire()
        threading.Thread(target=self._run, name=kind, daemon=True).start()

    def go(self, trouble: Trouble = "none", order: str = "go on") -> None:
        """Lets the process go on to its next call. ``trouble`` is what becomes of the one that it is about to make,
        ``order`` what the engine is to do if it is a step.
        """
        self._trouble, self._order = trouble, order
        self._turn.release()
        if not self._parked.acquire(timeout=LONGEST):
            raise AssertionError(f"{self.kind} hangs after {self.at}")

    def kill(self) -> None:
        """Nothing that the process still does on its way out reaches anybody."""
        self._killed = True
        while not self.done:
            self.go()

    def wait_turn(self, at: str) -> tuple[Trouble, str]:
        """Called by the process itself."""
        if self._killed:
            raise Killed
        self.at = at
        self._parked.release()
        self._turn.acquire()
        if self._killed:
            raise Killed
        return self._trouble, self._order

    def _run(self) -> None:
        self._turn.acquire()
        RUNNING.process = self
        try:
            if not self._killed:
                self._work()
        except Killed:
            pass
        except BaseException as fault:  # told to whoever drives
            self.fault = fault
        self.done = True
        self._parked.release()


def running() -> Process | None:
    """The process whose thread this is."""
    found: Any = getattr(RUNNING, "process", None)
    return found if isinstance(found, Process) else None


def gate(call: str) -> Trouble:
    """For the store and the queues. The threads that a process starts beside its own make their calls at once."""
    process = running()
    return process.wait_turn(call)[0] if process else "none"
