"""How many messages a worker takes: so many that the engine never waits for one, and hardly more."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from handler.work.serving import Generate
from handler.worker import Worker

from ..support import PlainEngine, record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.contract.request import GenerationRequest
    from handler.engine import Developed, EncodedImage
    from handler.settings import Settings


def counts(queue: TaskQueue) -> tuple[int, int]:
    backlog = queue.backlog()
    return backlog.visible, backlog.hidden


def waits_for(happens: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if happens():
            return True
        time.sleep(0.05)
    return False


def test_the_next_task_is_drawn_while_the_last_one_is_encoded(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while that one waits for the engine, only one more message is taken."""
    plain.capacity = 1
    encode, encoding, go_on, drawing = plain.encode, threading.Event(), threading.Event(), threading.Event()

    def slow(developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        encoding.set()
        assert go_on.wait(60)
        return encode(developed, request)

    def second() -> None:
        if encoding.is_set():
            drawing.set()
            assert go_on.wait(60)

    monkeypatch.setattr(plain, "encode", slow)
    plain.between = second
    worker = Worker(Generate(settings, store, queue, lambda _: plain), queue, settings, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    names = [queue.send('{"prompt": "fox"}') for _ in range(4)]
    thread.start()
    assert encoding.wait(30)
    assert drawing.wait(30)
    # One is encoded, one drawn, one waits for the engine; the last is anybody's.
    assert waits_for(lambda: counts(queue) == (1, 3))
    go_on.set()
    assert waits_for(lambda: counts(queue) == (0, 0))
    worker.stop()
    thread.join(30)
    assert {record_of(store, name).status for name in names} == {"completed"}
