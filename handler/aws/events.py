"""The event bus: whoever wants to know is told of every task that has ended. The only module that calls EventBridge.

At least once, after the record is committed, and only with ``EVENT_BUS`` set. What the bus did not take never undoes or
fails a commit: the task stays on the list of open ones, where the doctor finds it and tells it again.
"""

from __future__ import annotations

import json
import time
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..contract.statuses import TERMINAL
from ..errors import ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from ..contract.record import Record
    from ..settings import Settings

SOURCE, DETAIL_TYPE = "darkroom", "Task ended"
CONNECT_WITHIN, ANSWER_WITHIN, TRIES = 1, 2, 2
"""Seconds, twice: some seven in all at most, for the task has ended and its worker has others."""
PAUSE = 30.0
"""Seconds for which nothing is sent to a bus that did not answer in time: what ends meanwhile would wait as long."""


def detail(record: Record) -> dict[str, Any]:
    """What an event says of a task. Nothing that its caller wrote but the task's name, no URL and no key."""
    return {
        "task_id": record.task_id,
        "tenant": record.tenant,
        "status": record.status,
        "sequence": record.sequence,
        "created_at": record.created_at.isoformat(),
        "completed_at": record.completed_at.isoformat() if record.completed_at else None,
        "error": record.error.code if record.error else None,
        "images": sum(not image.unsafe for image in record.images),
        "attempts": record.attempt,
        "seconds": record.spent_seconds,
        "model": _name(record.model.id) if record.model else None,
    }


def _name(model: str) -> str:
    """Of a model in S3 its folder's name alone."""
    return model.rstrip("/").rpartition("/")[2] if "://" in model else model


class Bus:
    """The bus of the settings, or none. Shared by all tenants' stores of a process; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._events: Any = None
        self._lock = Lock()
        self._untold: set[tuple[str | None, str]] = set()
        self._silent_until = 0.0

    @property
    def on(self) -> bool:
        return bool(self._settings.event_bus)

    def committed(self, record: Record) -> None:
        """Tells, if this record is its task's end. Never raises."""
        if self.on and record.status in TERMINAL and not record.purged:
            self.tell(record)

    def tell(self, record: Record) -> bool:
        """Sends the event; False, and noted, if the bus may not have it. Never raises: the record is committed."""
        if not self.on:
            return True
        began = time.monotonic()
        try:
            if began < self._silent_until:
                raise ServiceFault("EventBridge did not answer a moment ago")
            self._send(record)
        except Exception as fault:
            if time.monotonic() - began >= ANSWER_WITHIN:
                self._silent_until = time.monotonic() + PAUSE
            logger.warning(
                "the event bus was not told of a task's end; the doctor will tell it",
                task_id=record.task_id,
                tenant=record.tenant,
                fault=f"{type(fault).__name__}: {fault}",
            )
            self._untold.add((record.tenant, record.task_id))
            return False
        self._untold.discard((record.tenant, record.task_id))
        return True

    def missed(self, tenant: str | None, task_id: str) -> bool:
        """Whether this process could not tell the task's end; asked once."""
        try:
            self._untold.remove((tenant, task_id))
        except KeyError:
            return False
        return True

    def _send(self, record: Record) -> None:
        """Raises ServiceFault, and what botocore raises."""
        entry = {
            "Source": SOURCE,
            "DetailType": DETAIL_TYPE,
            "Detail": json.dumps(detail(record)),
            "EventBusName": self._settings.event_bus,
        }
        if record.completed_at:
            entry["Time"] = record.completed_at.isoformat()
        answer = self._client().put_events(Entries=[entry])
        # A torn answer has no count: botocore takes it for an empty one.
        if answer.get("FailedEntryCount") != 0:
            said = (answer.get("Entries") or [{}])[0]
            raise ServiceFault(f"EventBridge took no event: {said.get('ErrorCode') or 'its answer is torn'}")

    def _client(self) -> Any:
        """Made at the first event: a process that ends no task pays nothing for it."""
        with self._lock:
            if self._events is None:
                import botocore.session

                from .endpoints import client

                session = botocore.session.Session(profile=self._settings.aws_profile or None)
                self._events = client(
                    "events",
                    self._settings,
                    session,
                    connect_timeout=CONNECT_WITHIN,
                    read_timeout=ANSWER_WITHIN,
                    retries={"mode": "standard", "total_max_attempts": TRIES},
                    tcp_keepalive=True,
                )
            return self._events
