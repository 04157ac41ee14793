"""Those who tidy up beside the fleet: the doctor on its rounds, and an operator who redrives what is out of tries."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.care.redrive import Redrive
from handler.care.rounds import Doctor
from handler.errors import ServiceFault

if TYPE_CHECKING:
    from handler.settings import Settings

CARE = "care"
"""The door of the proxy that they come through."""


class Care(threading.Thread):
    """A round ``every`` so many seconds. ``rounds`` were made to the end, and ``broken`` by a fault of S3 or SQS."""

    def __init__(self, settings: Settings, every: float) -> None:
        super().__init__(name=CARE, daemon=True)
        store, queue = TaskStore(settings), TaskQueue(settings)
        self._doctor, self._redrive = Doctor(settings, store, queue), Redrive(store, queue)
        self._every, self._stop_now = every, threading.Event()
        self.rounds = self.broken = self.mended = self.redriven = 0
        self.fault: Exception | None = None

    def run(self) -> None:
        self._look()
        while not self._stop_now.wait(self._every):
            self._look()

    def stop(self) -> None:
        """Ends the rounds with one more."""
        self._stop_now.set()
        self.join()
        self._look()

    def _look(self) -> None:
        try:
            self.mended += sum(one.mended for one in self._doctor.examine(fix=True))
            self.redriven += len(list(self._redrive.all()))
            self.rounds += 1
        except ServiceFault:
            self.broken += 1  # the next round goes on
        except Exception as fault:  # told among the violations
            self.fault = fault
