"""The queue-triggered handler: from a message to images in S3 and a record that says ``completed``.

A message ends in one of three ways: deleted (its task is terminal, or another message stands for it); returned to the
queue with a delay (another attempt holds the task, or a retryable fault); or, if this process dies, visible again when
its visibility timeout ends.
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
from ..aws.queue import TaskQueue, messages_of, partial_response
from ..aws.store import TaskStore
from ..aws.tracing import Tracer
from ..aws.weights import fetch_model
from ..clock import utc_now
from ..contract.ids import new_id, new_seed
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
from ..task.messages import Asked, asked_by
from .developing import AttemptRunner
from .lazy_engine import LazyEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.queue import Message
    from ..engine import Engine
    from ..settings import Settings
    from ..task.attempt import Attempt

MOST_TASKS = 64
FIRST_DELAY, LONGEST_DELAY = 5, 900
"""Seconds of delay after a retryable fault: doubled with each fault of the task, up to the second."""


class Returned(Exception):
    """The message stays in the queue; its visibility timeout is already set."""


@dataclass
class _Delivery:
    """One receipt of a message. ``tries``: faults of its task so far, counting the one that may come now."""

    message: Message
    deadline: float
    tries: int


class Generate:
    """Serves SQS messages; one instance per process, kept between Lambda invocations."""

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
        # Kept from one event to the next: OpenMP never frees the memory of a thread that has ended.
        self.threads = ThreadPoolExecutor(MOST_TASKS, thread_name_prefix="task")
        self._log_prompts = settings.log_prompts
        self._stopping = False
        self.broken: WorkerBroken | None = None
        self.on_broken: Callable[[], None] = self.suspend
        """Called once when the device or the disk has failed. The process must then end; its host starts another."""

    def engine(self) -> Engine:
        """The engine, loaded by the first caller. Raises ModelUnavailable."""
        return self._lazy.engine()

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Serves the messages of a Lambda SQS event in parallel. Returns those to retry as ``batchItemFailures``."""
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 if context else float("inf")
        messages = messages_of(event)
        served = [self.threads.submit(self.serve, message, deadline) for message in messages]
        return partial_response(messages, [one.result() for one in served])

    def suspend(self, finish_within: float = 0.0) -> None:
        """Stops work before the host goes: tasks that will be done within ``finish_within`` seconds are finished, the
        others are checkpointed and requeued before their next step.
        """
        self._stopping = True
        self._heartbeat.suspend(time.monotonic() + finish_within)

    def release_all(self) -> None:
        """Checkpoints and releases all running tasks at once, in the middle of a step. The process must end after
        that, because the pipelines' threads cannot be stopped.
        """
        self._stopping = True
        self._heartbeat.release_all()

    def serve(self, message: Message, deadline: float = float("inf")) -> bool:
        """Serves one message in this thread, until ``deadline`` (time.monotonic) at most.

        True: the message can be deleted, because its task has ended or another message stands for it. False: it stays
        in the queue, its visibility timeout set. Log lines carry the message, its trace, its tenant and its task.
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
        # Until the record is read: the receive count, which also counts receipts while another attempt held the task.
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
                # The record changed meanwhile: read it again and decide anew. Usually the task is finished, or held.
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
        """One try: to a terminal record, or to a suspended task with a new message. Raises LostRace, Held and
        retryable faults.
        """
        message = delivery.message
        try:
            asked = asked_by(message, engine.card)
        except InvalidRequest as fault:
            # Recorded under the message's own id and without a tenant: that cannot be anybody else's task.
            return self._claims.reject(Asked(message.message_id, None), fault)
        attempt: Attempt | None = None
        try:
            with ExitStack() as slot:
                slot.enter_context(engine.slot())
                began = time.perf_counter()
                attempt = self._claims.claim(asked, message, engine, delivery.deadline)
                record = attempt.record
                logger.thread_safe_append_keys(task_id=record.task_id, attempt=record.attempt)
                if self._log_prompts and record.request:
                    request = record.request
                    logger.info("claimed", prompt=request.prompt, negative_prompt=request.negative_prompt)
                with self._tracer.attempt(attempt, message.trace), self._heartbeat.watching(attempt):
                    self._runner.develop(attempt, engine, began, slot)
        except Suspended as fault:
            if attempt is None:
                raise
            # A new message rather than this one returned, so that a task which is suspended often does not reach the
            # dead-letter queue. A crash before the send leaves this message; one after it two, of which one claims.
            self._queue.send(attempt.record.pointer(), trace=message.trace)
            logger.info("suspended", task_id=asked.task_id, reason=fault.message)
        except InvalidRequest as fault:
            self._claims.reject(asked, fault)
        except Conflict as fault:
            self._claims.reject(Asked(message.message_id, asked.tenant), fault)
        except Finished as fault:
            logger.info("nothing to do", task_id=asked.task_id, fault=fault.message)
        except DarkroomError as fault:
            if attempt is not None and fault.own_fault:
                delivery.tries = attempt.record.tries
            raise
        return None

    def _pass_by(self, held: Held, delivery: _Delivery) -> None:
        message = delivery.message
        if held.message_id in {None, message.message_id}:
            self._return(delivery, held, after=(held.until - self._now()).total_seconds() + 1)
        # The holder's own message is in the queue until the task has ended, so this one is not needed.
        logger.info("a duplicate", message_id=message.message_id, held_by=held.message_id)

    def _broke(self, fault: WorkerBroken) -> None:
        """Takes no more messages: their tasks would fail here as well."""
        if self.broken is None:
            self.broken = fault
            logger.critical("this worker is broken", fault=fault.message)
            self.on_broken()

    def _return(self, delivery: _Delivery, fault: DarkroomError, after: float | None = None) -> NoReturn:
        """Returns the message to the queue for ``after`` seconds; if None, for an exponential backoff with jitter."""
        message = delivery.message
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(delivery.tries - 1, 10))
        # Jitter, from half of it to all of it: messages that failed together do not come back together.
        delay = longest * (0.5 + 0.5 * self._chance()) if after is None else after
        cause = str(fault.__cause__) if fault.__cause__ else None
        logger.info("back to the queue", message_id=message.message_id, fault=fault.message, cause=cause, seconds=delay)
        try:
            self._queue.change_visibility(message.receipt_handle, delay)
        except ServiceFault as hidden:
            logger.warning("the message comes back when its visibility timeout ends", fault=hidden.message)
        raise Returned(fault.message) from fault


def build(settings: Settings) -> Generate:
    """The handler on real S3 and SQS. The engine's modules are imported when the pipeline is first needed."""
    return Generate(settings, TaskStore(settings), TaskQueue(settings), load_engine)


def load_engine(settings: Settings) -> Engine:
    """Loads the pipeline and warms it up. Raises ModelUnavailable."""
    from ..engine.starting import start

    return start(settings, fetch_model)
