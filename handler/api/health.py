"""What the light handlers know of the model: what its workers report, else the card baked in next to the weights."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..contract.health import Health, Measured, baked_card, cannot_load, looks_like_card
from ..errors import ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.store import HealthReport, TaskStore
    from ..contract.card import ModelCard
    from ..settings import Settings

READ_EVERY = timedelta(seconds=30)
BELIEVE_SUCCESS = timedelta(minutes=3)
"""How long a report that the model is loaded outweighs a failed load. Workers renew theirs while they draw."""
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

    def look_again(self) -> None:
        """Somebody knows that it has changed: the next question reads it."""
        self._read_at = None

    def _read(self, now: datetime) -> Health:
        """The fleet's health: one worker that cannot load the model shuts no door that others keep open.

        Of two reports S3's clock tells which is the later one, never a worker's.
        """
        try:
            reports = self._store.read_reports()
        except ServiceFault:
            reports = []  # the door stays open: what S3 cannot say now, the submission itself will find out
        own = [one for one in reports if one.body.get("model_id") == self._settings.model_name]
        loaded = next((one for one in own if one.body.get("model_status") == "available"), None)
        failed = next((one for one in own if one.body.get("model_status") == "unavailable"), None)
        if failed is None or (loaded is not None and failed.at - loaded.at <= BELIEVE_SUCCESS):
            return self._available(loaded, "no worker has loaded this model yet; requests are taken and wait for one")
        why = _reason(failed)
        # S3's time against the reader's clock: obstore does not tell the reply's Date. For five minutes it will do.
        if now - failed.at < BELIEVE_FAILURE:
            return _health("unavailable", why, host=failed.body.get("host"))
        reason = f"the last worker could not load it ({why}); requests are taken and wait for the next"
        return self._available(loaded, reason, doubted=True)

    def _available(self, loaded: HealthReport | None, reason: str, *, doubted: bool = False) -> Health:
        """What ``loaded`` says; without it, or if others failed after it (``doubted``), with the reason for doubts."""
        if loaded is None:
            return _health("available", reason, baked_card(self._settings))
        card = loaded.body.get("model")
        if not looks_like_card(card):
            logger.warning("the model's card cannot be read", card=card)
            card = baked_card(self._settings)
            reason, doubted = "what the worker tells of the model cannot be read here; requests are taken", True
        measured = Measured.read(loaded.body.get("measured"))  # None from a worker of an earlier version
        return _health("available", reason if doubted else None, card, measured, loaded.body.get("host"))


def expected(request: dict[str, Any], card: dict[str, Any] | None) -> dict[str, Any]:
    """A waiting task's request with the card's defaults for what it leaves out, as ``ModelCard.resolve`` will fill them
    in when it is claimed. Without pydantic.
    """
    defaults = dict((card or {}).get("defaults") or {})
    if request.get("image") is None:
        defaults.pop("strength", None)
    elif request.get("width") is None and request.get("height") is None:
        defaults = {name: value for name, value in defaults.items() if name not in {"width", "height"}}
    taken = (card or {}).get("parameters") or ()
    missing = {name: value for name, value in defaults.items() if name in taken and request.get(name) is None}
    return request | missing


def card_of(health: Health) -> ModelCard | None:
    """The model's card as it is checked against; None while unknown, and with a log line if it cannot be read."""
    from pydantic import ValidationError

    from ..contract.card import ModelCard

    if health["model"] is None:
        return None
    try:
        return ModelCard.model_validate(health["model"])
    except ValidationError as fault:
        logger.warning("the model's card cannot be read", fault=str(fault))
        return None


def _reason(failed: HealthReport) -> str:
    """Why the model could not be loaded. Version 0.1.0 wrote there what a library said, which is not for callers."""
    reason = failed.body.get("reason")
    return reason if isinstance(reason, str) and not failed.old else cannot_load()


def _health(
    status: str,
    reason: str | None,
    card: dict[str, Any] | None = None,
    measured: Measured | None = None,
    host: object = None,
) -> Health:
    return Health(
        model_status=status,
        model=card,
        reason=reason,
        measured=asdict(measured) if measured else None,
        host=host if isinstance(host, str) else None,
    )
