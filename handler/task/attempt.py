"""An attempt at a task, from the claim to the commit mark: what the engine tells, and what the record is told."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ..contract.record import Image, Progress, Record, Timings
from ..errors import DarkroomError, LostRace, ServiceFault, Suspended
from ..logs import logger
from . import moves
from .budget import Budget
from .hold import Hold
from .saved import SavedSteps

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.queue import Message, TaskQueue
    from ..aws.s3 import Stored
    from ..aws.store import TaskStore, Upload
    from ..engine import EncodedImage, Running
    from ..settings import Settings


class Attempt:
    """Implements the engine's Observer, and what the heartbeat asks for.

    Three things in one: the hold on the record, the budget of time, the steps that are saved.
    """

    def __init__(
        self,
        store: TaskStore,
        queue: TaskQueue,
        settings: Settings,
        now: Callable[[], datetime],
        *,
        stored: Stored,
        record: Record,
        message: Message,
        deadline: float = float("inf"),
        upload: Upload | None = None,
    ) -> None:
        self._store, self._queue, self._now, self._message = store, queue, now, message
        self.input = upload
        self.hold = Hold(store, stored, record, now)
        self.budget = Budget(deadline)
        self.saved = SavedSteps(store, record.task_id, may_exist=record.attempt > 1, every=settings.checkpoint_every)
        self._lease = timedelta(seconds=settings.lease)
        self._previews = settings.previews
        self._hidden_at = now()
        self._stop: DarkroomError | None = None
        self._began_at: int | None = None
        self._step = 0
        self._progress: Progress | None = None
        self._running: Running | None = None

    @property
    def record(self) -> Record:
        return self.hold.record

    @property
    def unsaved(self) -> int:
        """Steps that this attempt computed and no checkpoint holds."""
        return max(0, self._step - max(self.saved.step, self._began_at or 0))

    def begins(self, running: Running) -> None:
        self._running = running

    def at_step(self, step: int, steps: int) -> None:
        """Before each step. Raises LostRace once the task is no longer this attempt's, Suspended when it has to stop
        for its host's sake, TimedOut when not one step fits.
        """
        self._step = step
        if self._began_at is None:
            self._began_at = step
        if self._stop is not None:
            raise self._stop
        if self.hold.lapsed:
            raise LostRace("the lease ran out while S3 could not be reached")
        eta = self.budget.admit(step, steps)
        self._progress = Progress(step=step, steps=steps, fraction=step / steps, eta_seconds=eta)

    def suspend_by(self, finish_by: float) -> None:
        """Stops the task before its next step, to go on elsewhere, unless it will be done by then (time.monotonic)."""
        self.budget.suspend_by(finish_by)

    def beat(self) -> None:
        """Writes a sign of life: lease, progress and, in time, a checkpoint. Never raises."""
        if self.hold.ended or self._stop is not None:
            return
        try:
            preview = self._put_preview()
            self.hold.move(
                lambda record: moves.beat(
                    record, now=self._now(), lease=self._lease, progress=self._progress, preview=preview
                )
            )
            if self.saved.due:
                self.save()
        except LostRace as lost:
            self._stop = self._stop or lost
        except ServiceFault as fault:
            logger.warning("a sign of life failed; the next may not", task_id=self.record.task_id, fault=str(fault))
        except Exception:
            # Without its thread every attempt would lose its lease.
            logger.exception("a sign of life broke", task_id=self.record.task_id)

    def extend_visibility(self) -> None:
        """Keeps the message from others for another lease, in time. Apart from ``beat``: SQS may be slow on its own."""
        if self._now() - self._hidden_at < self._lease / 3:
            return
        try:
            self._queue.change_visibility(self._message.receipt_handle, self._lease.total_seconds())
            self._hidden_at = self._now()
        except ServiceFault as fault:
            logger.warning("the message may come back early", task_id=self.record.task_id, fault=str(fault))

    def save(self) -> int:
        """Writes the checkpoint; returns the number of bytes, 0 where there is nothing to keep."""
        return self.saved.save(self._running, self._step)

    def upload(self, index: int, image: EncodedImage) -> Image:
        """Writes an image that no record names yet: a crash after it leaves it to the doctor."""
        key = self._store.image_key(self.record.task_id, self.record.attempt, index, image.extension)
        self._store.put_image(key, image.body, image.content_type)
        return Image(
            key=key,
            seed=image.seed,
            width=image.width,
            height=image.height,
            content_type=image.content_type,
            bytes=len(image.body),
            sha256=sha256(image.body).hexdigest(),
        )

    def complete(self, images: list[Image], timings: Timings, **run: Any) -> None:
        """The commit mark. A crash before it leaves images that no record names, and the task to the next attempt."""
        self.hold.move(lambda record: moves.complete(record, now=self._now(), images=images, timings=timings, **run))
        self.saved.clear()

    def fail(self, fault: DarkroomError) -> None:
        """Ends the task for good."""
        self.hold.move(lambda record: moves.fail(record, now=self._now(), fault=fault))
        self.saved.clear()

    def release(self, fault: DarkroomError) -> None:
        """Gives the task back. Should this fail too, the lease runs out and the next attempt takes it."""
        self.hold.move(lambda record: moves.release(record, now=self._now(), fault=fault))

    def release_now(self) -> None:
        """Saves and gives back what cannot be waited for, in the middle of a step. Never raises."""
        task_id = self.record.task_id
        if self._stop is not None or self.hold.ended:
            return
        self._stop = stop = Suspended("the worker stops")
        try:
            self.save()
        except Exception as fault:
            logger.warning("not saved", task_id=task_id, fault=str(fault))
        try:
            self.release(stop)
            # A crash before this leaves the message to the queue's own time.
            self._queue.change_visibility(self._message.receipt_handle, 0)
            logger.info("released in the middle of a step", task_id=task_id)
        except DarkroomError as fault:
            logger.warning("not released: the lease has to run out", task_id=task_id, fault=fault.message)

    def _put_preview(self) -> str | None:
        """Writes the preview of this moment, where one is wanted and there is one; returns its key."""
        body = self._running.preview() if self._previews and self._running else b""
        if not body:
            return None
        key = self._store.preview_key(self.record.task_id)
        self._store.put_image(key, body, "image/jpeg")
        return key
