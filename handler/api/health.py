"""What the API knows of the model: ``health/model.json``, else the model card that is baked into the image."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ..contract.health import Health, baked_card
from ..errors import ServiceFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.store import TaskStore
    from ..settings import Settings

READ_EVERY = timedelta(seconds=30)
BELIEVE_FAILURE = timedelta(minutes=5)
"""How long requests are refused after a failed load. Without a limit they would be refused for ever: without queued
tasks no worker starts, and without a worker nothing shows that the model loads again."""


class ModelHealth:
    """The model's health, read from S3 at most every 30 s. Plain JSON, so that the status handler needs no pydantic."""

    def __init__(self, store: TaskStore, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store, self._settings, self._now = store, settings, now
        self._read_at: datetime | None = None
        self._health: Health | None = None

    def current(self) -> Health:
        """The health as last read. Never raises: while S3 fails, requests are accepted."""
        now = self._now()
        if self._health is None or self._read_at is None or now - self._read_at >= READ_EVERY:
            self._health, self._read_at = self._read(now), now
        return self._health

    def _read(self, now: datetime) -> Health:
        try:
            health = self._store.read_health()
        except ServiceFault:
            health = None  # requests are accepted: if S3 still fails, so will the submission itself
        if health is None or health["model_id"] != self._settings.model_name:
            reason = "no worker has loaded this model yet; requests are taken and wait for one"
            return self._unknown(reason)
        failed_for = now - datetime.fromisoformat(health["at"])
        if health["model_status"] == "unavailable" and failed_for >= BELIEVE_FAILURE:
            reason = f"the last worker could not load it ({health['reason']}); requests are taken and wait for the next"
            return self._unknown(reason)
        return Health(
            model_status=health["model_status"],
            model=health["model"],
            reason=health["reason"],
            measured=health.get("measured"),  # None from a worker of an earlier version
            host=health.get("host"),
        )

    def _unknown(self, reason: str) -> Health:
        card = baked_card(self._settings)
        return Health(model_status="available", model=card, reason=reason, measured=None, host=None)
