"""The dead-letter handler: the last word on a task whose message the queue has given up on.

A message that came back too often lies in the dead-letter queue. Its task is written down as failed, with the last
fault, unless it has ended meanwhile or is still being developed under another message.
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
        """``queue`` is the dead-letter queue; without it a message that has to wait does so for that queue's time."""
        self._store, self._queue, self._now, self._new_seed = store, queue, now, new_seed
        self._metrics = Metrics(settings)
        self._keep = timedelta(days=settings.retention_days)

    def handle(self, event: dict[str, Any], _context: Any) -> dict[str, Any]:
        """Serves an SQS event's messages one after another. Answers which of them stay (``batchItemFailures``)."""
        messages = messages_of(event)
        return partial_response(messages, [self.serve(message) for message in messages])

    def serve(self, message: Message) -> bool:
        """True: the record tells that its task has ended, or nothing is to be told, so the message can be deleted."""
        try:
            self._record_failure(message)
        except (Finished, Conflict) as fault:
            logger.info("a dead letter of no consequence", message_id=message.message_id, fault=fault.message)
        except Held as held:
            if held.message_id in {None, message.message_id}:
                self._wait(message, (held.until - self._now()).total_seconds() + 1)
                return False
            logger.info("a dead duplicate", message_id=message.message_id, held_by=held.message_id)
        except DarkroomError as fault:
            # S3 failed, or the record has just moved: the message stays, and is read anew.
            logger.warning("not buried yet", message_id=message.message_id, fault=fault.message)
            return False
        except Exception:
            # A record that cannot be read, say: the message stays, and its neighbours are served.
            logger.exception("not buried", message_id=message.message_id)
            return False
        return True

    def _record_failure(self, message: Message) -> None:
        """Writes the failure where the task's caller looks. Raises Finished, Held, Conflict, LostRace, ServiceFault."""
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
        # A crash from here on leaves the message: it meets a terminal record.
        self._metrics.failed("RETRIES_EXHAUSTED")
        logger.error("given up", task_id=task_id, tenant=store.tenant)

    def _never_recorded(self, task_id: str, parsed: Parsed, message: Message, tenant: str | None) -> Record:
        """A raw message that no worker could even write down, as while S3 refused all of them."""
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
            logger.warning("the message comes back at the queue's own time", fault=fault.message)


def build(settings: Settings) -> DeadLetters:
    """The handler with its real surroundings."""
    queue = TaskQueue(settings, settings.dead_letter_url) if settings.dead_letter_url else None
    return DeadLetters(settings, TaskStore(settings), queue)
