"""A whole service for the client's tests: the HTTP API on a port, a worker beside it, and what may go wrong between."""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from handler.api.results import Status
from handler.api.submission import Submit
from handler.cli.local.http import HttpApi, serve
from handler.work.serving import Generate
from handler.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine import Engine
    from handler.settings import Settings


@dataclass(frozen=True)
class Trouble:
    """An answer in place of the service's, or none: the connection is cut before the service has acted, or after."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b'{"message": "Too Many Requests"}'
    acted: bool = False


BUSY = Trouble(429, (("Retry-After", "3"),))
AWAY = Trouble(503, (("Retry-After", "2"),), b"<html>somewhere on the way</html>")
BROKEN = Trouble(500, (), b'{"error": {"code": "INTERNAL", "message": "something broke", "details": []}}')
CUT = Trouble()
CUT_AFTER = Trouble(acted=True)
TORN = Trouble(200, (("Content-Length", "5000"),), b'{"task_id": "mi', acted=True)


@dataclass
class Flaky:
    """A WSGI application before another: what ``choose`` gives stands in the way of a request."""

    app: WSGIApplication
    choose: Callable[[WSGIEnvironment], Trouble | None]
    seen: list[WSGIEnvironment] = field(default_factory=list)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.seen.append(environ)
        trouble = self.choose(environ)
        if trouble is None:
            return self.app(environ, start_response)
        if trouble.acted:
            for _ in self.app(environ, lambda *_: lambda _: None):
                pass
        if trouble.status is None:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError("cut on purpose")  # werkzeug then says no word
        start_response(f"{trouble.status} Trouble", list(trouble.headers))
        return [trouble.body]

    def calls(self, method: str) -> list[WSGIEnvironment]:
        return [one for one in self.seen if one["REQUEST_METHOD"] == method]


def in_turn(*troubles: Trouble | None) -> Callable[[WSGIEnvironment], Trouble | None]:
    """One for each request, and then none."""
    left = deque(troubles)
    return lambda _: left.popleft() if left else None


@dataclass
class Running:
    """Where the API is, and what has come by."""

    url: str
    flaky: Flaky


@contextmanager
def api(
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    choose: Callable[[WSGIEnvironment], Trouble | None] = lambda _: None,
) -> Iterator[Running]:
    """The HTTP API alone."""
    flaky = Flaky(HttpApi(Submit(settings, store, queue), Status(settings, store)), choose)
    server = serve(flaky, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{server.server_port}", flaky)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def worker(settings: Settings, store: TaskStore, queue: TaskQueue, engine: Engine) -> Iterator[Any]:
    """A worker in a thread of its own."""
    one = Worker(Generate(settings, store, queue, lambda _: engine), queue, settings, poll_seconds=1)
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.stop()
        thread.join()
