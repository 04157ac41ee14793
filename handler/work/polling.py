"""Long polls: how a worker takes messages, from its queue and from the dead letters'."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..aws.queue import LONG_POLL
from ..errors import ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from ..aws.queue import Message, TaskQueue
    from ..care.deadletters import DeadLetters

POLL_SECONDS = 5
"""A long poll cannot be interrupted: it bounds how long a stop may take."""
PAUSE_AFTER_FAULT = 2.0


class Poller:
    """Takes messages until told to stop; what came too late for that goes back at once. Raises nothing."""

    def __init__(
        self, queue: TaskQueue, stop: threading.Event, *, hidden: float | None = None, wait: int = POLL_SECONDS
    ) -> None:
        self._queue, self._stop, self._hidden, self._wait = queue, stop, hidden, wait

    def receive(self, most: int) -> list[Message]:
        """Up to ``most`` messages, after at most the seconds of one poll; none once it is time to stop."""
        messages = self._receive(most, self._wait)
        if not self._stop.is_set():
            return messages
        for message in messages:
            self._return(message)
        return []

    def receive_now(self, most: int) -> list[Message]:
        """What there is, without waiting, stopped or not."""
        return self._receive(most, 0)

    def _receive(self, most: int, wait: float) -> list[Message]:
        try:
            return self._queue.receive(most, wait, self._hidden)
        except ServiceFault as fault:
            logger.warning("no messages received", fault=fault.message, cause=str(fault.__cause__))
            self._stop.wait(PAUSE_AFTER_FAULT)
            return []

    def _return(self, message: Message) -> None:
        try:
            self._queue.change_visibility(message.receipt_handle, 0)
        except ServiceFault as fault:
            logger.warning("the message comes back at the queue's own time", fault=fault.message)


def serve_dead_letters(letters: DeadLetters, queue: TaskQueue) -> None:
    """From now on, in a thread of its own, writes down what ends in the dead-letter ``queue``."""
    poller = Poller(queue, threading.Event(), wait=LONG_POLL)

    def serve() -> None:
        while True:
            for message in poller.receive(1):
                try:
                    if letters.serve(message):
                        queue.delete(message.receipt_handle)
                except Exception as fault:
                    # The message comes back; without this thread no later one would be served either.
                    logger.warning("a dead letter was not served", fault=str(fault))

    threading.Thread(target=serve, name="dead letters", daemon=True).start()
