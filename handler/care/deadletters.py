"""The dead-letter handler: what becomes of tasks whose message went to the dead-letter queue.

The queue's own count says little: S3 or the model may have been away for all of it. A task with tries left is sent
again; one without gets RETRIES_EXHAUSTED and the last fault, unless it has ended meanwhile or another message carries
it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..aws.metrics import Metrics
from ..aws.queue import Message, TaskQueue, messages_of, partial_response
from ..aws.store import TaskStore
from ..clock import utc_now
from ..contract.ids import new_seed
from ..contract.record import Record
from ..contract.request import Parsed
from ..errors import Conflict, DarkroomError, Finished, Held, InvalidRequest, RetriesExhausted, ServiceFault
from ..logs import logger
from ..task import limits, moves
from ..task.envelopes import beginning
from ..task.messages import Asked, asked_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..settings import Settings


SEND_AGAIN_AFTER = 900
"""Seconds: what kept the message from being served for so long may have passed by then."""


class DeadLetters:
    """Serves the messages of the dead-letter queue."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        queue: TaskQueue | None,
        tasks: TaskQueue | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
        new_seed: Callable[[], int] = new_seed,
    ) -> None:
        """``queue``: the dead-letter queue. Without it a message that must wait does so for its visibility timeout.

        ``tasks``: the queue that a task with tries left goes back to. Without it such a task stays pending, and the
        doctor sends it again.
        """
        self._store, self._queue, self._tasks, self._now, self._new_seed = store, queue, tasks, now, new_seed
        self._metrics = Metrics(settings)
        self._limits = limits.Limits.of(settings)
        self._keep = timedelta(days=settings.retention_days)

    def handle(self, event: dict[str, Any], _context: Any) -> dict[str, Any]:
        """Serves a Lambda SQS event's messages in order. Returns those to keep as ``batchItemFailures``."""
        messages = messages_of(event)
        return partial_response(messages, [self.serve(message) for message in messages])

    def serve(self, message: Message) -> bool:
        """True: the message can be deleted. False: it stays in the queue, to be served again. Never raises."""
        try:
            self._serve(message)
        except (Finished, Conflict) as fault:
            logger.info("dead letter dropped: nothing to record", message_id=message.message_id, fault=fault.message)
        except Held as held:
            if held.message_id in {None, message.message_id}:
                self._wait(message, (held.until - self._now()).total_seconds() + 1)
                return False
            logger.info("dead letter dropped: a duplicate", message_id=message.message_id, held_by=held.message_id)
        except DarkroomError as fault:
            # S3 or SQS failed, or the record has just moved: the message stays, and is read anew.
            logger.warning("dead letter kept: not recorded yet", message_id=message.message_id, fault=fault.message)
            return False
        except Exception:
            # A record that cannot be read, say: the message stays, and its neighbours are served.
            logger.exception("dead letter kept: not recorded", message_id=message.message_id)
            return False
        return True

    def _serve(self, message: Message) -> None:
        """Sends the task back while it has tries left, else writes its end where its caller looks.

        Raises Finished, Held, Conflict, LostRace and ServiceFault.
        """
        try:
            asked = asked_by(message, files=self._store)
        except InvalidRequest as fault:
            asked = Asked.unnamed(message, parsed=Parsed(None, fault.details, None))
        store, now = self._store.for_tenant(asked.tenant), self._now()
        stored = store.read(asked.task_id)
        if stored is None:
            if asked.pointer is not None:
                raise Finished("the record is gone")
            record = self._new_record(asked, message, store.tenant)
            store.announce(record)
            stored = store.create(record)
            if record.status == "failed":
                store.close(record.task_id)
                self._given_up(record)
                return
        else:
            record = Record.from_json(stored.body)
            try:
                asked.check(record)
            except Conflict as fault:
                self._refuse(store, message, fault)
                raise
            if asked.send < record.sends:
                raise Finished("the task has been sent again since")
        age = store.age(stored) if record.lease is not None else 0.0
        free = moves.lapsed(record, now, age)
        if end := limits.over(free, self._limits, now):
            ended = moves.exhaust(record, now=now, age=age, fault=end)
            store.change(stored, ended)
            store.close(ended.task_id, left=True)
            # A crash from here on leaves the message: it meets a terminal record.
            self._given_up(ended)
            return
        again = free.model_copy(update={"sends": free.sends + 1, "queued_at": now})
        store.open(again.task_id)
        store.change(stored, again)
        # A crash from here on leaves the message, which is the lower send now, and a pending task to the doctor.
        if self._tasks is not None:
            self._tasks.send(again.pointer(), SEND_AGAIN_AFTER, trace=message.trace)
        logger.warning("dead letter sent again: its task has tries left", task_id=again.task_id, tries=again.tries)

    def _refuse(self, store: TaskStore, message: Message, fault: Conflict) -> None:
        """Under the message's own id, where its sender looks: its name is another request's."""
        if store.read(message.message_id) is None:
            body = beginning(message.body)
            record = moves.reject(message.message_id, fault, self._now(), self._keep, store.tenant, body)
            store.announce(record)
            store.create(record)
            store.close(record.task_id)
            self._metrics.failed(fault.code)

    def _given_up(self, record: Record) -> None:
        self._metrics.failed(record.error.code if record.error else "RETRIES_EXHAUSTED")
        logger.error("given up", task_id=record.task_id, tenant=record.tenant)

    def _new_record(self, asked: Asked, message: Message, tenant: str | None) -> Record:
        """Of a raw message that no worker could even write down, as while S3 refused all of them."""
        now = self._now()
        if asked.parsed.request is None:
            fault = RetriesExhausted("given up: the message holds no valid request, and no worker could say so")
            return moves.reject(asked.task_id, fault, now, self._keep, tenant, asked.body)
        sent_at = message.sent_at(now)
        keep = self._keep + (now - sent_at)
        return moves.create(asked.task_id, asked.parsed.request, self._new_seed(), sent_at, keep, tenant)

    def _wait(self, message: Message, seconds: float) -> None:
        if self._queue is None:
            return
        try:
            self._queue.change_visibility(message.receipt_handle, seconds)
        except ServiceFault as fault:
            logger.warning("the message comes back when its visibility timeout ends", fault=fault.message)


def build(settings: Settings) -> DeadLetters:
    """The handler on real S3 and SQS."""
    queue = TaskQueue(settings, settings.dead_letter_url) if settings.dead_letter_url else None
    return DeadLetters(settings, TaskStore(settings), queue, TaskQueue(settings) if settings.queue_url else None)
