"""``health/model.json``, which a worker writes and the API reads, and the model card that is baked into an image.

Plain JSON, so that the status handler needs no pydantic.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from ..settings import Settings

CARD_FILE = "model_card.json"
ARCHITECTURES = {"aarch64": "arm64"}


class Health(TypedDict):
    """``model_status``: whether requests are accepted; ``model``: the card as JSON, None while unknown.

    ``measured``: the fields of :class:`Measured`; ``host``: what the worker that measured it runs on.
    """

    model_status: str
    model: dict[str, Any] | None
    reason: str | None
    measured: dict[str, Any] | None
    host: str | None


@dataclass(frozen=True)
class Measured:
    """A model's speed, at an image size of ``pixels``. ``step``: seconds per denoising step; ``other``: seconds of all
    else for one image.
    """

    step: float
    other: float
    pixels: int


def worker_host(settings: Settings) -> str | None:
    """What this process runs on, named as in ``prices.json``; None if it is unknown."""
    if memory := settings.aws_lambda_function_memory_size:
        machine = platform.machine()
        return f"Lambda {ARCHITECTURES.get(machine, machine)}, {memory} MB"
    return settings.worker_host or None


def report(
    settings: Settings,
    now: datetime,
    *,
    card: dict[str, Any] | None,
    reason: str | None,
    measured: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``health/model.json`` after the pipeline was loaded (``card``) or failed to load (``reason``)."""
    status = "available" if card is not None else "unavailable"
    return {
        "model_id": settings.model_name,
        "model_status": status,
        "model": card,
        "reason": reason,
        "measured": measured,
        "host": worker_host(settings),
        "at": now.astimezone(UTC).isoformat(),
    }


def baked_card(settings: Settings) -> dict[str, Any] | None:
    """The card next to the model's weights; None if there is none here, or if it has only defaults and limits."""
    file = Path(settings.model_source) / CARD_FILE
    try:
        card: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return card if {"id", "pipeline", "dtype", "parameters"} <= card.keys() else None
