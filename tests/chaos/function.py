"""Lambda beside the fleet: it polls the queue for one process of the drawing function, and ends that at its deadline.

The process is the container's own entrypoint under the Runtime API: the runtime client, ``handler.generate.handle``.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import TYPE_CHECKING

from handler.errors import ServiceFault

from ..runtime_api import RuntimeApi
from ..support import event_of
from .scaled import BATCH

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from handler.aws.queue import Message, TaskQueue

INVOCATION = (6.5, 7.5, 10)
"""Seconds, of which the handler keeps five back: some have no room for all that they are given."""
LAMBDA = "lambda"
"""The door of the proxy that Lambda's own poller comes through, where nothing goes wrong."""


class Function(threading.Thread):
    """A process, from its start to its end. ``kill`` ends it, as Lambda does with what outlasts its deadline."""

    def __init__(self, tasks: TaskQueue, draw: random.Random, kill: Callable[[], None]) -> None:
        super().__init__(name=LAMBDA, daemon=True)
        self._tasks, self._draw, self._kill = tasks, draw, kill
        self._api, self._over = RuntimeApi(), threading.Event()
        self.environ = self._api.variables
        self.invocations = self.given_back = 0
        self.outlasted = False
        self.fault: str = ""

    def end(self) -> None:
        """The process has ended, or is to end with the invocation that it serves."""
        self._over.set()

    def run(self) -> None:
        with self._api:
            while not self._over.is_set():
                try:
                    self._api.wait_asked(0.2)
                    messages = self._tasks.receive(BATCH, 1)  # hidden as long as the queue says
                except (TimeoutError, ServiceFault):
                    continue
                if messages:
                    self._invoke(messages, self._draw.choice(INVOCATION))

    def _invoke(self, messages: list[Message], seconds: float) -> None:
        self.invocations += 1
        self._api.send(event_of(*messages), seconds)
        answer = self._answer(time.monotonic() + seconds)
        if answer is None:
            return
        if "batchItemFailures" not in answer:
            self.fault = f"the function answered {str(answer)[:200]}"
            return
        left = {one["itemIdentifier"] for one in answer["batchItemFailures"]}
        self.given_back += len(left)
        for message in messages:
            if message.message_id not in left:
                self._tasks.delete(message.receipt_handle)

    def _answer(self, deadline: float) -> dict[str, list[dict[str, str]]] | None:
        """None if the process has ended, or had to be."""
        while time.monotonic() < deadline:
            try:
                told: dict[str, list[dict[str, str]]] = json.loads(self._api.answer(0.1))
            except queue.Empty:
                if self._over.is_set():
                    return None
            else:
                return told
        self.outlasted = True
        self._kill()
        return None
