"""Runs an attempt to its end: draws, encodes, uploads and commits; or records the failure."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from ..contract.record import Record, Remark, Timings
from ..errors import DarkroomError, Internal, LostRace, PipelineRefused, Suspended, WorkerBroken
from ..logs import logger, new_log_id
from ..task import inputs
from ..task.budget import size_of
from .heap import own_heap

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ..aws.metrics import Metrics
    from ..engine import Developed, Engine
    from ..task.attempt import Attempt
    from ..task.budget import Costs
    from .lazy_engine import LazyEngine

DISK_GONE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class AttemptRunner:
    """Runs attempts. Adds what follows a task's last step to ``costs``."""

    def __init__(self, lazy: LazyEngine, metrics: Metrics, costs: Costs) -> None:
        self._lazy, self._metrics, self._costs = lazy, metrics, costs
        self._heap = own_heap()

    def develop(self, attempt: Attempt, engine: Engine, began: float, slot: ExitStack) -> None:
        """Returns once the record is terminal. Otherwise releases the task (back to pending) and raises the reason.

        ``began``: time.perf_counter at the attempt's start; ``slot`` holds the engine's slot and is closed as soon as
        the pipeline is done. Raises LostRace if another attempt has taken the task or it was cancelled, else one of
        the retryable Suspended, WorkerBroken, Internal, ServiceFault and TimedOut.
        """
        try:
            self._complete(attempt, engine, began, slot)
        except LostRace:
            self._metrics.wasted(attempt.unsaved)
            raise
        except Suspended as fault:
            _save(attempt)
            self._metrics.wasted(attempt.unsaved)
            attempt.release(fault)
            if not self._given_up(attempt):
                raise
        except DarkroomError as fault:
            self._end(attempt, fault)
        except (TypeError, ValueError) as fault:
            # The stock pipeline's own check of its arguments failed: another try would fail in the same way.
            self._end(attempt, PipelineRefused(_logged("the pipeline refused the request", fault, attempt)))
        except Exception as fault:
            self._end(attempt, _named(fault, attempt))
        finally:
            self._heap.attempt_ended()

    def _complete(self, attempt: Attempt, engine: Engine, began: float, slot: ExitStack) -> None:
        request = attempt.record.request
        if request is None:
            raise Internal("a claimed record has a request")
        image = inputs.bytes_of(attempt.record, attempt.input)
        attempt.saved.name = engine.checkpoint_name(request, image)
        checkpoint = attempt.saved.load()
        attempt.budget.begin()
        try:
            developed = engine.develop(request, attempt, checkpoint, image)
        finally:
            attempt.budget.end()
        slot.close()  # encoding and upload need no slot: the next task starts meanwhile
        encoding = time.perf_counter()
        encoded = engine.encode(developed, request)
        uploading = time.perf_counter()
        images = [attempt.upload(index, image) for index, image in enumerate(encoded)]
        ended = time.perf_counter()
        self._costs.learn("tail", size_of(request), developed.decode + ended - encoding)
        cold = self._lazy.take_cold_start()
        timings = _timings(
            attempt.record,
            developed,
            load=engine.load_seconds if cold else 0.0,
            encode=uploading - encoding,
            upload=ended - uploading,
            total=ended - began,
        )
        new = [Remark(field=field, message=message) for field, message in developed.warnings]
        warnings = [*attempt.record.warnings, *new]
        attempt.complete(images, timings, warnings=warnings, batch_size=developed.batch_size, cold_start=cold)
        self._metrics.completed(attempt.record, developed)
        logger.info("completed", task_id=attempt.record.task_id, seconds=timings.total)

    def _end(self, attempt: Attempt, fault: DarkroomError) -> None:
        """Fails the task for a permanent fault; for a retryable one releases it and raises the fault."""
        if not fault.retryable:
            attempt.fail(fault)
            self._metrics.failed(fault.code)
            logger.warning("failed", task_id=attempt.record.task_id, code=fault.code, fault=fault.message)
            return
        if isinstance(fault, WorkerBroken):
            _save(attempt)
        self._metrics.wasted(attempt.unsaved)
        attempt.release(fault)
        if not self._given_up(attempt):
            raise fault

    def _given_up(self, attempt: Attempt) -> bool:
        """Whether a released task was ended instead, because it is over its limits."""
        error = attempt.record.error
        if attempt.record.status == "pending" or error is None:
            return False
        self._metrics.failed(error.code)
        logger.error("given up", task_id=attempt.record.task_id, fault=error.message)
        return True


def _save(attempt: Attempt) -> None:
    """Writes a checkpoint. If that fails the task is released all the same, and its next attempt starts anew."""
    try:
        logger.info("saved", task_id=attempt.record.task_id, bytes=attempt.save())
    except Exception as fault:
        logger.warning("not saved", task_id=attempt.record.task_id, fault=f"{type(fault).__name__}: {fault}")


def _named(fault: Exception, attempt: Attempt) -> DarkroomError:
    text = _logged("the pipeline broke", fault, attempt)
    if isinstance(fault, OSError) and fault.errno in DISK_GONE:
        return WorkerBroken(f"the worker's disk: {fault.strerror}")
    return Internal(text)


def _logged(what: str, fault: Exception, attempt: Attempt) -> str:
    """Logs a library's fault; returns what the record says of it, which holds nothing of the library's text."""
    log_id = new_log_id()
    logger.error(what, id=log_id, task_id=attempt.record.task_id, exc_info=fault)
    return f"{what} ({type(fault).__name__}); the worker's log has the cause under id {log_id}"


def _timings(record: Record, developed: Developed, *, load: float, **clocked: float) -> Timings:
    started = record.started_at or record.created_at
    waited = (started - record.created_at).total_seconds()
    seconds = {
        "queue": max(0.0, waited - load),
        "load": min(load, waited),
        "text": developed.text,
        "denoise": developed.denoise,
        "decode": developed.decode,
        **clocked,
    }
    return Timings(**{name: round(value, 4) for name, value in seconds.items()})
