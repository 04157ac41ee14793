"""The engine of this process: loaded once, on first use. The outcome is reported under ``health/``."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..aws.metrics import Metrics
from ..contract.health import cannot_load, report
from ..errors import ModelUnavailable
from ..logs import logger, new_log_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.store import TaskStore
    from ..engine import Engine
    from ..settings import Settings

RELOAD_AFTER = 10.0
"""Seconds for which a failed load is remembered, so that the messages of one batch do not each try again."""
LOAD_LIMIT = 1800.0
"""Seconds after which a load counts as hung: a download that stands still, a driver that never answers."""
RENEW_EVERY = 60.0
"""Seconds between two reports of a worker that its model is loaded."""


class LazyEngine:
    """Thread-safe: the first caller loads the engine, the others wait for it."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        load: Callable[[Settings], Engine],
        now: Callable[[], datetime],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._store, self._load, self._now = settings, store, load, now
        self._monotonic, self._metrics = monotonic, Metrics(settings)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._fault: ModelUnavailable | None = None
        self._failed_at = 0.0
        self._began: float | None = None
        self._reported_at = 0.0
        self._cold = True

    def engine(self) -> Engine:
        """Raises ModelUnavailable. A failed load is logged once and tried again after RELOAD_AFTER seconds."""
        with self._lock:
            engine = self._engine or self._loaded()
        self.renew()
        return engine

    @property
    def hangs(self) -> bool:
        """Whether a load has gone on for too long. It cannot be interrupted, and whoever needs the engine waits."""
        began = self._began
        return began is not None and self._monotonic() - began > LOAD_LIMIT

    def _loaded(self) -> Engine:
        if self._fault is not None and self._monotonic() - self._failed_at < RELOAD_AFTER:
            raise self._fault
        self._began = self._monotonic()
        try:
            self._engine = engine = self._load(self._settings)
        except Exception as fault:
            log_id = new_log_id()
            self._fault, self._failed_at = ModelUnavailable(cannot_load(log_id)), self._monotonic()
            known = isinstance(fault, ModelUnavailable)
            logger.critical(
                "the model cannot be loaded",
                id=log_id,
                model=self._settings.model_name,
                fault=str(fault) if known else f"{type(fault).__name__}: {fault}",
                cause=repr(fault.__cause__) if fault.__cause__ else None,
                exc_info=None if known else fault,
            )
            self._metrics.unloadable()
            self._report(reason=self._fault.message)
            raise self._fault from fault
        finally:
            self._began = None
        seconds = round(engine.load_seconds, 3)
        logger.info("the pipeline is loaded", model=self._settings.model_name, seconds=seconds)
        self._reported_at = self._monotonic()
        self._report_loaded(engine)
        return engine

    def renew(self) -> None:
        """Reports again that the model is loaded, at most once in RENEW_EVERY seconds. Never raises, nor waits for a
        load.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            engine, now = self._engine, self._monotonic()
            if engine is None or now - self._reported_at < RENEW_EVERY:
                return
            self._reported_at = now  # also if it fails: S3 in trouble must not slow every message
        finally:
            self._lock.release()
        self._report_loaded(engine)

    def take_cold_start(self) -> bool:
        """True at the first call and False later: the first task is the one that waited for the load."""
        with self._lock:
            cold, self._cold = self._cold, False
        return cold

    def _report_loaded(self, engine: Engine) -> None:
        measured = engine.measured
        self._report(card=engine.card.model_dump(mode="json"), measured=asdict(measured) if measured else None)

    def _report(
        self, *, card: dict[str, Any] | None = None, reason: str | None = None, measured: dict[str, Any] | None = None
    ) -> None:
        """Writes what the API reads. Whatever goes wrong is logged and stops no task."""
        try:
            self._store.write_health(report(self._settings, self._now(), card=card, reason=reason, measured=measured))
        except Exception as fault:
            logger.warning("the model's health was not written", fault=str(fault))
