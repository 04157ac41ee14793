"""Claims tasks for a worker, and records the messages that cannot be served."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from ..aws.metrics import Metrics
from ..contract.record import Lease, ModelRef, Record
from ..contract.request import parse
from ..errors import Conflict, DarkroomError, InvalidRequest, LostRace, ServiceFault
from ..logs import logger
from . import inputs, moves
from .attempt import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.queue import Message, TaskQueue
    from ..aws.store import TaskStore
    from ..contract.request import GenerationRequest
    from ..engine import Engine
    from ..settings import Settings


class Claims:
    """Reads and writes records on behalf of one worker process."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        queue: TaskQueue,
        *,
        worker: str,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        new_seed: Callable[[], int],
    ) -> None:
        self._settings, self._store, self._queue, self._worker = settings, store, queue, worker
        self._now, self._new_id, self._new_seed = now, new_id, new_seed
        self._metrics = Metrics(settings)
        self._keep = timedelta(days=settings.retention_days)
        self._lease = timedelta(seconds=settings.lease)

    def claim(
        self, task_id: str, request: GenerationRequest, message: Message, engine: Engine, deadline: float
    ) -> Attempt:
        """Claims the task for a new attempt, creating its record if there is none.

        Raises Finished, Held, Conflict (the id names another request), or LostRace when another worker was faster.
        """
        now, card, store = self._now(), engine.card, self._store.for_tenant(message.tenant)
        stored = store.read(task_id)
        if stored is None:
            asked_at = message.sent_at(now)
            record = moves.create(task_id, request, self._new_seed(), asked_at, self._keep, store.tenant)
        else:
            record = Record.from_json(stored.body)
            if not record.asks_for(request):
                raise Conflict(f"the task_id {task_id} names another request")
        # A new owner for each claim, so that two claims at the same moment never write equal bytes, and one loses.
        owner = f"{self._worker}/{self._new_id()}"
        claimed = moves.claim(
            record,
            lease=Lease(owner=owner, expires_at=now + self._lease, message_id=message.message_id),
            now=now,
            request=card.resolve(record.request or request),
            model=ModelRef(id=card.id, revision=card.revision, pipeline=card.pipeline, dtype=card.dtype),
        )
        claimed, upload = inputs.read_input(store, claimed)
        if stored is None:
            store.index(record)
            stored = store.create(claimed)
        else:
            stored = store.change(stored, claimed)
        # A crash from here on leaves ``processing`` with a lease that runs out; the message becomes visible by itself.
        return Attempt(
            store,
            self._queue,
            self._settings,
            self._now,
            stored=stored,
            record=claimed,
            message=message,
            deadline=deadline,
            upload=upload,
        )

    def reject(self, task_id: str, fault: DarkroomError, request: GenerationRequest | None, tenant: str | None) -> None:
        """Records a message that cannot be served as failed: in a new record, or in the task's own if that is pending
        with this same ``request`` (accepted before the model was known, say). Another task's record is never changed.
        """
        logger.warning("refused", task_id=task_id, code=fault.code, fault=fault.message)
        store = self._store.for_tenant(tenant)
        stored = store.read(task_id)
        if stored is None:
            record = moves.reject(task_id, fault, self._now(), self._keep, store.tenant)
            store.index(record)
            store.create(record)
            self._metrics.failed(fault.code)
            return
        record = Record.from_json(stored.body)
        if request is None or not record.asks_for(request) or record.status != "pending":
            logger.info(
                "the refused message names an existing task, left as it is", task_id=task_id, status=record.status
            )
            return
        store.change(stored, moves.fail(record, now=self._now(), fault=fault))
        self._metrics.failed(fault.code)

    def record_pending(self, message: Message) -> None:
        """Writes a pending record for a message that cannot be served yet, so that the task's status can be read."""
        parsed = parse(message.body)
        task_id = parsed.task_id or message.message_id
        try:
            store = self._store.for_tenant(message.tenant)
            if store.read(task_id) is None:
                asked_at = message.sent_at(self._now())
                record = moves.create(task_id, parsed.accept(), self._new_seed(), asked_at, self._keep, store.tenant)
                store.index(record)
                store.create(record)
        except (InvalidRequest, LostRace, ServiceFault) as fault:
            # The message comes back to the queue, and this is tried again.
            logger.info("not recorded yet", task_id=task_id, fault=fault.message)
