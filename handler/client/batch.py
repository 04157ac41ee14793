"""Many requests at once, with a limit on those in flight; results in the order of completion."""

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
    """The outcome of one request. ``index``: its position in the iterable, from 0.

    ``fault`` is None if the task completed. Otherwise it is the task's own fault, StillRunning after the timeout, or
    the error that kept the client from reading the result; ``task_id`` can then be waited for again.
    """

    index: int
    asked: Asked
    task_id: str
    result: ResultResponse | None
    fault: DarkroomError | None


Draw: TypeAlias = "Callable[[int, Asked, str, threading.Event], Drawn]"
"""Submits one request as a task and waits for it, or until the event is set. Raises only programming errors."""
Name: TypeAlias = "Callable[[Asked], str]"
"""The task_id for a request."""


class Batch:
    """An iterator over the outcomes of many requests, in the order of completion.

    ``width``: the most requests in flight. If it ends early (an error in the iterable, Ctrl-C, a ``break``),
    :attr:`in_flight` has every task that was or may have been submitted and was not returned; they go on in the
    service.
    """

    def __init__(self, asked: Iterable[Asked], draw: Draw, name: Name, width: int) -> None:
        self._asked: Iterator[Asked] = iter(asked)
        self._draw, self._name, self._width = draw, name, width
        self._ended: SimpleQueue[Drawn | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._broken: BaseException | None = None
        self._count, self._all = 0, False
        self._flying: dict[int, tuple[str, Asked]] = {}
        # The threads hold no reference to the batch, so that it can be collected, which then stops them.
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Batch:
        return self

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_flight(self) -> dict[str, Asked]:
        """The requests in flight, by task_id."""
        return dict(self._flying.values())

    def close(self) -> None:
        """Stops submitting and waiting; tasks in flight go on in the service."""
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
                # Raised to the caller only after all that is in flight was returned.
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
        ended.put(fault)  # else the caller would wait for ever
