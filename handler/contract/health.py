"""What a worker tells of its model, for the light handlers to read, and the card that is baked into the image.

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
    """``model_status`` tells whether requests are taken; ``model`` is the card as JSON, None while unknown.

    ``measured`` is how fast its worker found the model to be (:class:`Measured`), ``host`` what that is.
    """

    model_status: str
    model: dict[str, Any] | None
    reason: str | None
    measured: dict[str, Any] | None
    host: str | None


@dataclass(frozen=True)
class Measured:
    """Seconds of one image's ``step``, and of all the ``other`` parts of an image, at so many ``pixels``."""

    step: float
    other: float
    pixels: int


def worker_host(settings: Settings) -> str | None:
    """What this process runs on, in the words of ``prices.json``; None where nothing tells."""
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
    """The object that a worker writes when its pipeline has loaded (``card``) or failed to (``reason``)."""
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
    """The card that was written next to the weights, where this host has them; None if it holds defaults alone."""
    file = Path(settings.model_source) / CARD_FILE
    try:
        card: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return card if {"id", "pipeline", "dtype", "parameters"} <= card.keys() else None
