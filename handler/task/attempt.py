"""An attempt at a task, from the claim to the commit: turns the engine's callbacks into writes of the record."""

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
    """One attempt: the engine's Observer, and what the heartbeat calls.

    Made of three parts: ``hold`` (the record and its lease), ``budget`` (time), ``saved`` (checkpoints).
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
        self._limits = moves.Limits.of(settings)
        self._store, self._queue, self._now, self._message = store, queue, now, message
        self.input = upload
        self.hold = Hold(store, stored, record, now)
        self.budget = Budget(deadline, self._seconds_left(record))
        self.saved = SavedSteps(store, record.task_id, may_exist=record.attempt > 1, every=settings.checkpoint_every)
        self._lease = timedelta(seconds=settings.lease)
        self._previews = settings.previews
        self._previewed = False
        self._hidden_at = now()
        self._stop: DarkroomError | None = None
        self._began_at: int | None = None
        self._step = 0
        self._progress: Progress | None = None
        self._running: Running | None = None

    def _seconds_left(self, record: Record) -> float:
        return self._limits.seconds - record.spent_seconds if self._limits.seconds else float("inf")

    @property
    def _done(self) -> moves.Done:
        return moves.Done(self.budget.spent, self.saved.step)

    @property
    def record(self) -> Record:
        return self.hold.record

    @property
    def unsaved(self) -> int:
        """Steps that this attempt computed and that no checkpoint holds."""
        return max(0, self._step - max(self.saved.step, self._began_at or 0))

    def begins(self, running: Running) -> None:
        self._running = running

    def at_step(self, step: int, steps: int) -> None:
        """Called before each step. Raises LostRace once the task is no longer this attempt's, Suspended when it must go
        on elsewhere, TimedOut when not even one step fits into the invocation.
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
        """Suspends the task before its next step unless it will be done by ``finish_by`` (time.monotonic)."""
        self.budget.suspend_by(finish_by)

    def beat(self) -> None:
        """Heartbeat: renews the lease, writes progress and preview, and a checkpoint when due. Never raises."""
        if self.hold.ended or self._stop is not None:
            return
        try:
            preview = self._put_preview()
            self.hold.move(
                lambda record: moves.beat(
                    record,
                    now=self._now(),
                    lease=self._lease,
                    progress=self._progress,
                    preview=preview,
                    done=self._done,
                )
            )
            if self.saved.due:
                self.save()
        except LostRace as lost:
            self._stop = self._stop or lost
        except ServiceFault as fault:
            logger.warning("a heartbeat failed; the next may not", task_id=self.record.task_id, fault=str(fault))
        except Exception:
            # Raised, it would end the heartbeat's thread, and every attempt would lose its lease.
            logger.exception("a heartbeat broke", task_id=self.record.task_id)

    def extend_visibility(self) -> None:
        """Extends the message's visibility timeout by a lease once a third of the last one has passed.

        Apart from ``beat``, so that a slow SQS delays no write to S3. A ServiceFault is logged, not raised.
        """
        if self._now() - self._hidden_at < self._lease / 3:
            return
        try:
            self._queue.change_visibility(self._message.receipt_handle, self._lease.total_seconds())
            self._hidden_at = self._now()
        except ServiceFault as fault:
            logger.warning("the message may come back early", task_id=self.record.task_id, fault=str(fault))

    def save(self) -> int:
        """Writes the checkpoint; returns its size in bytes, 0 if there is nothing to save. Raises ServiceFault."""
        return self.saved.save(self._running, self._step)

    def upload(self, index: int, image: EncodedImage) -> Image:
        """Uploads an image. No record names it yet: after a crash here the doctor deletes it."""
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
        """Commits: writes ``completed``. A crash before it leaves images that no record names, and the task to the next
        attempt.
        """
        self.hold.move(
            lambda record: moves.complete(
                record, now=self._now(), images=images, timings=timings, done=self._done, **run
            )
        )
        self._close()

    def fail(self, fault: DarkroomError) -> None:
        """Writes ``failed``."""
        self.hold.move(lambda record: moves.fail(record, now=self._now(), fault=fault, done=self._done))
        self._close()

    def release(self, fault: DarkroomError) -> None:
        """Writes ``pending`` again; or the task's end, if it is over its limits by now.

        If this fails too, the lease runs out and the next attempt claims the task.
        """
        self.hold.move(lambda record: self._released(record, fault))

    def _released(self, record: Record, fault: DarkroomError, *, resent: bool = True) -> Record:
        now = self._now()
        free = moves.release(record, now=now, fault=fault, done=self._done, resent=resent)
        end = moves.over(free, self._limits, now)
        return moves.exhaust(free, now=now, fault=end).model_copy(update={"sequence": free.sequence}) if end else free

    def _close(self) -> None:
        """The task has ended. One of several attempts, or with a checkpoint or a preview, may have left something
        behind: it stays listed, and the doctor clears up after a day.
        """
        self.saved.clear()
        if self.record.attempt == 1 and not self.saved.may_exist and not self._previewed:
            self._store.close(self.record.task_id)

    def release_now(self) -> None:
        """Checkpoints and releases the task in the middle of a step, and makes its message visible. Never raises."""
        task_id = self.record.task_id
        if self._stop is not None or self.hold.ended:
            return
        self._stop = stop = Suspended("the worker stops")
        try:
            self.save()
        except Exception as fault:
            logger.warning("not saved", task_id=task_id, fault=str(fault))
        try:
            # The message that it came with goes on: no other one is sent.
            self.hold.move(lambda record: self._released(record, stop, resent=False))
            # After a crash before this line the message becomes visible when its timeout ends.
            self._queue.change_visibility(self._message.receipt_handle, 0)
            logger.info("released in the middle of a step", task_id=task_id)
        except DarkroomError as fault:
            logger.warning("not released: the lease has to run out", task_id=task_id, fault=fault.message)

    def _put_preview(self) -> str | None:
        """Writes the current preview, with ``PREVIEWS=1``; returns its key, or None if there is none."""
        body = self._running.preview() if self._previews and self._running else b""
        if not body:
            return None
        self._previewed = True
        key = self._store.preview_key(self.record.task_id)
        self._store.put_image(key, body, "image/jpeg")
        return key
