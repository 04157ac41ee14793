"""SQS in memory, with the public methods of TaskQueue, which passes the same contract (tests/aws)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from handler.aws.queue import Backlog, Message

from .memory import at_once, through

if TYPE_CHECKING:
    from collections.abc import Callable

    from .memory import Trouble


@dataclass
class Held:
    """A message in a queue. ``visible_at``: seconds, by the queue's clock; ``handles`` that were given out for it."""

    name: str
    body: str
    sent_at: float
    visible_at: float
    tenant: str | None = None
    trace: str | None = None
    receives: int = 0
    handles: list[str] = field(default_factory=list)


class MemoryQueue:
    """A queue. ``seconds``: the time; ``pause`` waits in a long poll: without it none waits."""

    url = "memory"

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        gate: Callable[[str], Trouble] = at_once,
        visibility: float = 30,
        max_receives: int = 0,
        dead: MemoryQueue | None = None,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        self._seconds, self._gate, self._visibility, self._pause = seconds, gate, visibility, pause
        self._max_receives, self._dead = max_receives, dead
        self.clear()

    def clear(self) -> None:
        self.messages: list[Held] = []
        self.given = 0

    def send(self, body: str, delay: float = 0, *, trace: str | None = None, tenant: str | None = None) -> str:
        def sent() -> str:
            self.given += 1
            now = self._seconds()
            held = Held(f"message-{self.given}", body, now, now + min(round(delay), 900), tenant, trace)
            self.messages.append(held)
            return held.name

        name: str = through(self._gate, "SQS: send", sent)
        return name

    def receive(self, most: int = 1, wait: float = 20, hidden: float | None = None) -> list[Message]:
        until = self._seconds() + wait
        while not self.visible() and self._pause is not None and self._seconds() < until:
            self._pause(0.02)
        return [self.deliver(held, hidden) for held in self.visible()[:most]]

    def visible(self) -> list[Held]:
        """What the next receiver may get, in any order. What came too often goes to the dead letters."""
        now = self._seconds()
        there = [one for one in self.messages if one.visible_at <= now]
        for one in there if self._max_receives and self._dead is not None else []:
            if one.receives >= self._max_receives:
                self.messages.remove(one)
                self._dead_letters.append(Held(one.name, one.body, one.sent_at, now, one.tenant, one.trace))
        return [one for one in there if one in self.messages]

    @property
    def _dead_letters(self) -> list[Held]:
        assert self._dead is not None
        return self._dead.messages

    def deliver(self, held: Held, hidden: float | None = None) -> Message:
        """Gives the message to a receiver; with ``hidden`` 0 it stays to be delivered once more, as SQS may do."""
        self.given += 1
        held.handles.append(f"handle-{self.given}")
        held.receives += 1
        held.visible_at = self._seconds() + (self._visibility if hidden is None else hidden)
        attributes = {"ApproximateReceiveCount": str(held.receives), "SentTimestamp": str(int(held.sent_at * 1000))}
        traced = {"AWSTraceHeader": held.trace} if held.trace else {}
        return Message(held.name, held.handles[-1], held.body, attributes | traced, held.tenant)

    def delete(self, receipt_handle: str) -> None:
        def gone() -> None:
            self.messages = [one for one in self.messages if receipt_handle not in one.handles]

        through(self._gate, "SQS: delete", gone)

    def change_visibility(self, receipt_handle: str, seconds: float) -> None:
        def changed() -> None:
            for one in self.messages:
                if receipt_handle in one.handles:
                    one.visible_at = self._seconds() + min(max(0, round(seconds)), 12 * 3600)

        through(self._gate, "SQS: change visibility", changed)

    def backlog(self) -> Backlog:
        now = self._seconds()
        later = [one for one in self.messages if one.visible_at > now]
        delayed = sum(not one.receives for one in later)
        return Backlog(len(self.messages) - len(later), len(later) - delayed, delayed, 345600.0)
