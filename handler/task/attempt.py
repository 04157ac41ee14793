"""An attempt at a task, from the claim to the commit: turns the engine's callbacks into writes of the record."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ..contract.record import Image, Progress, Record, Timings
from ..contract.statuses import TERMINAL
from ..errors import DarkroomError, LostRace, ServiceFault, Suspended, WorkerBroken
from ..logs import logger
from . import limits, moves
from .budget import Budget
from .heartbeat import Hidden, Sign
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

BROKE = "its worker broke: "
"""How the record tells of an attempt that ended with its worker."""
NO_PLACE = "no place was free before the deadline"
"""How it tells of one that ended before it drew anything."""


class Attempt:
    """One attempt: the engine's Observer, and what the heartbeat calls.

    Made of four parts: ``hold`` (the record and its lease), ``budget`` (time), ``saved`` (checkpoints), ``hidden`` (the
    message).
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
        self._limits = limits.Limits.of(settings)
        self._store, self._now = store, now
        self.input = upload
        self.hold = Hold(store, stored, record, now)
        self.hidden = Hidden(queue, message, settings.lease)
        self.budget = Budget(deadline, self._seconds_left(record), step_limit=settings.step_limit)
        self.saved = SavedSteps(store, record.task_id, may_exist=record.attempt > 1)
        self._lease = timedelta(seconds=settings.lease)
        self._previews, self._save_every = settings.previews, settings.checkpoint_every
        self._preview: str | None = None
        self._troubled: set[str] = set()
        self._stop: DarkroomError | None = None
        self._began_at: int | None = None
        self._step = 0
        self._progress: Progress | None = None
        self._running: Running | None = None

    def _seconds_left(self, record: Record) -> float:
        return self._limits.seconds - record.spent_seconds if self._limits.seconds else float("inf")

    @property
    def _done(self) -> limits.Done:
        return limits.Done(self.budget.spent, self.saved.step)

    @property
    def record(self) -> Record:
        return self.hold.record

    @property
    def unsaved(self) -> int:
        """Steps that this attempt computed and that no checkpoint holds."""
        return max(0, self._step - max(self.saved.step, self._began_at or 0))

    @property
    def alone(self) -> bool:
        """Whether the task has to be drawn alone, so that it takes no neighbours with it: its last two attempts that
        drew were not heard of again, or ended with their workers.
        """
        drew = [past for past in self.record.attempts if past.message != NO_PLACE]
        return len(drew) > 1 and all(
            past.outcome == "expired" or (past.message or "").startswith(BROKE) for past in drew[-2:]
        )

    def begins(self, running: Running) -> None:
        self._running = running
        self.budget.text_is_done()

    def at_step(self, step: int, steps: int) -> None:
        """Called before each step. Raises LostRace once the task is no longer this attempt's, Suspended when it must go
        on elsewhere, TimedOut when not even one step fits into the invocation.
        """
        self._step = step
        if self._began_at is None:
            self._began_at = step
        self._check_held()
        eta = self.budget.admit(step, steps)
        self._progress = Progress(step=step, steps=steps, fraction=step / steps, eta_seconds=eta)

    def all_drawn(self, steps: int) -> None:
        """Called before the decode. Raises LostRace and Suspended as ``at_step`` does, the latter with all steps to
        save; TimedOut where no invocation is long enough for what follows.
        """
        self._step = steps
        if self._began_at is None:
            self._began_at = steps
        self._check_held()
        self.budget.admit_tail()

    def _check_held(self) -> None:
        if self._stop is not None:
            raise self._stop
        if self.hold.lapsed:
            raise LostRace("the lease ran out while S3 could not be reached")

    def suspend_by(self, finish_by: float) -> None:
        """Suspends the task before its next step unless it will be done by ``finish_by`` (time.monotonic)."""
        self.budget.suspend_by(finish_by)

    @property
    def signs(self) -> tuple[Sign, ...]:
        """A preview and a checkpoint apart from the sign of life: what fails or hangs there costs no lease."""
        previews = (Sign(self.show),) if self._previews else ()
        saves = (Sign(self.keep, self._save_every),) if self._save_every else ()
        return (Sign(self.beat), *previews, *saves)

    def stuck(self) -> float | None:
        """Seconds without a step, once these are too many."""
        return self.budget.stuck()

    def beat(self) -> None:
        """A sign of life: renews the lease and writes progress. Never raises."""
        if not self._is_on:
            return
        try:
            self.hold.move(
                lambda record: moves.beat(
                    record,
                    now=self._now(),
                    lease=self._lease,
                    progress=self._progress,
                    preview=self._preview,
                    done=self._done,
                )
            )
        except LostRace as lost:
            self._stop = self._stop or lost
        except ServiceFault as fault:
            logger.warning("a heartbeat failed; the next may not", task_id=self.record.task_id, fault=str(fault))
        except Exception:
            # Raised, it would end the heartbeat's thread, and every attempt would lose its lease.
            logger.exception("a heartbeat broke", task_id=self.record.task_id)

    def keep(self) -> None:
        """Writes a checkpoint, if a step has been made since the last one, and tells of it. Never raises.

        A crash between the two leaves a checkpoint that the next attempt finds; but this one's counts as a try.
        """
        if not self._is_on or not self.unsaved:
            return
        self._contained("a checkpoint", self.save)
        if self.saved.step > self.record.saved_step:
            self.beat()

    def show(self) -> None:
        """Writes the preview, which the next sign of life names. Never raises."""
        if self._is_on:
            self._contained("a preview", self._put_preview)

    @property
    def _is_on(self) -> bool:
        return not self.hold.ended and self._stop is None

    def _contained(self, what: str, write: Callable[[], object]) -> None:
        """Runs ``write``. A fault is logged, once for each attempt."""
        try:
            write()
        except Exception as fault:
            if what not in self._troubled:
                self._troubled.add(what)
                logger.warning(
                    f"{what} was not written",
                    task_id=self.record.task_id,
                    fault=f"{type(fault).__name__}: {fault}",
                )

    def save(self) -> int:
        """Writes the checkpoint; returns its size in bytes, 0 if there is nothing to save. Raises ServiceFault."""
        if self.hold.ended:
            return 0  # released in the middle of a step: by now the checkpoint may be the next attempt's
        return self.saved.save(self._running, self._step)

    def upload(self, index: int, image: EncodedImage) -> Image:
        """Uploads an image, unless it is unsafe. No record names it yet: after a crash here the doctor deletes it."""
        key = ""
        if not image.unsafe:
            key = self._store.image_key(self.record.task_id, self.record.attempt, index, image.extension)
            self._store.put_image(key, image.body, image.content_type)
        return Image(
            key=key,
            seed=image.seed,
            width=image.width,
            height=image.height,
            content_type=image.content_type,
            bytes=len(image.body),
            sha256=sha256(image.body).hexdigest() if key else "",
            unsafe=image.unsafe,
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
        self._give_back(fault)

    def _give_back(self, fault: DarkroomError, *, resent: bool = True) -> None:
        self.hold.move(lambda record: self._released(record, fault, resent=resent))
        if self.record.status in TERMINAL:
            self._store.close(self.record.task_id, left=True)

    def _released(self, record: Record, fault: DarkroomError, *, resent: bool) -> Record:
        now = self._now()
        if isinstance(fault, WorkerBroken):
            fault = WorkerBroken(BROKE + fault.message)
        free = moves.release(record, now=now, fault=fault, done=self._done, resent=resent)
        end = limits.over(free, self._limits, now)
        return moves.exhaust(free, now=now, fault=end).model_copy(update={"sequence": free.sequence}) if end else free

    def _close(self) -> None:
        """The task has ended. One of several attempts, or with a checkpoint or a preview, may have left something
        behind: it stays listed, and the doctor clears up after a day.
        """
        self.saved.clear()
        left = self.record.attempt != 1 or self.saved.may_exist or bool(self._preview)
        self._store.close(self.record.task_id, left=left)

    def release_now(self, fault: DarkroomError | None = None) -> None:
        """Checkpoints and releases the task in the middle of a step, and makes its message visible. Never raises.

        ``fault``: why; that the worker stops, if None.
        """
        task_id = self.record.task_id
        if not self._is_on:
            return
        self._stop = stop = fault or Suspended("the worker stops")
        try:
            self.save()
        except Exception as unsaved:
            logger.warning("not saved", task_id=task_id, fault=str(unsaved))
        try:
            # The message that it came with goes on: no other one is sent.
            self._give_back(stop, resent=False)
            # After a crash before this line the message becomes visible when its timeout ends.
            self.hidden.show(0)
            logger.info("released in the middle of a step", task_id=task_id)
        except DarkroomError as held:
            logger.warning("not released: the lease has to run out", task_id=task_id, fault=held.message)

    def _put_preview(self) -> None:
        """Writes the current preview, if there is one."""
        body = self._running.preview() if self._running else b""
        if body:
            key = self._store.preview_key(self.record.task_id)
            self._store.put_image(key, body, "image/jpeg")
            self._preview = key
