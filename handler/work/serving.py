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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
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
from ..task.attempt import NO_PLACE
from ..task.budget import RESERVE, Costs, size_of
from ..task.claims import Claims
from ..task.heartbeat import RELEASE_WITHIN, Heartbeat, Hidden
from ..task.messages import Asked
from .admission import Admission, Admitted
from .delivery import Delivery, Returned
from .developing import AttemptRunner
from .lazy_engine import LazyEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ..aws.queue import Message
    from ..engine import Engine
    from ..settings import Settings
    from ..task.attempt import Attempt
    from ..task.heartbeat import Watched

MOST_TASKS = 64
LAST_SECONDS = 2.0
"""Seconds before an invocation's deadline at which it gives back whatever it still has."""
LOOK_EVERY = 1.0
"""Seconds between two looks of an invocation at whether its process is broken."""


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
        self._lazy = LazyEngine(settings, store, load, now)
        self._heartbeat = Heartbeat(
            settings.beat_every,
            min(settings.first_beat, settings.lease / 3),
            chance,
            on_turn=self.renew,
            on_stuck=self._stuck,
        )
        self._lease = settings.lease
        self._costs = Costs()
        self._runner = AttemptRunner(self._lazy, Metrics(settings), self._costs)
        self._tracer = Tracer(settings, now)
        # Kept from one event to the next: OpenMP never frees the memory of a thread that has ended.
        self.threads = ThreadPoolExecutor(MOST_TASKS, thread_name_prefix="task")
        self._log_prompts = settings.log_prompts
        self._stopping = False
        self._troubles = 0
        """Faults of the surroundings that this process has met in a row."""
        self.broken: WorkerBroken | None = None
        self.on_broken: Callable[[], None] = self.suspend
        """Called once when the device or the disk has failed. The process must then end; its host starts another."""

    def engine(self) -> Engine:
        """The engine, loaded by the first caller. Raises ModelUnavailable."""
        return self._lazy.engine()

    def renew(self) -> None:
        """Reports that this worker is well, if it is, and at most once a minute. Ends one whose model never loads."""
        if self._lazy.hangs:
            self._broke(WorkerBroken("the model does not finish loading"))
        if self.broken is None:
            self._lazy.renew()

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Serves the messages of a Lambda SQS event in parallel. Returns those to retry as ``batchItemFailures``."""
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 if context else float("inf")
        messages = messages_of(event)
        with ExitStack() as hidden:  # until all are served: Lambda deletes none before
            deliveries = [hidden.enter_context(self._received(message, deadline)) for message in messages]
            served = [self.threads.submit(self._served, delivery) for delivery in deliveries]
            self._see_to_the_end(served, deadline)
        return partial_response(messages, [one.done() and one.result() for one in served])

    def _see_to_the_end(self, served: list[Future[bool]], deadline: float) -> None:
        """Waits until all are served. What cannot be waited for, because this process is broken or its time is over,
        is given back; where that was being drawn, the process must end, for its threads cannot be stopped.
        """
        left, until = set(served), deadline - LAST_SECONDS
        while left and self.broken is None and (now := time.monotonic()) < until:
            left = wait(left, timeout=min(LOOK_EVERY, until - now)).not_done
        if left and self.broken is not None:  # the others are saved and sent on before their next steps
            left = wait(left, timeout=min(RESERVE, max(0.0, until - time.monotonic()))).not_done
        if left and self._heartbeat.drawing:
            self._broke(WorkerBroken("a task outlasted its invocation"))
        if left:
            self._heartbeat.release_all(min(RELEASE_WITHIN, max(0.0, deadline - time.monotonic() - 0.5)))

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

    def serve(self, message: Message, drawn: Callable[[], None] = lambda: None) -> bool:
        """Serves one message in this thread. ``drawn`` is called when its task needs the engine's slot no longer.

        True: the message can be deleted, because its task has ended or another message stands for it. False: it stays
        in the queue, its visibility timeout set.
        """
        with self._received(message, float("inf")) as delivery:
            delivery.drawn = drawn
            return self._served(delivery)

    @contextmanager
    def _received(self, message: Message, deadline: float) -> Iterator[Delivery]:
        """Keeps a message hidden while the block runs, until it is given back."""
        delivery = Delivery(message, deadline, Hidden(self._queue, message, self._lease), self._chance)
        with self._heartbeat.watching(delivery.hidden):
            yield delivery

    def _served(self, delivery: Delivery) -> bool:
        """As ``serve``, until the delivery's deadline. Log lines carry message, trace, tenant and task."""
        message = delivery.message
        logger.thread_safe_append_keys(message_id=message.message_id, trace_id=message.trace, tenant=message.tenant)
        try:
            if (early := message.due_in(self._now())) > 0:  # a FIFO queue delays nothing by itself
                delivery.put_off(early)
            self._serve(delivery)
        except Returned:
            return False
        finally:
            logger.thread_safe_clear_keys()
        return True

    def _serve(self, delivery: Delivery) -> None:
        message = delivery.message
        if delivery.left < float("inf"):
            delivery.hidden.hide()  # under Lambda the queue's own time is the whole invocation's, and longer
        try:
            engine = self.engine()
        except ModelUnavailable as fault:
            self._claims.record_pending(message)
            self._wait_out(fault, delivery)
        self._costs.seed(engine.measured)
        for _ in range(3):
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
                delivery.give_back(fault, after=0)
            except DarkroomError as fault:
                self._wait_out(fault, delivery)
            except Returned:
                raise
            except Exception as fault:
                logger.exception("unexpected fault", message_id=message.message_id)
                delivery.give_back(Internal(f"unexpected fault: {type(fault).__name__}"))
        delivery.give_back(ServiceFault("the record keeps moving"))

    def _once(self, delivery: Delivery, engine: Engine) -> None:
        """One try: to a terminal record, or to a suspended task with a new message. Raises LostRace, Held and
        retryable faults.
        """
        message = delivery.message
        try:
            asked = self._claims.asked(message, engine.card)
        except InvalidRequest as fault:
            # Recorded under the message's own id and without a tenant: that cannot be anybody else's task.
            return self._claims.reject(Asked.unnamed(message), fault)
        except Finished as fault:
            return logger.info("nothing to do", message_id=message.message_id, fault=fault.message)
        try:
            self._draw(delivery, asked, engine)
        except Suspended as fault:
            if (attempt := delivery.attempt) is None:
                raise
            # A new message rather than this one returned, so that a task which is suspended often does not reach the
            # dead-letter queue. A crash before the send leaves this message; one after it two, of which one claims.
            self._queue.send(attempt.record.pointer(), trace=message.trace)
            logger.info("suspended", task_id=asked.task_id, reason=fault.message)
        except InvalidRequest as fault:
            self._claims.reject(asked, fault)
        except Conflict as fault:
            self._claims.reject(Asked.unnamed(message, asked.tenant), fault)
        except Finished as fault:
            logger.info("nothing to do", task_id=asked.task_id, fault=fault.message)
        except DarkroomError as fault:
            if delivery.attempt is not None and fault.own_fault:
                delivery.tries = delivery.attempt.record.tries
            raise
        return None

    def _draw(self, delivery: Delivery, asked: Asked, engine: Engine) -> None:
        """Claims the task, in a place of the engine's, and draws it."""
        message = delivery.message
        delivery.attempt = None
        with ExitStack() as slot:
            slot.callback(delivery.drawn)
            if (refused := self._take_place(delivery, engine, slot)) is not None:
                delivery.give_back(refused, after=0)
            began = time.perf_counter()
            admission = Admission(delivery, self._costs, engine.card, self._now())
            attempt = self._claims.claim(Admitted.of(asked, admission), message, engine, delivery.deadline)
            self._troubles = 0
            delivery.attempt, attempt.hidden = attempt, delivery.hidden
            record = attempt.record
            logger.thread_safe_append_keys(task_id=record.task_id, attempt=record.attempt)
            if record.request is not None:
                attempt.budget.know(self._costs, size_of(record.request), delivery.whole)
                if self._log_prompts:
                    request = record.request
                    logger.info("claimed", prompt=request.prompt, negative_prompt=request.negative_prompt)
            with self._tracer.attempt(attempt, message.trace), self._heartbeat.watching(attempt):
                if attempt.alone:
                    self._be_alone(delivery, attempt, engine, slot)
                self._runner.develop(attempt, engine, began, slot)

    def _take_place(
        self, delivery: Delivery, engine: Engine, slot: ExitStack, *, alone: bool = False
    ) -> DarkroomError | None:
        """Waits for a place of the engine's, for as long as a task could still be begun after that. Returns why none
        was taken, None if one was.
        """
        stops = Suspended("the worker stops")
        if self._stopping or delivery.hidden.returned:
            return stops
        seconds = delivery.left - RESERVE
        try:
            slot.enter_context(engine.slot(None if seconds == float("inf") else max(0.0, seconds), alone=alone))
        except TimeoutError:
            return ServiceFault(NO_PLACE)
        return stops if self._stopping or delivery.hidden.returned else None

    def _be_alone(self, delivery: Delivery, attempt: Attempt, engine: Engine, slot: ExitStack) -> None:
        """Leaves the place and takes all of them, or gives the task back."""
        logger.info("to be drawn alone", task_id=attempt.record.task_id)
        slot.close()
        if self._take_place(delivery, engine, slot, alone=True) is not None:
            fault = ServiceFault(NO_PLACE)  # no try
            attempt.release(fault)
            delivery.give_back(fault, after=0)

    def _wait_out(self, fault: DarkroomError, delivery: Delivery) -> NoReturn:
        """Gives the message back until the fault may have passed."""
        if not fault.own_fault:
            # Not by the receive count alone: it counts receipts while another attempt held the task as well, and one
            # hiccup after a few of these would cost the task minutes.
            self._troubles += 1
            delivery.tries = min(delivery.tries, self._troubles)
        delivery.give_back(fault)

    def _pass_by(self, held: Held, delivery: Delivery) -> None:
        self._troubles = 0  # its record was read
        message = delivery.message
        if held.message_id in {None, message.message_id}:
            delivery.give_back(held, after=(held.until - self._now()).total_seconds() + 1)
        # The holder's own message is in the queue until the task has ended, so this one is not needed.
        logger.info("a duplicate", message_id=message.message_id, held_by=held.message_id)

    def _stuck(self, attempt: Watched, seconds: float) -> None:
        """An attempt makes no more steps: it gets no more signs of life, and goes on elsewhere."""
        fault = WorkerBroken(f"no step for {seconds:.0f} seconds")
        self._broke(fault)
        attempt.release_now(fault)

    def _broke(self, fault: WorkerBroken) -> None:
        """Takes no more messages: their tasks would fail here as well."""
        if self.broken is None:
            self.broken = fault
            logger.critical("this worker is broken", fault=fault.message)
            self.on_broken()


def build(settings: Settings) -> Generate:
    """The handler on real S3 and SQS. The engine's modules are imported when the pipeline is first needed."""
    return Generate(settings, TaskStore(settings), TaskQueue(settings), load_engine)


def load_engine(settings: Settings) -> Engine:
    """Loads the pipeline and warms it up. Raises ModelUnavailable."""
    from ..engine.starting import start

    return start(settings, fetch_model)
