"""A fault-injecting HTTP proxy between AWS clients and a server: what S3, SQS and the network do on a bad day.

Every client process gets a door of its own (a port of 127.0.0.1), so that each write can be told to its writer.
Requests pass as they are, host and signature included. The faults follow a seeded schedule: the n-th request meets the
n-th draw.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Kind = Literal["latency", "500", "500 after", "throttled", "reset", "reset after", "truncated"]
RATES: dict[Kind, float] = {
    "latency": 0.03,  # answered, and late
    "500": 0.015,  # before the server acted
    "500 after": 0.015,  # it acted, and says that it failed
    "throttled": 0.02,  # S3: 503 SlowDown; SQS: RequestThrottled
    "reset": 0.015,  # the connection, before the server acted
    "reset after": 0.015,  # it acted, and the answer is lost
    "truncated": 0.015,  # it acted, and half of the answer arrives
}
"""Share of the requests that meet each kind."""
LATENCY = (0.1, 1.5)
"""Seconds, drawn evenly."""
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
)
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Request:
    """As a client sent it. ``who`` is the door that it came through."""

    who: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def is_sqs(self) -> bool:
        return "AmazonSQS" in self.headers.get("x-amz-target", "")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)


class Watcher(Protocol):
    """Whoever looks on at the server's side of the proxy: it sees what was done, whatever the client is told."""

    def order(self, request: Request) -> AbstractContextManager[object]:
        """Held from before the server acts until it was seen, so that writes are seen in the order they were done."""

    def saw(self, request: Request, reply: Reply) -> None:
        """The server has acted."""

    def met(self, request: Request, reply: Reply | None) -> None:
        """A fault other than latency meets the request; ``reply`` is what the server answered, if it was asked."""


class Schedule:
    """Which request meets which fault. ``armed`` is False until the load begins and once it is over."""

    def __init__(self, seed: int, rates: dict[Kind, float] | None = None) -> None:
        self._draw = random.Random(f"faults {seed}")
        self._rates = RATES if rates is None else rates
        self._lock = threading.Lock()
        self.armed = False
        self.counts: Counter[Kind] = Counter()
        self.requests = 0

    def next(self) -> tuple[Kind | None, float]:
        """The fault of the next request, and the seconds that it is late by."""
        with self._lock:
            self.requests += 1
            if not self.armed:
                return None, 0.0
            at, late = self._draw.random(), self._draw.uniform(*LATENCY)
            for kind, rate in self._rates.items():
                at -= rate
                if at < 0:
                    self.counts[kind] += 1
                    return kind, late if kind == "latency" else 0.0
            return None, 0.0


class Proxy:
    """Doors to one server at ``upstream``, a URL."""

    def __init__(self, upstream: str, schedule: Schedule, watcher: Watcher) -> None:
        self.schedule, self.watcher = schedule, watcher
        self.upstream = urlsplit(upstream).netloc
        self._doors: list[ThreadingHTTPServer] = []

    def door(self, who: str, *, calm: bool = False) -> str:
        """Opens a door for a client; returns its URL. No fault meets who comes through a ``calm`` one."""
        proxy = self

        class Passage(_Passage):
            def setup(self) -> None:
                super().setup()
                self.proxy, self.who, self.calm = proxy, who, calm

        server = _Door(("127.0.0.1", 0), Passage)
        threading.Thread(target=server.serve_forever, args=(0.2,), name=f"door {who}", daemon=True).start()
        self._doors.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        for server in self._doors:
            server.shutdown()
            server.server_close()

    def forward(self, request: Request) -> Reply:
        """What the server answers. Its effects are seen by the watcher, in order."""
        with self.watcher.order(request):
            connection = http.client.HTTPConnection(self.upstream, timeout=60)
            try:
                connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
                for name, value in request.headers.items():
                    if name not in HOP_BY_HOP and name != "expect":
                        connection.putheader(name, value)
                connection.endheaders(request.body or None)
                answer = connection.getresponse()
                reply = Reply(answer.status, answer.getheaders(), answer.read())
            finally:
                connection.close()
            self.watcher.saw(request, reply)
        return reply


class _Door(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed leaves a broken connection behind: nothing to say about it."""


class _Passage(BaseHTTPRequestHandler):
    proxy: Proxy
    who: str
    calm: bool
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for headers and body: else every answer waits for a delayed acknowledgement
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing: the counts do."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.who, self.command, self.path, headers, body)
        kind, late = (None, 0.0) if self.calm else self.proxy.schedule.next()
        before = kind in {"reset", "500", "throttled"}
        reply = None if before else self.proxy.forward(request)
        if kind not in {None, "latency"}:
            self.proxy.watcher.met(request, reply)
        if kind == "reset":
            return self._break()
        if reply is None:
            return self._answer(_fault(request, throttled=kind == "throttled"))
        if kind == "reset after":
            return self._break()
        if kind == "500 after":
            return self._answer(_fault(request, throttled=False))
        time.sleep(late)
        return self._answer(reply, torn=kind == "truncated")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _answer(self, reply: Reply, *, torn: bool = False) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in HOP_BY_HOP and name.lower() != "content-length":
                self.send_header(name, value)
        told = next((value for name, value in reply.headers if name.lower() == "content-length"), "0")
        self.send_header("Content-Length", told if self.command == "HEAD" else str(len(reply.body)))
        if torn:
            return self._tear(reply.body)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()
        return None

    def _tear(self, body: bytes) -> None:
        """Half of the body; where there is none, half of the headers."""
        if body:
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
        else:
            lines: list[bytes] = vars(self)["_headers_buffer"]
            head = b"".join(lines)
            lines.clear()
            self.wfile.write(head[: len(head) // 2])
        self.wfile.flush()
        self.close_connection = True

    def _break(self) -> None:
        """Ends the connection with RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        os.close(self.connection.detach())


def _fault(request: Request, *, throttled: bool) -> Reply:
    """The service's own words, by its protocol (S3: XML; SQS: AWS JSON 1.0)."""
    if request.is_sqs:
        code = "RequestThrottled" if throttled else "InternalFailure"
        body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "injected"}).encode()
        headers = [("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-query-error", f"{code};Sender")]
        return Reply(400 if throttled else 500, headers, body)
    code = "SlowDown" if throttled else "InternalError"
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>'
    return Reply(503 if throttled else 500, [("Content-Type", "application/xml")], text.encode())
