"""The queue-triggered handler: from a message to images in S3 and a record that says ``completed``.

A message ends in one of three ways: consumed (its task is terminal, or another message carries it), back in the queue
after a delay (somebody else holds the task, or a passing fault), or, when this process dies, back by itself.
"""

from __future__ import annotations

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..aws.metrics import Metrics
from ..aws.queue import TaskQueue, messages_of, partial_response, tenant_fault
from ..aws.store import TaskStore
from ..aws.tracing import Tracer
from ..aws.weights import fetch_model
from ..clock import utc_now
from ..contract.ids import new_id, new_seed
from ..contract.request import parse
from ..errors import (
    Conflict,
    DarkroomError,
    Finished,
    Held,
    Internal,
    InvalidRequest,
    LostRace,
    ModelUnavailable,
    ServiceFault,
    Suspended,
    WorkerBroken,
)
from ..logs import logger
from ..task.claims import Claims
from ..task.heartbeat import Heartbeat
from .developing import AttemptRunner
from .lazy_engine import LazyEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.queue import Message
    from ..engine import Engine
    from ..settings import Settings

MOST_TASKS = 64
FIRST_DELAY, LONGEST_DELAY = 5, 900
"""Seconds after which a message comes back after a passing fault, doubled at each time."""


class Returned(Exception):
    """The message goes back to the queue; when it will be seen again is already set."""


@dataclass
class _Delivery:
    """A message as it came this time. ``tries`` counts the faults that its task has met, this one included."""

    message: Message
    deadline: float
    tries: int


class Generate:
    """Serves the messages of one warm process."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        queue: TaskQueue,
        load: Callable[[Settings], Engine],
        *,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = new_id,
        new_seed: Callable[[], int] = new_seed,
        chance: Callable[[], float] = random.random,
        worker: str | None = None,
    ) -> None:
        self._queue, self._now, self._chance = queue, now, chance
        worker = worker or f"{socket.gethostname()}-{os.getpid()}-{new_id()[:8]}"
        self._claims = Claims(settings, store, queue, worker=worker, now=now, new_id=new_id, new_seed=new_seed)
        self._heartbeat = Heartbeat(settings.beat_every, min(settings.first_beat, settings.lease / 3), chance)
        self._lazy = LazyEngine(settings, store, load, now)
        self._runner = AttemptRunner(self._lazy, Metrics(settings))
        self._tracer = Tracer(settings, now)
        # Kept from one event to the next: OpenMP keeps memory for every thread that there ever was.
        self.threads = ThreadPoolExecutor(MOST_TASKS, thread_name_prefix="task")
        self._log_prompts = settings.log_prompts
        self._stopping = False
        self.broken: WorkerBroken | None = None
        self.on_broken: Callable[[], None] = self.suspend
        """Called once when the device or the disk has gone; the process has to end, for its host to start another."""

    def engine(self) -> Engine:
        """The engine, loaded by the first caller. Raises ModelUnavailable."""
        return self._lazy.engine()

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Serves an SQS event's messages side by side. Answers which of them go back (``batchItemFailures``)."""
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 if context else float("inf")
        messages = messages_of(event)
        served = [self.threads.submit(self.serve, message, deadline) for message in messages]
        return partial_response(messages, [one.result() for one in served])

    def suspend(self, finish_within: float = 0.0) -> None:
        """The host is about to go. Tasks that will be done within so many seconds are finished, the others saved and
        put back into the queue between two steps.
        """
        self._stopping = True
        self._heartbeat.suspend(time.monotonic() + finish_within)

    def release_all(self) -> None:
        """What is still running is saved as far as it is and given back, in the middle of a step. Then the process
        has to end: its pipelines cannot be stopped.
        """
        self._stopping = True
        self._heartbeat.release_all()

    def serve(self, message: Message, deadline: float = float("inf")) -> bool:
        """Serves one message in this thread, until ``deadline`` (time.monotonic) at most.

        True: its task has ended, or another message carries it, so this one can be deleted. False: it stays in the
        queue, hidden for as long as is right. Every line that is logged meanwhile names the message, its trace, its
        tenant and the claimed task.
        """
        logger.thread_safe_append_keys(message_id=message.message_id, trace_id=message.trace, tenant=message.tenant)
        try:
            self._serve(message, deadline)
        except Returned:
            return False
        finally:
            logger.thread_safe_clear_keys()
        return True

    def _serve(self, message: Message, deadline: float) -> None:
        # Until the record tells: received as often as this, though some of it was waiting for somebody else.
        delivery = _Delivery(message, deadline, int(message.attributes.get("ApproximateReceiveCount", 1)))
        try:
            engine = self.engine()
        except ModelUnavailable as fault:
            self._claims.record_pending(message)
            self._return(delivery, fault)
        for _ in range(3):
            if self._stopping:
                self._return(delivery, Suspended("the worker stops"), after=0)
            try:
                self._once(delivery, engine)
                return
            except LostRace as lost:
                # Somebody moved the record: read it again and decide anew. Usually it is finished, or held.
                logger.info("the record moved", message_id=message.message_id, fault=lost.message)
            except Held as held:
                self._pass_by(held, delivery)
                return
            except WorkerBroken as fault:
                self._broke(fault)
                self._return(delivery, fault, after=0)
            except DarkroomError as fault:
                self._return(delivery, fault)
            except Returned:
                raise
            except Exception as fault:
                logger.exception("unexpected fault", message_id=message.message_id)
                self._return(delivery, Internal(f"unexpected fault: {type(fault).__name__}"))
        self._return(delivery, ServiceFault("the record keeps moving"))

    def _once(self, delivery: _Delivery, engine: Engine) -> None:
        """One reading of the message, to a terminal record or a task put back. Raises LostRace, Held, and retryable
        faults.
        """
        message = delivery.message
        nobody = tenant_fault(message)
        if nobody is not None:
            # Under its own name, and nobody's: the only place that is surely not another's task.
            return self._claims.reject(message.message_id, nobody, None, None)
        parsed = parse(message.body, engine.card)
        task_id = parsed.task_id or message.message_id
        try:
            request = parsed.accept()
            with ExitStack() as slot:
                slot.enter_context(engine.slot())
                began = time.perf_counter()
                attempt = self._claims.claim(task_id, request, message, engine, delivery.deadline)
                logger.thread_safe_append_keys(task_id=task_id, attempt=attempt.record.attempt)
                if self._log_prompts:
                    logger.info("claimed", prompt=request.prompt, negative_prompt=request.negative_prompt)
                delivery.tries = 1 + attempt.record.faults
                with self._tracer.attempt(attempt, message.trace), self._heartbeat.watching(attempt):
                    self._runner.develop(attempt, engine, began, slot)
        except Suspended as fault:
            # A message of its own, not this one given back: a task that outlasts many hosts must not look like poison.
            # A crash before the send leaves this message; one after it makes two, and one claim.
            self._queue.send(request.message(task_id), trace=message.trace, tenant=message.tenant)
            logger.info("suspended", task_id=task_id, reason=fault.message)
        except InvalidRequest as fault:
            self._claims.reject(task_id, fault, parsed.request, message.tenant)
        except Conflict as fault:
            self._claims.reject(message.message_id, fault, None, message.tenant)
        except Finished as fault:
            logger.info("nothing to do", task_id=task_id, fault=fault.message)

    def _pass_by(self, held: Held, delivery: _Delivery) -> None:
        message = delivery.message
        if held.message_id in {None, message.message_id}:
            self._return(delivery, held, after=(held.until - self._now()).total_seconds() + 1)
        # The holder's own message is in the queue until the task has ended, so this one is not needed.
        logger.info("a duplicate", message_id=message.message_id, held_by=held.message_id)

    def _broke(self, fault: WorkerBroken) -> None:
        """Nothing more is taken: what the next tasks would meet here, they would meet for nothing."""
        if self.broken is None:
            self.broken = fault
            logger.critical("this worker is broken", fault=fault.message)
            self.on_broken()

    def _return(self, delivery: _Delivery, fault: DarkroomError, after: float | None = None) -> NoReturn:
        """Gives the message back, after longer at each time unless ``after`` (seconds) is known."""
        message = delivery.message
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(delivery.tries - 1, 10))
        # From half of it to all of it: messages that met the same fault together do not come back together.
        delay = longest * (0.5 + 0.5 * self._chance()) if after is None else after
        cause = str(fault.__cause__) if fault.__cause__ else None
        logger.info("back to the queue", message_id=message.message_id, fault=fault.message, cause=cause, seconds=delay)
        try:
            self._queue.change_visibility(message.receipt_handle, delay)
        except ServiceFault as hidden:
            logger.warning("the message comes back at the queue's own time", fault=hidden.message)
        raise Returned(fault.message) from fault


def build(settings: Settings) -> Generate:
    """The handler with its real surroundings; the engine's modules are imported when the pipeline is first needed."""
    return Generate(settings, TaskStore(settings), TaskQueue(settings), load_engine)


def load_engine(settings: Settings) -> Engine:
    """Loads the pipeline. Raises ModelUnavailable."""
    from ..engine.starting import start

    return start(settings, fetch_model)
