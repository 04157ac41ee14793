"""The engine's places: how many tasks at a time, and one that has all of them to itself."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slots:
    """Thread-safe. Who waits to be alone goes before all who come later, or it would wait for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._lone = 0

    @contextmanager
    def hold(self, capacity: int, timeout: float | None = None, *, alone: bool = False) -> Iterator[None]:
        """Holds one of ``capacity`` places, or with ``alone`` all of them. Raises TimeoutError after ``timeout``
        seconds of waiting.
        """
        places = capacity if alone else 1

        def free() -> bool:
            return (alone or not self._lone) and self._taken + places <= capacity

        with self._changed:
            self._lone += alone
            try:
                if not self._changed.wait_for(free, timeout):
                    raise TimeoutError("no place was free in time")
                self._taken += places
            finally:
                self._lone -= alone
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= places
                self._changed.notify_all()
