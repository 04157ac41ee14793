"""The queue-triggered handler: from a message to images in S3 and a record that says ``completed``.

A message ends in one of three ways: consumed (its task is terminal, by this attempt or before it), back in the queue
after a delay (somebody else holds the task, or a passing fault), or, when this process dies, back by itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn

from aws_lambda_powertools.utilities.batch import AsyncBatchProcessor, EventType, async_process_partial_response

from . import tasks
from .attempt import Attempt, Heartbeat
from .errors import (
    Conflict,
    DarkroomError,
    Finished,
    Held,
    Internal,
    InvalidRequest,
    LostRace,
    ModelUnavailable,
    PipelineRefused,
    ServiceFault,
    Suspended,
)
from .logs import logger
from .pipeline import Pipeline
from .request import parse
from .settings import Settings
from .storage import TaskStore, image_key
from .taskqueue import Message, TaskQueue
from .world import new_id, new_seed, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

    from .engine import Developed, EncodedImage, Engine
    from .request import GenerationRequest

MOST_TASKS = 64
FIRST_DELAY, LONGEST_DELAY = 5, 900
"""Seconds after which a message comes back after a passing fault, doubled at each time."""


class Back(Exception):
    """The message goes back to the queue; when it will be seen again is already set."""


@dataclass
class _Clocked:
    """What a finished picture cost, in seconds."""

    encode: float
    upload: float
    total: float


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
        worker: str | None = None,
    ) -> None:
        self._settings, self._store, self._queue = settings, store, queue
        self._now, self._new_id, self._new_seed = now, new_id, new_seed
        self._worker = worker or f"{socket.gethostname()}-{os.getpid()}-{new_id()[:8]}"
        self._keep = timedelta(days=settings.retention_days)
        self._lease = timedelta(seconds=settings.lease)
        self._heartbeat = Heartbeat(settings.beat_every, min(settings.first_beat, settings.lease / 3))
        self._pipeline = Pipeline(settings, store, load, now)
        # Kept from one event to the next: OpenMP keeps memory for every thread that there ever was.
        self._threads = ThreadPoolExecutor(MOST_TASKS, thread_name_prefix="task")

    def engine(self) -> Engine:
        """The engine, loaded by the first caller. Raises ModelUnavailable."""
        return self._pipeline.engine()

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """Serves an SQS event's records side by side. Answers which messages go back (``batchItemFailures``)."""
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 if context else float("inf")

        async def serve(record: SQSRecord) -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._serve, _message(record), deadline)

        processor = AsyncBatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
        return dict(async_process_partial_response(event, serve, processor, context))

    def suspend(self) -> None:
        """The host is about to go: every running task is saved and put back into the queue."""
        self._heartbeat.suspend()

    def _serve(self, message: Message, deadline: float) -> None:
        try:
            engine = self.engine()
        except ModelUnavailable as fault:
            self._park(message)
            self._back(message, fault)
        for _ in range(3):
            try:
                self._once(message, engine, deadline)
                return
            except LostRace as lost:
                # Somebody moved the record: read it again and decide anew. Usually it is finished, or held.
                logger.info("the record moved", message_id=message.message_id, fault=lost.message)
            except Held as held:
                self._back(message, held, after=(held.until - self._now()).total_seconds() + 1)
            except ServiceFault as fault:
                self._back(message, fault)
            except Back:
                raise
            except Exception as fault:
                logger.exception("unexpected fault", message_id=message.message_id)
                self._back(message, Internal(f"unexpected fault: {type(fault).__name__}"))
        self._back(message, ServiceFault("the record keeps moving"))

    def _once(self, message: Message, engine: Engine, deadline: float) -> None:
        """One reading of the message, to a terminal record. Raises LostRace, Held, ServiceFault and Back."""
        parsed = parse(message.body, engine.card)
        task_id = parsed.task_id or message.message_id
        try:
            request = parsed.accept()
            with ExitStack() as place:
                place.enter_context(engine.place())
                began = time.perf_counter()
                attempt = self._claim(task_id, request, message, engine, deadline)
                with self._heartbeat.watching(attempt):
                    self._run(attempt, engine, message, began, place)
        except Suspended as fault:
            # A message of its own, not this one given back: a task that outlasts many hosts must not look like poison.
            # A crash before the send leaves this message; one after it makes two, and one claim.
            self._queue.send(request.message(task_id))
            logger.info("suspended", task_id=task_id, reason=fault.message)
        except InvalidRequest as fault:
            self._reject(task_id, fault, parsed.request)
        except Conflict as fault:
            self._reject(message.message_id, fault, None)
        except Finished as fault:
            logger.info("nothing to do", task_id=task_id, fault=fault.message)

    def _claim(
        self, task_id: str, request: GenerationRequest, message: Message, engine: Engine, deadline: float
    ) -> Attempt:
        """Raises Finished, Held, Conflict, or LostRace when another worker was faster."""
        now, card = self._now(), engine.card
        stored = self._store.read(task_id)
        if stored is None:
            record = tasks.create(task_id, request, self._new_seed(), _sent_at(message, now), self._keep)
        else:
            record = tasks.Record.from_json(stored.body)
            if record.request is None or record.fingerprint != request.fingerprint():
                raise Conflict(f"the task_id {task_id} names another request")
        claimed = tasks.claim(
            record,
            # Its own name for each claim: no two of them are the same bytes, so one of two at the same moment loses.
            owner=f"{self._worker}/{self._new_id()}",
            now=now,
            lease=self._lease,
            request=card.resolve(record.request or request),
            model=tasks.ModelRef(id=card.id, revision=card.revision, pipeline=card.pipeline, dtype=card.dtype),
        )
        if stored is None:
            self._store.index(record)
            stored = self._store.create(claimed)
        else:
            stored = self._store.change(stored, claimed)
        # A crash from here on leaves ``processing`` with a lease that runs out; the message comes back by itself.
        return Attempt(
            self._store,
            self._queue,
            self._settings,
            self._now,
            stored=stored,
            record=claimed,
            message=message,
            deadline=deadline,
        )

    def _run(self, attempt: Attempt, engine: Engine, message: Message, began: float, place: ExitStack) -> None:
        request = attempt.record.request
        if request is None:
            raise Internal("a claimed record has a request")
        try:
            developed = engine.develop(request, attempt, attempt.checkpoint())
            place.close()  # encoding and upload need no place: the next task starts meanwhile
            encoding = time.perf_counter()
            encoded = engine.encode(developed, request)
            uploading = time.perf_counter()
            images = [self._upload(attempt, index, image) for index, image in enumerate(encoded)]
            ended = time.perf_counter()
            clocked = _Clocked(encode=uploading - encoding, upload=ended - uploading, total=ended - began)
            cold = self._pipeline.take_cold_start()
            timings = self._timings(attempt.record, developed, clocked, engine.load_seconds if cold else 0.0)
            attempt.complete(images, timings, batch_size=developed.batch_size, cold_start=cold)
            logger.info("completed", task_id=attempt.record.task_id, seconds=timings.total)
        except LostRace:
            raise
        except Suspended as fault:
            logger.info("saved", task_id=attempt.record.task_id, bytes=attempt.save())
            attempt.release(fault)
            raise
        except DarkroomError as fault:
            self._give_up(attempt, fault, message)
        except (TypeError, ValueError) as fault:
            # A stock pipeline's own check of its arguments: no other try would end otherwise.
            logger.exception("the pipeline refused", task_id=attempt.record.task_id)
            self._give_up(attempt, PipelineRefused(f"the pipeline refused the request: {fault}"), message)
        except Exception as fault:
            logger.exception("the pipeline broke", task_id=attempt.record.task_id)
            self._give_up(attempt, Internal(f"the pipeline broke: {type(fault).__name__}: {fault}"), message)

    def _upload(self, attempt: Attempt, index: int, image: EncodedImage) -> tasks.Image:
        key = image_key(attempt.record.task_id, attempt.record.attempt, index, image.extension)
        self._store.put_image(key, image.body, image.content_type)
        return tasks.Image(
            key=key,
            seed=image.seed,
            width=image.width,
            height=image.height,
            content_type=image.content_type,
            bytes=len(image.body),
            sha256=sha256(image.body).hexdigest(),
        )

    def _timings(self, record: tasks.Record, developed: Developed, clocked: _Clocked, load: float) -> tasks.Timings:
        started = record.started_at or record.created_at
        waited = (started - record.created_at).total_seconds()
        seconds = {
            "queue": max(0.0, waited - load),
            "load": min(load, waited),
            "text": developed.text,
            "denoise": developed.denoise,
            "decode": developed.decode,
            "encode": clocked.encode,
            "upload": clocked.upload,
            "total": clocked.total,
        }
        return tasks.Timings(**{name: round(value, 4) for name, value in seconds.items()})

    def _give_up(self, attempt: Attempt, fault: DarkroomError, message: Message) -> None:
        """A permanent fault ends the task; a passing one gives task and message back."""
        task_id = attempt.record.task_id
        if not fault.retryable:
            attempt.fail(fault)
            logger.warning("failed", task_id=task_id, code=fault.code, fault=fault.message)
            return
        attempt.release(fault)
        self._back(message, fault)

    def _reject(self, task_id: str, fault: DarkroomError, request: GenerationRequest | None) -> None:
        """Writes a failed record where the sender looks for it: a new one, or the task's own where it waits for just
        this ``request`` (taken before the model was known, say). Another task's record is never touched.
        """
        logger.warning("refused", task_id=task_id, code=fault.code, fault=fault.message)
        stored = self._store.read(task_id)
        if stored is None:
            record = tasks.reject(task_id, fault, self._now(), self._keep)
            self._store.index(record)
            self._store.create(record)
            return
        record = tasks.Record.from_json(stored.body)
        if request is None or record.fingerprint != request.fingerprint() or record.status != "pending":
            logger.info("the refused message names a task of its own way", task_id=task_id, status=record.status)
            return
        self._store.change(stored, tasks.fail(record, now=self._now(), fault=fault))

    def _park(self, message: Message) -> None:
        """Without a model: the task gets a pending record, so that whoever asks for it learns that it waits."""
        parsed = parse(message.body)
        task_id = parsed.task_id or message.message_id
        try:
            if self._store.read(task_id) is None:
                sent_at = _sent_at(message, self._now())
                record = tasks.create(task_id, parsed.accept(), self._new_seed(), sent_at, self._keep)
                self._store.index(record)
                self._store.create(record)
        except (InvalidRequest, LostRace, ServiceFault) as fault:
            # The message comes back, and with it all of this.
            logger.info("not recorded yet", task_id=task_id, fault=fault.message)

    def _back(self, message: Message, fault: DarkroomError, after: float | None = None) -> NoReturn:
        """Gives the message back, after longer at each time unless ``after`` (seconds) is known."""
        received = int(message.attributes.get("ApproximateReceiveCount", 1))
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(received - 1, 10)) if after is None else after
        cause = str(fault.__cause__) if fault.__cause__ else None
        logger.info("back to the queue", message_id=message.message_id, fault=fault.message, cause=cause, seconds=delay)
        try:
            self._queue.hide(message.receipt_handle, delay)
        except ServiceFault as hidden:
            logger.warning("the message comes back at the queue's own time", fault=hidden.message)
        raise Back(fault.message) from fault


def _message(record: SQSRecord) -> Message:
    attributes = dict(record.attributes.raw_event)
    return Message(record.message_id, record.receipt_handle, record.body, attributes)


def _sent_at(message: Message, now: datetime) -> datetime:
    """When SQS took the message: the time a task without a record has waited counts from there."""
    sent = message.attributes.get("SentTimestamp", "")
    return min(now, datetime.fromtimestamp(int(sent) / 1000, UTC)) if sent.isdigit() else now


def build(settings: Settings) -> Generate:
    """The handler with its real surroundings; the engine's rooms are entered when the pipeline is first needed."""

    def load(settings: Settings) -> Engine:
        from .engine.running import start

        return start(settings)

    return Generate(settings, TaskStore(settings), TaskQueue(settings), load)


@cache
def _warm() -> Generate:
    settings = Settings.load()
    logger.setLevel(settings.log_level)
    return build(settings)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The Lambda handler, for SQS events; the pipeline is loaded once per warm process, on first use."""
    return _warm().handle(event, context)
