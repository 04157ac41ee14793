"""``POST /generate?dry_run=1``: estimates a request's seconds and dollars. Makes no AWS calls.

A worker measures its pipeline when it has loaded it and publishes the result in ``health/available.json``. Here that is
scaled to the request's steps, size and number of images. The estimate assumes a warm worker with no other tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.health import Measured
from .pricing import host_hour, overhead, prices

if TYPE_CHECKING:
    from ..contract.card import ModelCard
    from ..contract.health import Health
    from ..contract.request import GenerationRequest
    from ..settings import Settings


def quote(request: GenerationRequest, card: ModelCard | None, health: Health, settings: Settings) -> dict[str, Any]:
    """A QuoteResponse as JSON data, for a ``request`` whose defaults the card has filled in."""
    seconds, basis = _seconds(request, health)
    dollars, priced = _dollars(seconds, health["host"])
    return {
        "request": request.model_dump(mode="json"),
        "model": card.id if card else settings.model_name,
        "images": request.num_images,
        "seconds": seconds and round(seconds, 4),
        "dollars": dollars and round(dollars, 8),
        "basis": f"{basis}; {priced}" if priced else basis,
    }


def _seconds(request: GenerationRequest, health: Health) -> tuple[float | None, str]:
    measured = Measured.read(health["measured"])
    if measured is None:
        return None, "no worker has measured this model yet"
    if not (request.steps and request.width and request.height):
        return None, "the model's own steps or size, or the input image's, are not known here"
    scale = request.width * request.height / measured.pixels
    one = (request.steps * measured.step + measured.other) * scale
    basis = (
        f"{measured.step:.3g} s a step and {measured.other:.3g} s beside, measured by the worker that loaded the model"
    )
    return request.num_images * one, basis if scale == 1 else f"{basis}, times {scale:.3g} for the size"


def _dollars(seconds: float | None, host: str | None) -> tuple[float | None, str]:
    if seconds is None:
        return None, ""
    table = prices()
    if host is None:
        return None, "what the worker runs on is not known (WORKER_HOST), and so not its price"
    source = f"{host} at list prices of {table['date']}, {table['region']}"
    kind, _, memory = host.removeprefix("Lambda ").removesuffix(" MB").partition(", ")
    if host.startswith("Lambda ") and kind in table["lambda_gb_second"]:
        drawing = seconds * int(memory) / 1024 * table["lambda_gb_second"][kind] + table["lambda_request"]
    elif host in table["hosts"]:
        drawing = seconds * host_hour(host, table) / 3600
        source += ", of an hour that is used in full"
    else:
        return None, f"{host} has no price here"
    return drawing + overhead(seconds, table), source
