"""Spans for AWS X-Ray: what each attempt took, told to the daemon that listens beside this process.

Told once, when an attempt has ended, and then forgotten: a datagram that gets lost is not sent again, and an attempt
whose process died has no span. Only traces that the door has sampled are told, and no span holds any of a prompt.

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
from ..settings import invocation_trace

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
"""Of an attempt, in the order in which they are done; the last one ends when the record is written."""
ROOT, PARENT = re.compile(r"1-[0-9a-f]{8}-[0-9a-f]{24}"), re.compile(r"[0-9a-f]{16}")
ADDRESS = re.compile(r"(?:.*\s)?udp:(\S+)(?:\s.*)?|([^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+)")
THROTTLED = re.compile("SlowDown|Throttl|TooManyRequests|RequestLimitExceeded")
LONGEST = 250
"""Characters of any text, X-Ray's own limit: so a span of some thirty fields stays far below a datagram's 64 KB."""


@dataclass(frozen=True)
class Trace:
    """What a tracing header says; ``parent`` is the span that the next one belongs to."""

    root: str
    parent: str | None
    sampled: bool

    @classmethod
    def read(cls, header: str | None) -> Trace | None:
        """None where there is none, or none that X-Ray would take."""
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
    """One for a process, safe to use in many threads. Nothing here waits, and nothing that fails here is raised."""

    def __init__(
        self, settings: Settings, now: Callable[[], datetime], new_span_id: Callable[[], str] = new_span_id
    ) -> None:
        """Raises SettingsError where the daemon's address is none. A name in it is looked up here, once."""
        self._daemon = _resolved(settings.aws_xray_daemon_address)
        self._on_lambda = bool(settings.aws_lambda_runtime_api)
        self._origin = "AWS::ECS::Container" if settings.ecs_container_metadata_uri_v4 else None
        self._now, self._new_span_id = now, new_span_id

    @contextmanager
    def attempt(self, attempt: Attempt, header: str | None) -> Iterator[None]:
        """Tells of ``attempt`` when the block ends. ``header`` came with its message.

        A worker's span is a segment of the trace that the message belongs to. Under Lambda the function has a segment
        already, in a trace of its own that Lambda links to those of its messages: there it is a part of that one.
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
        """Gives the header for a message that is sent in the block: under Lambda one that makes it a part of this
        invocation's trace, and the queue a node of it; elsewhere ``header``, the caller's own.
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
            logger.warning("a span was not told", fault=f"{type(broken).__name__}: {broken}")

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
        """Laid back from the end, without gaps: the engine times them so. ``load`` was before the attempt."""
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
        """As X-Ray counts: ``error`` the caller's (4xx), ``fault`` ours (5xx), ``throttle`` somebody's limit."""
        flag = "fault" if STATUS[code] >= 500 else "error"
        slowed = STATUS[code] == 429 or bool(fault and THROTTLED.search(str(fault.__cause__)))
        return {flag: True, **({"throttle": True} if slowed else {}), "cause": self._cause(code, message)}

    def _cause(self, code: Code, message: str) -> Document:
        # What follows a colon is another library's text, which may quote the prompt. The record has it.
        ours = message.partition(":")[0][:LONGEST]
        exception = {"id": self._new_span_id(), "type": code, "message": ours}
        return {"working_directory": os.getcwd(), "paths": [], "exceptions": [exception]}

    def _tell(self, document: Document) -> None:
        """Into the socket's buffer, or nowhere."""
        if self._daemon is None:
            return
        family, address = self._daemon
        try:
            # One for each span: it holds nothing that could break, and hears of no daemon that is not there.
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(PREAMBLE + json.dumps(document).encode(), address)
        except OSError as fault:
            logger.debug("a span was not told", fault=str(fault))


def _end_of(record: Record, fault: BaseException | None) -> tuple[str, Code | None, str]:
    """How the attempt ended, and the code and message of its error, if that was one.

    ``lost``: somebody else moved the record, as its caller does by cancelling. ``expired``: the record could not be
    written, so the next attempt waits until the lease has run out.
    """
    if record.status == "processing":
        if isinstance(fault, LostRace):
            return "lost", None, ""
        code: Code = fault.code if isinstance(fault, DarkroomError) else "INTERNAL"
        return "expired", code, fault.message if isinstance(fault, DarkroomError) else type(fault).__name__
    outcome = record.attempts[-1].outcome if record.attempts else record.status
    if record.error is None or outcome == "suspended":  # going on elsewhere is nobody's fault
        return outcome, None, ""
    return outcome, record.error.code, record.error.message


def _resolved(text: str) -> tuple[socket.AddressFamily, Any] | None:
    """X-Ray's notation: ``host:port``, or ``tcp:host:port udp:host:port`` in any order."""
    if not text:
        return None
    found = ADDRESS.fullmatch(text)
    host, _, port = (found[1] or found[2]).rpartition(":") if found else ("", "", "")
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
"""Of each code; where a code has several they are all ours."""
