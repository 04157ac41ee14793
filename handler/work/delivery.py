"""One receipt of a message: until when it can be served, and how it goes back to the queue."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.queue import Message
    from ..errors import DarkroomError
    from ..task.attempt import Attempt
    from ..task.heartbeat import Hidden

FIRST_DELAY, LONGEST_DELAY = 5.0, 900.0
"""Seconds of delay after a retryable fault: doubled with each fault of the task, up to the second."""


class Returned(Exception):
    """The message stays in the queue; its visibility timeout is already set."""


@dataclass
class Delivery:
    """``deadline`` (time.monotonic): when the host ends; ``hidden`` keeps the message hidden until then;
    ``attempt`` is its task's, once that is claimed; ``drawn`` is called when that needs the engine no longer.

    ``tries``: faults of its task so far, counting the one that may come now. Until the record is read it is the receive
    count, which also counts receipts while another attempt held the task; of the surroundings' faults the process knows
    better.
    """

    message: Message
    deadline: float
    hidden: Hidden
    chance: Callable[[], float]
    tries: int = 1
    attempt: Attempt | None = None
    drawn: Callable[[], None] = lambda: None
    whole: float = field(init=False)
    """Seconds that the host had in all."""

    def __post_init__(self) -> None:
        self.tries = int(self.message.attributes.get("ApproximateReceiveCount", 1))
        self.whole = self.left

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def put_off(self, seconds: float) -> NoReturn:
        """Hides the message until it is due; nothing is wrong with it. Raises Returned."""
        logger.info("not due yet", message_id=self.message.message_id, seconds=seconds)
        self.hidden.show(seconds)
        raise Returned("not due yet")

    def give_back(self, fault: DarkroomError, after: float | None = None) -> NoReturn:
        """Returns the message to the queue for ``after`` seconds; if None, for an exponential backoff with jitter.
        Raises Returned.
        """
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self.tries - 1, 10))
        # Jitter, from half of it to all of it: messages that failed together do not come back together.
        delay = longest * (0.5 + 0.5 * self.chance()) if after is None else after
        cause = str(fault.__cause__) if fault.__cause__ else None
        name = self.message.message_id
        logger.info("back to the queue", message_id=name, fault=fault.message, cause=cause, seconds=delay)
        self.hidden.show(delay)
        raise Returned(fault.message) from fault
