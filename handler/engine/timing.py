"""Seconds that a device takes for forwards: a launch on CUDA returns long before its work is done."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


class Event(Protocol):
    """What is used of :class:`torch.cuda.Event`."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> float: ...


class Watch:
    """Measures forwards without waiting for them. ``event``: makes the device's events; None where calls return when
    the work is done, as on a CPU.
    """

    def __init__(self, event: Callable[[], Event] | None = None) -> None:
        self._event = event
        self._running: deque[tuple[Event, Event]] = deque()
        self._last: float | None = None
        self._began = 0.0
        self._first: Event | None = None

    def begin(self) -> None:
        """Now a forward is launched."""
        self._began = time.perf_counter()
        if self._event is not None:
            self._first = self._event()
            self._first.record()

    def end(self) -> float:
        """It is launched. Returns the seconds of the last forward that is known to be done; the first is waited for."""
        if self._event is None or self._first is None:
            return time.perf_counter() - self._began
        last = self._event()
        last.record()
        self._running.append((self._first, last))
        if self._last is None:
            last.synchronize()
        while self._running and self._running[0][1].query():
            begun, ended = self._running.popleft()
            self._last = begun.elapsed_time(ended) / 1000
        return self._last or 0.0


def watch_of(device: torch.device) -> Watch:
    """The watch for forwards on this device."""
    return Watch(_cuda_event) if device.type == "cuda" else Watch()


def _cuda_event() -> Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
