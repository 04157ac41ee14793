"""Claims tasks for a worker, and records the messages that cannot be served."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from ..aws.metrics import Metrics
from ..contract.record import Lease, ModelRef, Record
from ..errors import DarkroomError, Finished, InvalidRequest, LostRace, ServiceFault
from ..logs import logger
from . import inputs, limits, moves
from .attempt import Attempt
from .messages import asked_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.queue import Message, TaskQueue
    from ..aws.s3 import Stored
    from ..aws.store import TaskStore
    from ..contract.card import ModelCard
    from ..engine import Engine
    from ..settings import Settings
    from .messages import Asked


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
        self._limits = limits.Limits.of(settings)
        self._keep = timedelta(days=settings.retention_days)
        self._lease = timedelta(seconds=settings.lease)

    def asked(self, message: Message, card: ModelCard | None = None) -> Asked:
        """What a message asks for. Raises as :func:`.messages.asked_by` does."""
        return asked_by(message, card, self._store)

    def claim(self, asked: Asked, message: Message, engine: Engine, deadline: float) -> Attempt:
        """Claims the task for a new attempt, creating its record if there is none.

        Raises Finished (also where the task has just been ended, for it is over its limits, and where a pointer's
        record is gone), Held, Conflict (the id names another request), InvalidRequest, or LostRace when another worker
        was faster.
        """
        if asked.pointer is None:
            asked.parsed.accept()
        now, store = self._now(), self._store.for_tenant(asked.tenant)
        stored = store.read(asked.task_id)
        if stored is None:
            record = self._new_record(asked, message, store.tenant)
        else:
            record = Record.from_json(stored.body)
            asked.check(record)
        # Asked for only where there is a lease to be judged: S3's time costs a request now and then.
        age = store.age(stored) if stored is not None and record.lease is not None else 0.0
        if stored is not None:
            self._end_if_over(store, stored, record, age)
        claimed, upload = inputs.read_input(store, self._claimed(record, engine.card, message, now, age))
        began = time.monotonic()
        if stored is None:
            store.announce(record)
            stored = store.create(claimed)
        else:
            stored = store.change(stored, claimed)
        # A crash from here on leaves ``processing`` with a lease that runs out; the message becomes visible by itself.
        attempt = Attempt(
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
        attempt.hold.signed_at = began
        return attempt

    def _claimed(self, record: Record, card: ModelCard, message: Message, now: datetime, age: float) -> Record:
        # A new owner for each claim, so that two claims at the same moment never write equal bytes, and one loses.
        owner = f"{self._worker}/{self._new_id()}"
        if record.request is None:
            raise Finished("the record holds no request")
        request = card.resolve(record.request)
        if faults := card.faults(request.model_dump()):
            raise InvalidRequest(faults)  # accepted for another model, or before this one was known
        return moves.claim(
            record,
            lease=Lease(
                owner=owner,
                expires_at=now + self._lease,
                seconds=self._lease.total_seconds(),
                message_id=message.message_id,
            ),
            now=now,
            age=age,
            request=request,
            model=ModelRef(id=card.id, revision=card.revision, pipeline=card.pipeline, dtype=card.dtype),
        )

    def _new_record(self, asked: Asked, message: Message, tenant: str | None) -> Record:
        """Of a request that came without one. Raises Finished for a pointer, InvalidRequest with every fault."""
        if asked.pointer is not None:
            raise Finished("the record is gone")
        request = asked.parsed.accept()
        now = self._now()
        sent_at = message.sent_at(now)
        # Kept from now on, as S3 counts, however long the message has waited.
        return moves.create(asked.task_id, request, self._new_seed(), sent_at, self._keep + (now - sent_at), tenant)

    def _end_if_over(self, store: TaskStore, stored: Stored, record: Record, age: float) -> None:
        """Raises Finished where the task is over its limits, which its record then tells; and Held, Finished, LostRace
        as the record is.
        """
        now = self._now()
        if (fault := limits.over(moves.lapsed(record, now, age), self._limits, now)) is None:
            return
        store.change(stored, moves.exhaust(record, now=now, age=age, fault=fault))
        store.close(record.task_id, left=True)
        self._metrics.failed(fault.code)
        logger.error("given up", task_id=record.task_id, tenant=record.tenant, fault=fault.message)
        raise Finished(fault.message)

    def reject(self, asked: Asked, fault: DarkroomError) -> None:
        """Records that a task cannot be served as failed: in a new record, or in the task's own if that is pending and
        asks for the same (accepted before the model was known, say). Another task's record is never changed.
        """
        logger.warning("refused", task_id=asked.task_id, code=fault.code, fault=fault.message)
        store = self._store.for_tenant(asked.tenant)
        stored = store.read(asked.task_id)
        if stored is None:
            record = moves.reject(asked.task_id, fault, self._now(), self._keep, store.tenant, asked.body)
            store.announce(record)
            store.create(record)
            store.close(record.task_id)
            self._metrics.failed(fault.code)
            return
        record = Record.from_json(stored.body)
        request = asked.parsed.request
        own = asked.pointer is not None or (request is not None and record.asks_for(request))
        if not own or record.status != "pending":
            logger.info(
                "the refused message names an existing task, left as it is",
                task_id=asked.task_id,
                status=record.status,
            )
            return
        store.change(stored, moves.fail(record, now=self._now(), fault=fault))
        store.close(record.task_id, left=record.attempt > 0)
        self._metrics.failed(fault.code)

    def record_pending(self, message: Message) -> None:
        """Writes a pending record for a message that cannot be served yet, so that the task's status can be read."""
        try:
            asked = self.asked(message)
            store = self._store.for_tenant(asked.tenant)
            if asked.pointer is None and store.read(asked.task_id) is None:
                record = self._new_record(asked, message, store.tenant)
                store.announce(record)
                store.create(record)
        except (InvalidRequest, Finished, LostRace, ServiceFault) as fault:
            # The message comes back to the queue, and this is tried again.
            logger.info("not recorded yet", message_id=message.message_id, fault=fault.message)
