"""What workers tell of their model, for the light handlers to read, and the card that is baked into the image.

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
CARD_NEEDS = {"id": str, "pipeline": str, "dtype": str, "parameters": list}
"""What no model card lacks."""
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

    @classmethod
    def read(cls, measured: object) -> Measured | None:
        """From a report's JSON, whatever else it tells; None where it does not tell this."""
        if not isinstance(measured, dict):
            return None
        step, other, pixels = (measured.get(name) for name in ("step", "other", "pixels"))
        if not isinstance(step, int | float) or not isinstance(other, int | float):
            return None
        return cls(step, other, pixels) if isinstance(pixels, int) and pixels > 0 else None


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
    """The object that a worker writes when its pipeline has loaded (``card``) or failed to (``reason``).

    Callers are shown the reason: it names no path, host or key, nor what a library said.
    """
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


def cannot_load(log_id: str | None = None) -> str:
    """Why the model is not available, as callers are told; the log has the cause, under ``log_id``."""
    return f"cannot load the model; the worker's log has the cause{f' under id {log_id}' if log_id else ''}"


def looks_like_card(card: object) -> bool:
    """Whether there is anything to be read in what should be a model card. Reading it whole takes pydantic."""
    return isinstance(card, dict) and all(isinstance(card.get(name), kind) for name, kind in CARD_NEEDS.items())


def card_beside(model: Path) -> Path:
    """The card's file: in the model's folder, or beside a single file that is a model, under its name."""
    return model.with_name(f"{model.stem}.{CARD_FILE}") if model.is_file() else model / CARD_FILE


def baked_card(settings: Settings) -> dict[str, Any] | None:
    """The card next to the model's weights; None if there is none here, or if it has only defaults and limits."""
    try:
        card: dict[str, Any] = json.loads(card_beside(Path(settings.model_source)).read_text())
    except (OSError, ValueError):
        return None
    return card if looks_like_card(card) else None
