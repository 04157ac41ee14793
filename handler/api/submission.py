"""``POST /generate`` and its retries, ``POST /uploads``, ``DELETE /results/{task_id}``: the API's writes. No torch."""

from __future__ import annotations

import time
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
from ..task.purging import purge
from .calls import json_body, named_request, task_reply, trace_header
from .door import Door
from .health import ModelHealth, card_of
from .in_flight import check_in_flight
from .openai import Images
from .quota import Budget
from .quote import quote
from .routing import Api, Call, Reply, json_reply
from .uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.s3 import Stored
    from ..contract.card import ModelCard
    from ..settings import Settings

CANCEL_WITHIN = 10.0
"""Seconds for which a cancellation tries to be faster than what else writes the record, a heartbeat at every step."""


@dataclass(frozen=True)
class Submission:
    """What a submission has beside its request: an X-Ray tracing header, the task_id that it repeats, and where its
    caller named the task.
    """

    trace: str | None = None
    origin: str | None = None
    named_by: str = "task_id"


class Submit(Door):
    """Submits and cancels tasks. A repeated submission makes no second task."""

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
        self.health = ModelHealth(store, settings, now)
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
                "POST /v1/images/generations": self._per_tenant(Submit._images),
            },
            settings.cors_origins,
        )

    def _generate(self, call: Call) -> Reply:
        return self._answer(call, json_body(call))

    def _repeat(self, call: Call, task_id: str) -> Reply:
        if json_body(call).strip() not in {b"", b"{}"}:
            raise InvalidRequest(
                [FieldError("body", "a retry repeats the task as it was asked for, and takes no body")]
            )
        return self._answer(call, self._request_of(task_id), origin=task_id)

    def _answer(self, call: Call, body: bytes, *, origin: str | None = None) -> Reply:
        """Submits the request; with ``dry_run=1`` returns a quote instead."""
        call.takes("dry_run")
        dry_run = call.query.get("dry_run", "0")
        if dry_run not in {"0", "1"}:
            raise InvalidRequest([FieldError("dry_run", "must be 0 or 1")])
        key = call.headers.get("Idempotency-Key")
        if dry_run == "1":
            return json_reply(200, self.quote(body, key))
        record = self.submit(body, key, trace=trace_header(call), origin=origin)
        card = card_of(self.health.current())
        return task_reply(call, record, prompt_tokens=card.limits.prompt_tokens if card else None)

    def _images(self, call: Call) -> Reply:
        settings = self._settings
        images = Images(self, self._store, settings.model_name, settings.openai_wait, new_id=self._new_id)
        return images.serve(call)

    def _upload(self, call: Call) -> Reply:
        return json_reply(201, self._uploads.presign(self._store, json_body(call)))

    def _cancel(self, call: Call, task_id: str) -> Reply:
        call.takes("unseen", "purge")
        asked = {name: call.query.get(name, "0") for name in ("unseen", "purge")}
        if faults := [FieldError(name, "must be 0 or 1") for name, value in asked.items() if value not in {"0", "1"}]:
            raise InvalidRequest(faults)
        if asked["unseen"] == asked["purge"] == "1":
            raise InvalidRequest([FieldError("unseen", "has no use with purge: a task that nobody saw holds nothing")])
        if asked["purge"] == "1":
            return task_reply(call, self.purge(task_id), 200)
        return task_reply(call, self.cancel(task_id, unseen=asked["unseen"] == "1"), 200)

    def purge(self, task_id: str) -> Record:
        """Deletes what an ended task was asked for and has drawn, and returns its record; idempotent.

        Raises NotFound, Conflict if it has not ended, and ServiceFault: the same call then completes it.
        """
        until = time.monotonic() + CANCEL_WITHIN
        while time.monotonic() < until:
            stored = self._read(task_id)
            purged = purge(record := Record.from_json(stored.body))
            try:
                if purged is not record:
                    self._store.change(stored, purged)
            except LostRace:
                continue
            # The record first: nobody is given URLs of what is being deleted. After a crash here the next call, or the
            # bucket's lifecycle, deletes the rest.
            self._store.delete_objects(self._store.objects_of(task_id))
            return purged
        raise ServiceFault("the task keeps moving; purge it again")

    def _read(self, task_id: str) -> Stored:
        stored = self._store.read(task_id) if fullmatch(TASK_ID, task_id) else None
        if stored is None:
            raise NotFound(f"there is no task {task_id[:128]!r}")
        return stored

    def cancel(self, task_id: str, *, unseen: bool = False) -> Record:
        """Cancels a task and returns its record; idempotent. A worker notices at its next heartbeat, whose write fails.

        ``unseen``: also a task without a record, whose message no worker has read yet. Raises InvalidRequest if it
        could not have that name, NotFound, Conflict if the task has completed or failed, and ServiceFault.
        """
        if unseen and not fullmatch(TASK_ID, task_id):
            raise InvalidRequest([FieldError("task_id", f"must match {TASK_ID}")])
        until = time.monotonic() + CANCEL_WITHIN
        while time.monotonic() < until:
            stored = self._store.read(task_id) if fullmatch(TASK_ID, task_id) else None
            if stored is None and not unseen:
                raise NotFound(f"there is no task {task_id[:128]!r}")
            try:
                if stored is None:
                    return self._cancel_unseen(task_id)
                record = Record.from_json(stored.body)
                if record.status == "cancelled":
                    return record
                cancelled = moves.cancel(record, now=self._now())
                self._store.change(stored, cancelled)
                self._store.close(task_id, left=record.attempt > 0)
                self._metrics.cancelled()
            except Finished as fault:
                raise Conflict(fault.message) from fault
            except LostRace:
                continue  # it has just changed, as by a heartbeat, or been created by a worker: read again
            return cancelled
        raise ServiceFault("the task keeps moving; cancel it again")

    def _cancel_unseen(self, task_id: str) -> Record:
        """Makes a record that consumes the message when it comes. Raises LostRace if a worker was faster."""
        record = moves.cancel_unseen(task_id, self._now(), self._keep, self._store.tenant)
        self._store.announce(record)
        self._store.create(record)
        # A crash here leaves an ended task on the list of open ones, until the doctor clears up.
        self._store.close(task_id)
        self._metrics.cancelled()
        return record

    def submit(
        self, body: str | bytes, key: str | None = None, *, trace: str | None = None, origin: str | None = None
    ) -> Record:
        """Records and queues a task; returns its record, or the existing one if the same id and body came before.

        ``key``: the Idempotency-Key, which is the task_id; ``origin``: the task that this one repeats. Raises
        ModelUnavailable, InvalidRequest, Conflict (the id names another request), QuotaExceeded and ServiceFault. After
        a ServiceFault the same call can be repeated: it completes what was left undone.
        """
        submission = Submission(trace, origin, "task_id" if key is None else "Idempotency-Key")
        request = named_request(parse(body, self._card()), key)
        if request.task_id is not None:
            record = self._existing(request.task_id, request, submission)
            if record is not None:
                return record
        return self._create(request.task_id or self._new_id(), request, submission)

    def retry(self, task_id: str, key: str | None = None, *, trace: str | None = None) -> Record:
        """A new task with the request of the terminal one ``task_id``, its seed included.

        Raises NotFound, Conflict (it still runs, or never was a valid request), and what ``submit`` raises.
        """
        return self.submit(self._request_of(task_id), key, trace=trace, origin=task_id)

    def _request_of(self, task_id: str) -> bytes:
        """The request of a terminal task as JSON, with its seed and without its task_id. Raises NotFound, Conflict."""
        old = Record.from_json(self._read(task_id).body)
        if old.status not in TERMINAL:
            raise Conflict(f"task {task_id} is {old.status}; only one that has ended can be repeated")
        if old.purged:
            raise Conflict(f"task {task_id} was purged: what it was asked for is not known any more")
        if old.request is None:
            raise Conflict(f"task {task_id} holds no valid request")
        return old.request.model_dump_json(exclude={"task_id"}, exclude_none=True).encode()

    def quote(self, body: str | bytes, key: str | None = None) -> dict[str, Any]:
        """A QuoteResponse as JSON data: what the same submission would run and cost. Raises as ``submit`` does."""
        card = self._card()
        named = named_request(parse(body, card), key)
        return quote(card.resolve(named) if card else named, card, self.health.current(), self._settings)

    def _card(self) -> ModelCard | None:
        """The model's card; None while no worker has published it. Raises ModelUnavailable."""
        health = self.health.current()
        if health["model_status"] == "unavailable":
            raise ModelUnavailable(f"the model is not available: {health['reason']}")
        return card_of(health)

    def _create(self, task_id: str, request: GenerationRequest, submission: Submission) -> Record:
        record = moves.create(
            task_id, request, self._new_seed(), self._now(), self._keep, self._store.tenant, origin=submission.origin
        ).model_copy(update={"sends": 1})
        check_in_flight(self._store, self._settings.tenant_tasks)
        # A crash from here to the record's creation costs the tenant a part of its budget, with no task for it.
        self._budget.spend(self._store, task_id, request.num_images)
        self._store.announce(record)
        try:
            self._store.create(record)
        except LostRace:
            existing = self._existing(task_id, request, submission)
            if existing is None:
                raise ServiceFault("the record came and went while it was written; submit again") from None
            return existing
        # A crash here leaves a pending record without a message: the same submission again sends it.
        self._send(record, submission)
        return record

    def _existing(self, task_id: str, request: GenerationRequest, submission: Submission) -> Record | None:
        stored = self._store.read(task_id)
        if stored is None:
            return None
        record = Record.from_json(stored.body)
        if record.purged:
            gone = FieldError(submission.named_by, "names a task that was purged")
            raise Conflict(f"task {task_id} was purged, and its name with it: ask under another", [gone])
        if not record.asks_for(request) or (submission.origin is not None and record.origin != submission.origin):
            other = FieldError(submission.named_by, "names another request")
            raise Conflict(f"task {task_id} exists with another request", [other])
        if record.status != "pending":
            return record
        # Whether the first message was sent is not known. A second one does no harm: one attempt claims the task.
        try:
            again = moves.requeue(record, now=self._now())
            self._store.change(stored, again)
        except LostRace:
            return record  # somebody came for it meanwhile
        self._send(again, submission)
        return again

    def _send(self, record: Record, submission: Submission) -> None:
        try:
            with self._tracer.sending(submission.trace, self._queue.url) as header:
                self._queue.send(record.pointer(), trace=header)
        except ServiceFault as fault:
            again = f"submit it again with the {submission.named_by} {record.task_id}"
            raise ServiceFault(f"task {record.task_id} is recorded but may not be queued: {again}") from fault


def build(settings: Settings) -> Submit:
    """The handler on real S3 and SQS."""
    return Submit(settings, TaskStore(settings), TaskQueue(settings))
