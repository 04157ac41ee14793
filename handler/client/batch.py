"""Many requests at once: so many in flight and no more, results as they come, and no task forgotten."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..contract.responses import ResultResponse
    from ..errors import DarkroomError
    from .asking import Asked


@dataclass(frozen=True)
class Drawn:
    """What became of one request. ``index`` counts from 0 in the order of asking.

    ``fault`` is None where the task completed. Else it says why not: the task's own fault, StillRunning where the
    time to wait was over, or what kept the client from finding out; ``task_id`` then tells where to look on.
    """

    index: int
    asked: Asked
    task_id: str
    result: ResultResponse | None
    fault: DarkroomError | None


Draw: TypeAlias = "Callable[[int, Asked, str, threading.Event], Drawn]"
"""Submits one request as a task and waits for it, until the event is set. Raises what is nobody's fault but ours."""
Name: TypeAlias = "Callable[[Asked], str]"
"""What the task of a request will be called."""


class Batch:
    """An iterator over what becomes of many requests, in the order in which they end.

    Whatever ends it early (a fault in the iterable, Ctrl-C, a loop that is left), :attr:`in_flight` names every task
    that was submitted, or may have been, and was not yet handed out; the service goes on with them.
    """

    def __init__(self, asked: Iterable[Asked], draw: Draw, name: Name, width: int) -> None:
        self._asked: Iterator[Asked] = iter(asked)
        self._draw, self._name, self._width = draw, name, width
        self._ended: SimpleQueue[Drawn | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._broken: BaseException | None = None
        self._count, self._all = 0, False
        self._flying: dict[int, tuple[str, Asked]] = {}
        # The threads do not know the batch: so it ends, and they with it, when nobody holds it any more.
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Batch:
        return self

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_flight(self) -> dict[str, Asked]:
        """What was asked for, by task_id."""
        return dict(self._flying.values())

    def close(self) -> None:
        """Nothing more is submitted or waited for; what is in flight goes on in the service."""
        self._stop.set()

    def __next__(self) -> Drawn:
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as fault:
            self.close()
            if self._flying:
                fault.add_note(f"submitted and not handed out: {' '.join(self.in_flight)}")
            raise

    def _next(self) -> Drawn:
        while not self._stop.is_set():
            self._fill()
            if not self._flying:
                break
            ended = self._ended.get()
            if isinstance(ended, BaseException):
                raise ended
            del self._flying[ended.index]
            return ended
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken
        raise StopIteration

    def _fill(self) -> None:
        while not self._all and len(self._flying) < self._width:
            try:
                asked = next(self._asked)
                task_id = self._name(asked)
            except StopIteration:
                self._all = True
            except Exception as fault:
                # What is in flight is waited for first; then the caller hears of it.
                self._all, self._broken = True, fault
            else:
                self._begin(asked, task_id)

    def _begin(self, asked: Asked, task_id: str) -> None:
        self._flying[self._count] = task_id, asked
        arguments = (self._draw, self._count, asked, task_id, self._stop, self._ended)
        threading.Thread(target=_work, args=arguments, name=f"darkroom {task_id}", daemon=True).start()
        self._count += 1


def _work(
    draw: Draw,
    index: int,
    asked: Asked,
    task_id: str,
    stop: threading.Event,
    ended: SimpleQueue[Drawn | BaseException],
) -> None:
    try:
        ended.put(draw(index, asked, task_id, stop))
    except BaseException as fault:
        ended.put(fault)  # or the caller would wait for ever
