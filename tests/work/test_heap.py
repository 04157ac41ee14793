"""When a worker gives memory back, and that it does nothing where that cannot be done."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from handler.work.heap import Heap, own_heap, trim_of


def test_memory_is_given_back_after_every_so_many_attempts() -> None:
    seen: list[str] = []
    heap = Heap(lambda: seen.append("trim"), every=3)
    for _ in range(7):
        seen.append("attempt")
        heap.attempt_ended()
    assert seen == ["attempt", "attempt", "attempt", "trim"] * 2 + ["attempt"]


def test_nothing_is_done_where_the_c_library_has_no_such_call() -> None:
    assert trim_of(SimpleNamespace()) is None  # musl's, macOS's
    heap = Heap(None, every=1)
    heap.attempt_ended()


def test_all_that_can_be_given_back_is_asked_for() -> None:
    asked: list[int | None] = []
    trim = trim_of(SimpleNamespace(malloc_trim=lambda kept: asked.append(kept.value)))
    assert trim is not None
    trim()
    assert asked == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_c_library_of_this_process_can_be_asked() -> None:
    heap = own_heap()
    for _ in range(100):
        heap.attempt_ended()
