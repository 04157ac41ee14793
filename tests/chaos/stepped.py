"""An engine that does at each step what it is told, and a queue that gives a worker one message."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handler.engine import Developed, EncodedImage
from handler.errors import Internal, OutOfMemory
from tests.support import CARD

from .processes import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from handler.aws.queue import Message
    from handler.contract.request import GenerationRequest

    from .processes import Process

ORDERS = ("go on", "go on", "go on", "beat", "save", "break", "refuse", "suspend", "suspend unsaved", "slow")
"""``break`` is the task's own fault, ``refuse`` its end; ``suspend unsaved`` is a pipeline that cannot be resumed."""
SLOW = 6.0
"""Seconds of a slow step; the others take none."""
POISON = "poison"
"""A prompt that breaks every attempt at its last step."""


def picture_of(request: GenerationRequest) -> bytes:
    """What is drawn for it, by whoever, in one go or several."""
    return f"{request.prompt}, seed {request.seed}, {request.num_inference_steps} steps".encode()


@dataclass
class Steps:
    """What is drawn of a picture; its snapshot is the picture's name and a number."""

    name: bytes
    done: int
    savable: bool = True

    def snapshot(self) -> bytes:
        return b"%b|%d" % (self.name, self.done) if self.savable and self.done else b""

    def saved_steps(self) -> int:
        return self.done if self.savable else 0

    def preview(self) -> bytes:
        return b""


class SteppedEngine:
    """Its process waits before each step, and does as it is ordered then. ``passes`` lets time go on."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        self._passes = passes

    card = CARD
    load_seconds = 0.0
    capacity = 64
    measured = None

    def slot(self, timeout: float | None = None, *, alone: bool = False) -> AbstractContextManager[None]:
        """A claim begins: what the process writes is not yet an attempt's. (``alone``: it has been claimed by then.)"""
        if (process := running()) and not alone:
            process.owner, process.broke = "", False
        return nullcontext()

    def develop(
        self, request: GenerationRequest, observer: Any, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        process = running()
        assert process is not None
        name, _, done = checkpoint.partition(b"|")
        steps = Steps(picture_of(request), int(done) if name == picture_of(request) else 0)
        observer.begins(steps)
        total = request.num_inference_steps or 1
        while steps.done < total:
            observer.at_step(steps.done, total)
            _, order = process.wait_turn("step")
            self._obey(order, process, observer, steps)
            steps.done += 1
        if request.prompt == POISON:
            self._break(process)
        return Developed([picture_of(request)] * request.num_images, 0.0, 0.0, 0.0, batch_size=1)

    def _obey(self, order: str, process: Process, observer: Any, steps: Steps) -> None:
        if order == "beat":
            observer.beat()
            observer.hidden.extend_visibility()
        elif order == "save":
            observer.save()
            observer.beat()
        elif order == "slow":
            self._passes(SLOW)
        elif order == "break":
            self._break(process)
        elif order == "refuse":
            raise OutOfMemory("too large")
        elif order.startswith("suspend"):
            steps.savable = order == "suspend"
            observer.suspend_by(0.0)

    @staticmethod
    def _break(process: Process) -> NoReturn:
        process.broke = True
        raise Internal("it broke")

    def checkpoint_name(self, request: GenerationRequest, image: bytes = b"") -> str:
        return f"{request.seed or 0:016x}"

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        return [
            EncodedImage(body, "image/png", "png", seed, 8, 8)
            for body, seed in zip(developed.pictures, request.seeds(), strict=True)
        ]

    def close(self) -> None:
        """Holds nothing."""


class Inbox:
    """The queue as a worker sees it that gets one message and then is told to stop."""

    def __init__(self, queue: Any, take: Callable[[float | None], Message]) -> None:
        self._queue, self._take = queue, take
        self._given = False
        self.stop: Callable[[], None]

    def receive(self, most: int = 1, wait: float = 20, hidden: float | None = None) -> list[Message]:
        if not self._given:
            self._given = True
            return [self._take(hidden)]
        self.stop()
        return []

    def delete(self, receipt_handle: str) -> None:
        self._queue.delete(receipt_handle)

    def change_visibility(self, receipt_handle: str, seconds: float) -> None:
        self._queue.change_visibility(receipt_handle, seconds)


class Inline:
    """An executor without threads: the process's own serves its messages, one after the other."""

    def submit(self, work: Callable[..., object], *arguments: object) -> Future[object]:
        done: Future[object] = Future()
        done.set_result(work(*arguments))
        return done
