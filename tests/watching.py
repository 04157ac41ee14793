"""A proxy in front of the embedded AWS that lists what passes, for tests that count requests."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from .chaos.proxy import Proxy, Reply, Request, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Seen:
    """``list``: ``GET /bucket/tasks/mine/status.json`` and so on, without queries. ``url`` is where to ask."""

    def __init__(self) -> None:
        self.url = ""
        self.list: list[str] = []

    def order(self, request: Request) -> AbstractContextManager[object]:
        return nullcontext()

    def saw(self, request: Request, reply: Reply) -> None:
        self.list.append(f"{request.method} {request.path.partition('?')[0]}")

    def met(self, request: Request, reply: Reply | None) -> None:
        """No faults here."""


@contextmanager
def watched(endpoint: str) -> Iterator[Seen]:
    seen = Seen()
    proxy = Proxy(endpoint, Schedule(0), seen)
    seen.url = proxy.door("status")
    try:
        yield seen
    finally:
        proxy.close()
