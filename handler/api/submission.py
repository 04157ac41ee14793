"""``POST /generate``, its retries, ``POST /uploads`` and ``DELETE /results/{task_id}``: what callers write and change.

Never loads torch.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from re import fullmatch
from typing import TYPE_CHECKING, Any

from ..aws.metrics import Metrics
from ..aws.queue import TaskQueue
from ..aws.store import TaskStore
from ..aws.tracing import Tracer
from ..clock import utc_now
from ..contract.ids import TASK_ID, new_id, new_seed
from ..contract.record import Record
from ..contract.request import GenerationRequest, parse
from ..contract.statuses import TERMINAL
from ..errors import Conflict, FieldError, Finished, InvalidRequest, LostRace, ModelUnavailable, NotFound, ServiceFault
from ..task import moves
from .calls import json_body, task_id_of, task_reply, trace_header
from .health import ModelHealth, card_of
from .quota import Budget
from .quote import quote
from .routing import Api, Call, Event, LambdaResponse, Reply, json_reply
from .tenants import tenant_of
from .uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..contract.card import ModelCard
    from ..settings import Settings
    from .routing import Route

CANCEL_TRIES = 5


@dataclass(frozen=True)
class Submission:
    """One submission: its tracing header, and the task that it repeats."""

    trace: str | None = None
    origin: str | None = None


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
        self._settings, self._store, self._queue, self._metrics = settings, store, queue, Metrics(settings)
        self._health = ModelHealth(store, settings, now)
        self._budget = Budget(settings, now)
        self._uploads = Uploads(settings, now, new_id)
        self._keep = timedelta(days=settings.retention_days)
        self._now, self._new_id, self._new_seed = now, new_id, new_seed
        self._tracer = Tracer(settings, now)
        self._api = Api(
            {
                "POST /generate": self._per_tenant(Submit._generate),
                "POST /generate/{task_id}/retry": self._per_tenant(Submit._repeat),
                "POST /uploads": self._per_tenant(Submit._upload),
                "DELETE /results/{task_id}": self._per_tenant(Submit._cancel),
            }
        )

    def for_tenant(self, tenant: str | None) -> Submit:
        """The same for one tenant: it meets that one's tasks and no others."""
        other = copy(self)
        other._store = self._store.for_tenant(tenant)
        return other

    def _per_tenant(self, route: Route) -> Route:
        """The route, for the tasks of whoever calls."""
        return lambda call, **named: route(self.for_tenant(tenant_of(call.event, self._settings)), call, **named)

    def handle(self, event: Event, context: Any) -> LambdaResponse:
        return self._api(event, context)

    def _generate(self, call: Call) -> Reply:
        return self._answer(call, json_body(call))

    def _repeat(self, call: Call, task_id: str) -> Reply:
        if json_body(call).strip() not in {b"", b"{}"}:
            raise InvalidRequest(
                [FieldError("body", "a retry repeats the task as it was asked for, and takes no body")]
            )
        return self._answer(call, self._request_of(task_id), origin=task_id)

    def _answer(self, call: Call, body: bytes, *, origin: str | None = None) -> Reply:
        """Submits, or tells what that would do."""
        dry_run = call.query.get("dry_run", "0")
        if dry_run not in {"0", "1"}:
            raise InvalidRequest([FieldError("dry_run", "must be 0 or 1")])
        key = call.headers.get("Idempotency-Key")
        if dry_run == "1":
            return json_reply(200, self.quote(body, key))
        return task_reply(call, self.submit(body, key, trace=trace_header(call), origin=origin))

    def _upload(self, call: Call) -> Reply:
        return json_reply(201, self._uploads.presign(self._store, json_body(call)))

    def _cancel(self, call: Call, task_id: str) -> Reply:
        return task_reply(call, self.cancel(task_id), 200)

    def cancel(self, task_id: str) -> Record:
        """The cancelled record, also if it was cancelled before. The record is the signal: the worker meets it at its
        next sign of life. Raises NotFound, and Conflict if the task has completed or failed.
        """
        for _ in range(CANCEL_TRIES):
            stored = self._store.read(task_id) if fullmatch(TASK_ID, task_id) else None
            if stored is None:
                raise NotFound(f"there is no task {task_id[:128]!r}")
            record = Record.from_json(stored.body)
            if record.status == "cancelled":
                return record
            try:
                cancelled = moves.cancel(record, now=self._now())
                self._store.change(stored, cancelled)
                self._metrics.cancelled()
            except Finished as fault:
                raise Conflict(fault.message) from fault
            except LostRace:
                continue  # it has just moved, as by a sign of life: read again
            return cancelled
        raise ServiceFault("the task keeps moving; cancel it again")

    def submit(
        self, body: str | bytes, key: str | None = None, *, trace: str | None = None, origin: str | None = None
    ) -> Record:
        """The task's record: a new one, or the one that the same id and body made before.

        Raises ModelUnavailable, InvalidRequest, Conflict (the id names another request), QuotaExceeded and
        ServiceFault; after the last a repeat of the same call finds out what was done and does the rest. ``origin`` is
        the task that it repeats.
        """
        submission = Submission(trace, origin)
        request = parse(body, self._card()).accept()
        named = task_id_of(request, key)
        if named is not None and (record := self._existing(named, request, submission)) is not None:
            return record
        return self._create(named or self._new_id(), request, submission)

    def retry(self, task_id: str, key: str | None = None, *, trace: str | None = None) -> Record:
        """A new task with the request of the terminal one ``task_id``, its seed included.

        Raises NotFound, Conflict (it still runs, or never was a valid request), and what ``submit`` raises.
        """
        return self.submit(self._request_of(task_id), key, trace=trace, origin=task_id)

    def _request_of(self, task_id: str) -> bytes:
        """What a terminal task was asked for, as JSON, its seed resolved and its name left out."""
        stored = self._store.read(task_id) if fullmatch(TASK_ID, task_id) else None
        if stored is None:
            raise NotFound(f"there is no task {task_id[:128]!r}")
        old = Record.from_json(stored.body)
        if old.status not in TERMINAL:
            raise Conflict(f"task {task_id} is {old.status}; only one that has ended can be repeated")
        if old.request is None:
            raise Conflict(f"task {task_id} holds no valid request")
        return old.request.model_dump_json(exclude={"task_id"}, exclude_none=True).encode()

    def quote(self, body: str | bytes, key: str | None = None) -> dict[str, Any]:
        """A QuoteResponse: what the same submission would run, take and cost. Raises as ``submit`` does."""
        card = self._card()
        request = parse(body, card).accept()
        named = request.model_copy(update={"task_id": task_id_of(request, key)})
        return quote(card.resolve(named) if card else named, card, self._health.current(), self._settings)

    def _card(self) -> ModelCard | None:
        """What the model takes, where that is known. Raises ModelUnavailable."""
        health = self._health.current()
        if health["model_status"] == "unavailable":
            raise ModelUnavailable(f"the model is not available: {health['reason']}")
        return card_of(health)

    def _create(self, task_id: str, request: GenerationRequest, submission: Submission) -> Record:
        record = moves.create(
            task_id, request, self._new_seed(), self._now(), self._keep, self._store.tenant, origin=submission.origin
        )
        # A crash from here to the record costs a part of the budget, and gives nothing for nothing.
        self._budget.spend(self._store, task_id, request.num_images)
        self._store.index(record)
        try:
            self._store.create(record)
        except LostRace:
            existing = self._existing(task_id, request, submission)
            if existing is None:
                raise ServiceFault("the record came and went while it was written; submit again") from None
            return existing
        # A crash here leaves a pending record without a message: the same submission again sends it.
        self._send(task_id, request, submission)
        return record

    def _existing(self, task_id: str, request: GenerationRequest, submission: Submission) -> Record | None:
        stored = self._store.read(task_id)
        if stored is None:
            return None
        record = Record.from_json(stored.body)
        if not record.asks_for(request) or (submission.origin is not None and record.origin != submission.origin):
            raise Conflict(
                f"task {task_id} exists with another request", [FieldError("task_id", "names another request")]
            )
        if record.status == "pending":
            # Whether the first message was sent is not known. A second one does no harm: one attempt claims the task.
            self._send(task_id, request, submission)
        return record

    def _send(self, task_id: str, request: GenerationRequest, submission: Submission) -> None:
        try:
            with self._tracer.sending(submission.trace, self._queue.url) as header:
                self._queue.send(request.message(task_id), trace=header, tenant=self._store.tenant)
        except ServiceFault as fault:
            again = f"submit it again with the task_id {task_id}"
            raise ServiceFault(f"task {task_id} is recorded but may not be queued: {again}") from fault


def build(settings: Settings) -> Submit:
    """The door with its real surroundings."""
    return Submit(settings, TaskStore(settings), TaskQueue(settings))
