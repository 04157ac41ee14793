"""Attempt: one worker's hold on a task, from the claim to the commit mark."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from . import tasks
from .errors import DarkroomError, LostRace, ServiceFault, Suspended, TimedOut
from .logs import logger
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from .engine import EncodedImage, Running
    from .s3 import Stored
    from .settings import Settings
    from .storage import TaskStore, Upload
    from .taskqueue import Message, TaskQueue

RESERVE = 5.0
"""Seconds before a deadline that are kept for saving a checkpoint and giving the task back."""
TAIL = 1.0
"""Seconds for what follows the last step (decoding, encoding, upload), until a task of this process has shown it."""


class Attempt:
    """Holds the record as last written. Every move goes through ``If-Match``, so an attempt that was superseded or
    cancelled meets a LostRace, writes nothing more and stops its pipeline at the next step.
    """

    def __init__(
        self,
        store: TaskStore,
        queue: TaskQueue,
        settings: Settings,
        now: Callable[[], datetime],
        *,
        stored: Stored,
        record: tasks.Record,
        message: Message,
        deadline: float = float("inf"),
        upload: Upload | None = None,
    ) -> None:
        self._store, self._queue, self._now, self._message = store, queue, now, message
        self._stored, self.record, self.input = stored, record, upload
        self._lease = timedelta(seconds=settings.lease)
        self._checkpoint_every = settings.checkpoint_every
        self._deadline = deadline
        self._lock = threading.Lock()
        self._stop: DarkroomError | None = None
        self._finish_by: float | None = None
        self.tail = TAIL
        self._step = self._saved_step = 0
        self._hidden_at = now()
        self._saved_at = time.monotonic()
        self._progress: tasks.Progress | None = None
        self._pace: Pace | None = None
        self._running: Running | None = None
        self._previews = settings.previews
        # An earlier attempt may have left one; from the first save of our own on there is one for certain.
        self._may_have_checkpoint = record.attempt > 1

    def begins(self, running: Running) -> None:
        self._running = running

    def at_step(self, step: int, steps: int) -> None:
        """The engine's observer. Raises LostRace once the task is no longer this attempt's, Suspended when it has to
        stop for its host's sake.
        """
        self._step = step
        if self._stop is not None:
            raise self._stop
        lease = self.record.lease
        if lease is not None and lease.expires_at <= self._now():
            # Signs of life failed for a whole lease: another worker may already have the task.
            raise LostRace("the lease ran out while S3 could not be reached")
        if self._pace is None:
            self._pace, self._saved_step = Pace(step), step
        seconds = self._pace.step_seconds(step)
        if time.monotonic() + seconds + RESERVE > self._deadline:
            if step == self._pace.first:
                # Going on elsewhere without a step done could go on for ever: this way the queue counts.
                raise TimedOut("not one step fits into what is left of this invocation")
            raise Suspended("the next step does not fit into this invocation")
        measured = step > self._pace.first
        left = seconds * (steps - step) + self.tail
        if self._finish_by is not None and (not measured or time.monotonic() + left > self._finish_by):
            raise Suspended("the worker stops")
        eta = left if measured else None
        self._progress = tasks.Progress(step=step, steps=steps, fraction=step / steps, eta_seconds=eta)

    def wind_up(self, finish_by: float) -> None:
        """Stops the task before its next step, to go on elsewhere, unless it will be done by then (time.monotonic)."""
        self._finish_by = finish_by

    def abandon(self) -> None:
        """Saves and gives back what cannot be waited for, in the middle of a step. Never raises."""
        task_id = self.record.task_id
        with self._lock:
            if self._stop is not None or self.record.lease is None:
                return
            self._stop = Suspended("the worker stops")
            try:
                self.save()
            except Exception as fault:
                logger.warning("not saved", task_id=task_id, fault=str(fault))
            try:
                self._write(tasks.release(self.record, now=self._now(), fault=self._stop))
                # A crash before this leaves the message to the queue's own time.
                self._queue.hide(self._message.receipt_handle, 0)
                logger.info("abandoned", task_id=task_id)
            except DarkroomError as fault:
                logger.warning("not given back: the lease has to run out", task_id=task_id, fault=fault.message)

    @property
    def unsaved(self) -> int:
        """Steps that this attempt computed and no checkpoint holds."""
        return max(0, self._step - self._saved_step)

    def checkpoint(self) -> bytes:
        """What an earlier attempt left behind; costs a request only where there was one."""
        return self._store.read_checkpoint(self.record.task_id) if self._may_have_checkpoint else b""

    def save(self) -> int:
        """Writes the checkpoint; returns the number of bytes, 0 where there is nothing to keep."""
        body = self._running.snapshot() if self._running else b""
        if body:
            self._may_have_checkpoint = True
            step = self._step
            self._store.put_checkpoint(self.record.task_id, body)
            self._saved_step = step
        return len(body)

    def beat(self) -> None:
        """Writes a sign of life: lease, progress and, in time, a checkpoint. Never raises."""
        with self._lock:
            if self.record.lease is None or self._stop is not None:
                return
            try:
                alive = tasks.beat(
                    self.record, now=self._now(), lease=self._lease, progress=self._progress, preview=self._shown()
                )
                self._write(alive)
                if self._checkpoint_every and time.monotonic() - self._saved_at >= self._checkpoint_every:
                    self.save()
                    self._saved_at = time.monotonic()
            except LostRace as lost:
                self._stop = lost
            except ServiceFault as fault:
                logger.warning("a sign of life failed; the next may not", task_id=self.record.task_id, fault=str(fault))
            except Exception:
                # Without its thread every attempt would lose its lease.
                logger.exception("a sign of life broke", task_id=self.record.task_id)

    def _shown(self) -> str | None:
        """Writes the preview of this moment, where one is wanted and there is one; returns its key."""
        body = self._running.preview() if self._previews and self._running else b""
        if not body:
            return None
        key = self._store.preview_key(self.record.task_id)
        self._store.put_image(key, body, "image/jpeg")
        return key

    def keep_hidden(self) -> None:
        """Keeps the message from others for another lease, in time. Apart from ``beat``: SQS may be slow on its own."""
        if self._now() - self._hidden_at < self._lease / 3:
            return
        try:
            self._queue.hide(self._message.receipt_handle, self._lease.total_seconds())
            self._hidden_at = self._now()
        except ServiceFault as fault:
            logger.warning("the message may come back early", task_id=self.record.task_id, fault=str(fault))

    def upload(self, index: int, image: EncodedImage) -> tasks.Image:
        """Writes an image that no record names yet: a crash after it leaves it to the doctor."""
        key = self._store.image_key(self.record.task_id, self.record.attempt, index, image.extension)
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

    def complete(self, images: list[tasks.Image], timings: tasks.Timings, **run: Any) -> None:
        """The commit mark. A crash before it leaves images that no record names, and the task to the next attempt."""
        with self._lock:
            moved = tasks.complete(self.record, now=self._now(), images=images, timings=timings, **run)
            self._write(moved)
        self._clear()

    def fail(self, fault: DarkroomError) -> None:
        with self._lock:
            self._write(tasks.fail(self.record, now=self._now(), fault=fault))
        self._clear()

    def release(self, fault: DarkroomError) -> None:
        """Gives the task back. Should this fail too, the lease runs out and the next attempt takes it."""
        with self._lock:
            self._write(tasks.release(self.record, now=self._now(), fault=fault))

    def _write(self, record: tasks.Record) -> None:
        try:
            self._stored = self._store.change(self._stored, record)
        except LostRace:
            # An earlier write of ours may have been done although its answer said otherwise: then the task is still
            # this attempt's, and only the ETag is not the one that we know.
            there = self._store.read(self.record.task_id)
            found = tasks.Record.from_json(there.body) if there else None
            if there is None or found is None or not self._is_ours(found):
                raise
            record = record.model_copy(update={"sequence": found.sequence + 1})
            self._stored = self._store.change(there, record)
        self.record = record

    def _is_ours(self, found: tasks.Record) -> bool:
        """Owners' names are never used twice."""
        ours = self.record.lease
        return ours is not None and found.lease is not None and found.lease.owner == ours.owner

    def _clear(self) -> None:
        """The task has ended: its checkpoint goes. A failure leaves it to the bucket's lifecycle rule."""
        if not self._may_have_checkpoint:
            return
        try:
            self._store.delete_checkpoint(self.record.task_id)
        except ServiceFault as fault:
            logger.warning("a checkpoint was left behind", task_id=self.record.task_id, fault=fault.message)
