"""The dead-letter handler: marks tasks as failed whose message went to the dead-letter queue.

The record gets code RETRIES_EXHAUSTED and the last fault, unless the task has ended meanwhile or another attempt still
works on it under another message.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..aws.metrics import Metrics
from ..aws.queue import Message, TaskQueue, messages_of, partial_response, tenant_fault
from ..aws.store import TaskStore
from ..clock import utc_now
from ..contract.ids import new_seed
from ..contract.record import Record
from ..contract.request import Parsed, parse
from ..errors import Conflict, DarkroomError, Finished, Held, RetriesExhausted, ServiceFault
from ..logs import logger
from ..task import moves

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..settings import Settings


class DeadLetters:
    """Serves the messages of the dead-letter queue."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        queue: TaskQueue | None,
        *,
        now: Callable[[], datetime] = utc_now,
        new_seed: Callable[[], int] = new_seed,
    ) -> None:
        """``queue``: the dead-letter queue. Without it a message that must wait does so for its visibility timeout."""
        self._store, self._queue, self._now, self._new_seed = store, queue, now, new_seed
        self._metrics = Metrics(settings)
        self._keep = timedelta(days=settings.retention_days)

    def handle(self, event: dict[str, Any], _context: Any) -> dict[str, Any]:
        """Serves a Lambda SQS event's messages in order. Returns those to keep as ``batchItemFailures``."""
        messages = messages_of(event)
        return partial_response(messages, [self.serve(message) for message in messages])

    def serve(self, message: Message) -> bool:
        """True: the message can be deleted. False: it stays in the queue, to be served again. Never raises."""
        try:
            self._record_failure(message)
        except (Finished, Conflict) as fault:
            logger.info("dead letter dropped: nothing to record", message_id=message.message_id, fault=fault.message)
        except Held as held:
            if held.message_id in {None, message.message_id}:
                self._wait(message, (held.until - self._now()).total_seconds() + 1)
                return False
            logger.info("dead letter dropped: a duplicate", message_id=message.message_id, held_by=held.message_id)
        except DarkroomError as fault:
            # S3 failed, or the record has just changed: the message stays and is served again.
            logger.warning("dead letter not recorded yet", message_id=message.message_id, fault=fault.message)
            return False
        except Exception:
            # A record that cannot be parsed, say: this message stays, and the others of the event are served.
            logger.exception("dead letter not recorded", message_id=message.message_id)
            return False
        return True

    def _record_failure(self, message: Message) -> None:
        """Writes the failed record. Raises Finished, Held, Conflict, LostRace, ServiceFault."""
        parsed = parse(message.body)
        task_id = parsed.task_id or message.message_id
        if (fault := tenant_fault(message)) is not None:
            store, task_id, parsed = self._store.for_tenant(None), message.message_id, Parsed(None, fault.details, None)
        else:
            store = self._store.for_tenant(message.tenant)
        stored = store.read(task_id)
        if stored is None:
            lost = self._never_recorded(task_id, parsed, message, store.tenant)
            store.index(lost)
            store.create(lost)
        else:
            record = Record.from_json(stored.body)
            if parsed.request is not None and not record.asks_for(parsed.request):
                raise Conflict(f"the task_id {task_id} names another request")
            store.change(stored, moves.exhaust(record, now=self._now()))
        # After a crash from here on the message is served again, and meets a terminal record.
        self._metrics.failed("RETRIES_EXHAUSTED")
        logger.error("given up", task_id=task_id, tenant=store.tenant)

    def _never_recorded(self, task_id: str, parsed: Parsed, message: Message, tenant: str | None) -> Record:
        """A failed record for a message that no worker could record, as when S3 failed at every try."""
        now = self._now()
        if parsed.request is None:
            fault = RetriesExhausted("given up: the message holds no valid request, and no worker could say so")
            return moves.reject(task_id, fault, now, self._keep, tenant)
        pending = moves.create(task_id, parsed.request, self._new_seed(), message.sent_at(now), self._keep, tenant)
        return moves.exhaust(pending, now=now)

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
    return DeadLetters(settings, TaskStore(settings), queue)
