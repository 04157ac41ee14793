"""Long-polls SQS for messages, of the task queue and of the dead-letter queue."""

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
"""Seconds of a long poll. It cannot be interrupted, so this bounds how long a stop takes."""
PAUSE_AFTER_FAULT = 2.0


class Poller:
    """Receives messages until ``stop`` is set; those that arrive after that go back to the queue at once. Never raises.

    ``hidden``: the visibility timeout in seconds, the queue's own if None; ``wait``: seconds of a long poll.
    """

    def __init__(
        self, queue: TaskQueue, stop: threading.Event, *, hidden: float | None = None, wait: int = POLL_SECONDS
    ) -> None:
        self._queue, self._stop, self._hidden, self._wait = queue, stop, hidden, wait
        self.answered = True
        """Whether SQS answered the last poll."""

    def receive(self, most: int) -> list[Message]:
        """Up to ``most`` messages, after one long poll at most; none once ``stop`` is set."""
        messages = self._receive(most, self._wait)
        if not self._stop.is_set():
            return messages
        for message in messages:
            self._return(message)
        return []

    def receive_now(self, most: int) -> list[Message]:
        """Up to ``most`` messages without waiting, even after ``stop``."""
        return self._receive(most, 0)

    def _receive(self, most: int, wait: float) -> list[Message]:
        try:
            messages = self._queue.receive(most, wait, self._hidden)
        except ServiceFault as fault:
            self.answered = False
            logger.warning("no messages received", fault=fault.message, cause=str(fault.__cause__))
            self._stop.wait(PAUSE_AFTER_FAULT)
            return []
        self.answered = True
        return messages

    def _return(self, message: Message) -> None:
        try:
            self._queue.change_visibility(message.receipt_handle, 0)
        except ServiceFault as fault:
            logger.warning("the message comes back when its visibility timeout ends", fault=fault.message)


def serve_dead_letters(letters: DeadLetters, queue: TaskQueue) -> None:
    """Starts a thread that serves the messages of the dead-letter ``queue`` for the life of the process."""
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
