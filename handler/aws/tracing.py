"""Spans for AWS X-Ray: how long each attempt and its parts took, sent by UDP to the X-Ray daemon beside this process.

A span is sent once, when its attempt has ended: a lost datagram is not sent again, and an attempt whose process died
has no span. Only traces that were sampled upstream are sent, and no span contains any part of a prompt.

Sources: AWS X-Ray developer guide, "AWS X-Ray segment documents", "Sending segment documents to the X-Ray daemon" and
"Tracing header"; AWS Lambda developer guide, "Using Lambda environment variables".
"""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import errors
from ..contract.ids import new_span_id
from ..errors import DarkroomError, LostRace, SettingsError
from ..logs import logger
from ..process import invocation_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ..contract.record import Record
    from ..errors import Code
    from ..settings import Settings
    from ..task.attempt import Attempt

Document = dict[str, Any]

PREAMBLE = b'{"format": "json", "version": 1}\n'
SEGMENT, SUBSEGMENT = "darkroom-worker", "attempt"
PARTS = ("text", "denoise", "decode", "encode", "upload")
"""The parts of an attempt in order; the last one ends when the record is written."""
ROOT, PARENT = re.compile(r"1-[0-9a-f]{8}-[0-9a-f]{24}"), re.compile(r"[0-9a-f]{16}")
ADDRESS = re.compile(r"(?:.*\s)?udp:(\S+)(?:\s.*)?|([^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+)")
THROTTLED = re.compile("SlowDown|Throttl|TooManyRequests|RequestLimitExceeded")
LONGEST = 250
"""Characters of any text, X-Ray's own limit. A span of some thirty fields then fits well into a datagram's 64 KB."""


@dataclass(frozen=True)
class Trace:
    """A parsed X-Ray tracing header; ``parent`` is the id of the parent span."""

    root: str
    parent: str | None
    sampled: bool

    @classmethod
    def read(cls, header: str | None) -> Trace | None:
        """Parses a header; None if there is none, or if X-Ray would not accept it."""
        pairs = (part.strip().partition("=") for part in (header or "").split(";"))
        fields = {name: value for name, _, value in pairs}
        root, parent = fields.get("Root", ""), fields.get("Parent")
        if not ROOT.fullmatch(root) or (parent is not None and not PARENT.fullmatch(parent)):
            return None
        return cls(root, parent, fields.get("Sampled") == "1")

    def header(self) -> str:
        parent = f"Parent={self.parent};" if self.parent else ""
        return f"Root={self.root};{parent}Sampled={int(self.sampled)}"


class Tracer:
    """Sends spans. Thread-safe. It never blocks, and failures to send are logged, not raised."""

    def __init__(
        self, settings: Settings, now: Callable[[], datetime], new_span_id: Callable[[], str] = new_span_id
    ) -> None:
        """Resolves the daemon's address, once. Raises SettingsError if it is malformed."""
        self._daemon = _resolved(settings.aws_xray_daemon_address)
        self._on_lambda = bool(settings.aws_lambda_runtime_api)
        self._origin = "AWS::ECS::Container" if settings.ecs_container_metadata_uri_v4 else None
        self._now, self._new_span_id = now, new_span_id

    @contextmanager
    def attempt(self, attempt: Attempt, header: str | None) -> Iterator[None]:
        """Sends a span of ``attempt`` when the block ends. ``header``: the tracing header of its message.

        A worker's span is a segment of the message's trace. Under Lambda the function already has a segment, in a trace
        that Lambda links to those of its messages; there the span is a subsegment of it.
        """
        trace = Trace.read(invocation_trace() if self._on_lambda else header)
        if self._daemon is None or trace is None or not trace.sampled or (self._on_lambda and not trace.parent):
            yield
            return
        try:
            yield
        except BaseException as fault:
            self._end(attempt.record, trace, fault)
            raise
        self._end(attempt.record, trace, None)

    @contextmanager
    def sending(self, header: str | None, queue_url: str) -> Iterator[str | None]:
        """Yields the tracing header for a message that is sent in the block. Under Lambda it continues the invocation's
        trace, and the queue gets a span of its own; elsewhere it is the caller's ``header``.
        """
        trace = Trace.read(invocation_trace()) if self._on_lambda else None
        if trace is None or self._daemon is None or not trace.sampled or not trace.parent:
            yield trace.header() if trace else header
            return
        about = {"operation": "SendMessage", "queue_url": queue_url}
        span: Document = {
            "name": "SQS",
            "namespace": "aws",
            "aws": about,
            **self._spanning(trace, self._now().timestamp()),
        }
        try:
            yield Trace(trace.root, span["id"], sampled=True).header()
        except BaseException as fault:
            span["fault"] = True
            span["cause"] = self._cause("INTERNAL", str(fault))
            raise
        finally:
            self._tell(span | {"end_time": self._now().timestamp()})

    def _end(self, record: Record, trace: Trace, fault: BaseException | None) -> None:
        try:
            self._tell(self._document(record, trace, fault))
        except Exception as broken:
            logger.warning("a span was not sent", fault=f"{type(broken).__name__}: {broken}")

    def _document(self, record: Record, trace: Trace, fault: BaseException | None) -> Document:
        ended = self._now().timestamp()
        began = min(record.started_at.timestamp() if record.started_at else ended, ended)
        parts = []
        if record.timings is not None and record.status == "completed":
            ended = record.completed_at.timestamp() if record.completed_at else ended
            parts = list(self._parts(record, began, ended))
            began = min(began, *(part["start_time"] for part in parts))
        outcome, code, message = _end_of(record, fault)
        about = {
            "task_id": record.task_id,
            "attempt": record.attempt,
            "outcome": outcome,
            "code": code,
            "model": record.model.id[:LONGEST] if record.model else None,
            "batch_size": record.batch_size if record.status == "completed" else None,
            "tenant": getattr(record, "tenant", None),
        }
        return {
            "name": SUBSEGMENT if self._on_lambda else SEGMENT,
            **self._spanning(trace, began),
            "end_time": ended,
            "annotations": {name: value for name, value in about.items() if value is not None},
            **({"subsegments": parts} if parts else {}),
            **(self._flags(code, message, fault) if code else {}),
        }

    def _parts(self, record: Record, began: float, ended: float) -> Iterator[Document]:
        """Subsegments without gaps, computed backwards from the attempt's end. ``load`` came before the attempt."""
        seconds = record.timings.model_dump() if record.timings else {}
        if seconds["load"]:
            yield self._part("load", began - seconds["load"], began)
        start = ended - sum(seconds[name] for name in PARTS)
        for name in PARTS:
            yield self._part(name, start, start + seconds[name])
            start += seconds[name]

    def _part(self, name: str, began: float, ended: float) -> Document:
        return {"id": self._new_span_id(), "name": name, "start_time": began, "end_time": ended}

    def _spanning(self, trace: Trace, began: float) -> Document:
        span: Document = {"id": self._new_span_id(), "trace_id": trace.root, "start_time": began}
        if trace.parent:
            span["parent_id"] = trace.parent
        if self._on_lambda:
            return span | {"type": "subsegment"}
        return span | ({"origin": self._origin} if self._origin else {})

    def _flags(self, code: Code, message: str, fault: BaseException | None) -> Document:
        """X-Ray's flags: ``error`` for the caller's faults (4xx), ``fault`` for ours (5xx), ``throttle`` for limits."""
        flag = "fault" if STATUS[code] >= 500 else "error"
        slowed = STATUS[code] == 429 or bool(fault and THROTTLED.search(str(fault.__cause__)))
        return {flag: True, **({"throttle": True} if slowed else {}), "cause": self._cause(code, message)}

    def _cause(self, code: Code, message: str) -> Document:
        # Text after a colon is another library's and may quote the prompt: it stays in the record only.
        ours = message.partition(":")[0][:LONGEST]
        exception = {"id": self._new_span_id(), "type": code, "message": ours}
        return {"working_directory": os.getcwd(), "paths": [], "exceptions": [exception]}

    def _tell(self, document: Document) -> None:
        """Sends a datagram without blocking; it is dropped if the socket's buffer is full."""
        if self._daemon is None:
            return
        family, address = self._daemon
        try:
            # A new socket for each span: a kept one would report the ICMP errors of earlier datagrams.
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(PREAMBLE + json.dumps(document).encode(), address)
        except OSError as fault:
            logger.debug("a span was not sent", fault=str(fault))


def _end_of(record: Record, fault: BaseException | None) -> tuple[str, Code | None, str]:
    """How the attempt ended, and the code and message of its error, if any.

    ``lost``: somebody else changed the record, as a cancellation does. ``expired``: the record could not be written, so
    the next attempt waits until the lease has run out.
    """
    if record.status == "processing":
        if isinstance(fault, LostRace):
            return "lost", None, ""
        code: Code = fault.code if isinstance(fault, DarkroomError) else "INTERNAL"
        return "expired", code, fault.message if isinstance(fault, DarkroomError) else type(fault).__name__
    outcome = record.attempts[-1].outcome if record.attempts else record.status
    if record.error is None or outcome == "suspended":  # a suspension is no error
        return outcome, None, ""
    return outcome, record.error.code, record.error.message


def _resolved(text: str) -> tuple[socket.AddressFamily, Any] | None:
    """Resolves an address in X-Ray's notation: ``host:port``, or ``tcp:host:port udp:host:port`` in any order.

    None if it is empty or its name cannot be resolved (logged). Raises SettingsError if it is malformed.
    """
    if not text:
        return None
    match = ADDRESS.fullmatch(text)
    host, _, port = (match[1] or match[2]).rpartition(":") if match else ("", "", "")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"AWS_XRAY_DAEMON_ADDRESS={text!r}: must be host:port, or tcp:host:port udp:host:port")
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    except OSError as fault:
        logger.warning("X-Ray's daemon is not known here: no spans", address=text, fault=str(fault))
        return None
    return family, address


STATUS: dict[str, int] = {
    one.code: one.http_status
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, DarkroomError)
}
"""The HTTP status of each code; where a code has several they are all 5xx or all 4xx."""
