"""The engine of this process: loaded once, on first use. The outcome is published in ``health/model.json``."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..contract.health import report
from ..errors import ModelUnavailable, ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.store import TaskStore
    from ..engine import Engine
    from ..settings import Settings

RELOAD_AFTER = 10.0
"""Seconds for which a failed load is remembered, so that the messages of one batch do not each try again."""


class LazyEngine:
    """Thread-safe: the first caller loads the engine, the others wait for it."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        load: Callable[[Settings], Engine],
        now: Callable[[], datetime],
    ) -> None:
        self._settings, self._store, self._load, self._now = settings, store, load, now
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._fault: ModelUnavailable | None = None
        self._failed_at = 0.0
        self._cold = True

    def engine(self) -> Engine:
        """Raises ModelUnavailable. A failed load is logged once and tried again after RELOAD_AFTER seconds."""
        with self._lock:
            if self._engine is not None:
                return self._engine
            if self._fault is not None and time.monotonic() - self._failed_at < RELOAD_AFTER:
                raise self._fault
            try:
                self._engine = self._load(self._settings)
            except Exception as fault:
                known = isinstance(fault, ModelUnavailable)
                reason = fault.message if isinstance(fault, ModelUnavailable) else f"{type(fault).__name__}: {fault}"
                self._fault, self._failed_at = ModelUnavailable(reason), time.monotonic()
                logger.error(
                    "the model cannot be loaded",
                    model=self._settings.model_name,
                    fault=reason,
                    exc_info=None if known else fault,
                )
                self._publish(reason=reason)
                raise self._fault from fault
            seconds = round(self._engine.load_seconds, 3)
            logger.info("the pipeline is loaded", model=self._settings.model_name, seconds=seconds)
            measured = self._engine.measured
            self._publish(
                card=self._engine.card.model_dump(mode="json"), measured=asdict(measured) if measured else None
            )
            return self._engine

    def take_cold_start(self) -> bool:
        """True at the first call and False later: the first task is the one that waited for the load."""
        with self._lock:
            cold, self._cold = self._cold, False
        return cold

    def _publish(
        self, *, card: dict[str, Any] | None = None, reason: str | None = None, measured: dict[str, Any] | None = None
    ) -> None:
        """Writes ``health/model.json``, which the API reads. A failure to write it is logged and stops no task."""
        try:
            self._store.write_health(report(self._settings, self._now(), card=card, reason=reason, measured=measured))
        except ServiceFault as fault:
            logger.warning("the model's health was not written", fault=fault.message)
