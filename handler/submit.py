"""``POST /generate`` and ``DELETE /results/{task_id}``: all that changes a task from outside. Never loads torch."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from re import fullmatch
from typing import TYPE_CHECKING, Any

from . import tasks
from .api import Answer, Api, Event, answer, body_of
from .card import ModelCard
from .errors import (
    Conflict,
    Fault,
    Finished,
    InvalidRequest,
    LostRace,
    ModelUnavailable,
    NotFound,
    ServiceFault,
)
from .health import ModelHealth
from .logs import logger
from .metrics import Meter
from .request import GenerationRequest, parse
from .settings import Settings
from .storage import TaskStore
from .taskqueue import TaskQueue
from .tracing import Tracer
from .world import TASK_ID, new_id, new_seed, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aws_lambda_powertools.event_handler import Response
    from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver

CANCEL_TRIES = 5
TRACE = r"(Self=[^;]{1,64};)?Root=1-[0-9a-f]{8}-[0-9a-f]{24}(;[A-Za-z]{1,16}=[0-9A-Za-z:|]{1,64}){0,4}"
"""An X-Ray tracing header. Another one SQS would refuse, and with it the message."""


class Submit:
    """The door: one record and one message for each request, whatever is repeated."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        queue: TaskQueue,
        *,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = new_id,
        new_seed: Callable[[], int] = new_seed,
    ) -> None:
        self._store, self._queue, self._meter = store, queue, Meter(settings)
        self._health = ModelHealth(store, settings, now)
        self._keep = timedelta(days=settings.retention_days)
        self._now, self._new_id, self._new_seed = now, new_id, new_seed
        self._tracer = Tracer(settings, now)
        self._api = Api(self._register)

    def handle(self, event: Event, context: Any) -> Answer:
        return self._api(event, context)

    def _register(self, app: ApiGatewayResolver) -> None:
        @app.post("/generate")
        def generate() -> Response[str]:
            headers = app.current_event.headers
            trace = headers.get("X-Amzn-Trace-Id", "")
            record = self.submit(
                body_of(app.current_event.raw_event),
                headers.get("Idempotency-Key"),
                trace=trace if fullmatch(TRACE, trace) else None,
            )
            message = f"task {record.task_id} is {record.status}; ask for it at /results/{record.task_id}"
            return answer(202, {"task_id": record.task_id, "status": record.status, "message": message})

        @app.delete("/results/<task_id>")
        def cancel(task_id: str) -> Response[str]:
            record = self.cancel(task_id)
            message = f"task {task_id} is cancelled"
            return answer(200, {"task_id": task_id, "status": record.status, "message": message})

    def cancel(self, task_id: str) -> tasks.Record:
        """The cancelled record, also if it was cancelled before. The record is the signal: the worker meets it at its
        next sign of life. Raises NotFound, and Conflict if the task has completed or failed.
        """
        for _ in range(CANCEL_TRIES):
            stored = self._store.read(task_id) if fullmatch(TASK_ID, task_id) else None
            if stored is None:
                raise NotFound(f"there is no task {task_id[:128]!r}")
            record = tasks.Record.from_json(stored.body)
            if record.status == "cancelled":
                return record
            try:
                cancelled = tasks.cancel(record, now=self._now())
                self._store.change(stored, cancelled)
                self._meter.cancelled()
            except Finished as fault:
                raise Conflict(fault.message) from fault
            except LostRace:
                continue  # it has just moved, as by a sign of life: read again
            return cancelled
        raise ServiceFault("the task keeps moving; cancel it again")

    def submit(self, body: str | bytes, key: str | None = None, *, trace: str | None = None) -> tasks.Record:
        """The task's record: a new one, or the one that the same id and body made before.

        Raises ModelUnavailable, InvalidRequest, Conflict (the id names another request) and ServiceFault; after the
        last a repeat of the same call finds out what was done and does the rest.
        """
        health = self._health.current()
        if health["model_status"] == "unavailable":
            raise ModelUnavailable(f"the model is not available: {health['reason']}")
        card = ModelCard.model_validate(health["model"]) if health["model"] else None
        request = parse(body, card).accept()
        named = _task_id(request, key)
        if named is not None and (record := self._existing(named, request, trace)) is not None:
            return record
        return self._create(named or self._new_id(), request, trace)

    def _create(self, task_id: str, request: GenerationRequest, trace: str | None) -> tasks.Record:
        record = tasks.create(task_id, request, self._new_seed(), self._now(), self._keep)
        self._store.index(record)
        try:
            self._store.create(record)
        except LostRace:
            existing = self._existing(task_id, request, trace)
            if existing is None:
                raise ServiceFault("the record came and went while it was written; submit again") from None
            return existing
        # A crash here leaves a pending record without a message: the same submission again sends it.
        self._send(task_id, request, trace)
        return record

    def _existing(self, task_id: str, request: GenerationRequest, trace: str | None) -> tasks.Record | None:
        stored = self._store.read(task_id)
        if stored is None:
            return None
        record = tasks.Record.from_json(stored.body)
        if not record.asks_for(request):
            raise Conflict(f"task {task_id} exists with another request", [Fault("task_id", "names another request")])
        if record.status == "pending":
            # Whether the first message was sent is not known. A second one does no harm: one attempt claims the task.
            self._send(task_id, request, trace)
        return record

    def _send(self, task_id: str, request: GenerationRequest, trace: str | None) -> None:
        try:
            with self._tracer.sending(trace, self._queue.url) as header:
                self._queue.send(request.message(task_id), trace=header)
        except ServiceFault as fault:
            again = f"submit it again with the task_id {task_id}"
            raise ServiceFault(f"task {task_id} is recorded but may not be queued: {again}") from fault


def _task_id(request: GenerationRequest, key: str | None) -> str | None:
    """The name that the caller gave the task, in the body or as ``Idempotency-Key``."""
    if key is None:
        return request.task_id
    if not fullmatch(TASK_ID, key):
        raise InvalidRequest([Fault("Idempotency-Key", f"must match {TASK_ID}")])
    if request.task_id not in {None, key}:
        raise InvalidRequest([Fault("Idempotency-Key", "differs from the body's task_id")])
    return key


@cache
def _warm() -> Submit:
    settings = Settings.load()
    logger.setLevel(settings.log_level)
    return Submit(settings, TaskStore(settings), TaskQueue(settings))


def handle(event: Event, context: Any) -> Answer:
    """The Lambda handler, for API Gateway's events. What it needs is made on first use and kept while it is warm."""
    return _warm().handle(event, context)
