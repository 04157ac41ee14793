"""Gives memory that was freed back to the system: glibc keeps it, and what lies between two kernels in use stays there.

Elsewhere (musl, macOS) there is no such call, and nothing is done.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = 50
"""Attempts between two calls, each of which takes milliseconds."""


class Heap:
    """Thread-safe. ``trim`` gives back what it can; None where there is nothing that does."""

    def __init__(self, trim: Callable[[], object] | None, every: int = EVERY) -> None:
        self._trim, self._every = trim, every
        self._ended = itertools.count(1)

    def attempt_ended(self) -> None:
        """To be called after each attempt, in its own thread: others wait for no more than their next allocation."""
        if next(self._ended) % self._every == 0 and self._trim is not None:
            self._trim()


def trim_of(library: object) -> Callable[[], object] | None:
    """glibc's ``malloc_trim``, if this C library has it."""
    trim = getattr(library, "malloc_trim", None)
    return None if trim is None else lambda: trim(ctypes.c_size_t(0))


def own_heap() -> Heap:
    """This process's."""
    return Heap(trim_of(ctypes.CDLL(None)))
