"""Before there is a bill: from images an hour and measured step times to workers, seconds and dollars.

Prices are list prices with a date, in ``prices.json``; another file of the same shape takes its place. Light: no AWS.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FieldError, InvalidRequest

PRICES = Path(__file__).parent / "prices.json"
MOST_BUSY = 0.8
"""Share of a worker's time that a plan fills: what arrives at random waits for ever where it is all of it."""
POLL_EVERY = 5.0
"""Seconds between two questions for a result."""
LIGHT_GB_SECONDS = 0.1
"""Of ``submit`` or ``status``, warm: 1 GB for a tenth of a second."""
PUTS, GETS, MESSAGES = 4, 2, 3
"""S3 and SQS requests of a short task that came over HTTP; `make bench ONLY=overhead` counts them."""


@dataclass(frozen=True)
class Speed:
    """What one image costs its worker, in seconds, with as many tasks side by side as it takes.

    ``step``: of one denoising step; ``other``: of text, decoding, encoding and upload together.
    """

    step: float
    other: float = 0.0

    def image_seconds(self, steps: int) -> float:
        return steps * self.step + self.other


@dataclass(frozen=True)
class Plan:
    """Dollars include what is around the worker: API, messages, records, polls."""

    host: str
    seconds: float
    workers: int
    dollars_an_hour: float
    dollars_a_thousand: float


def prices(file: Path = PRICES) -> dict[str, Any]:
    """Raises InvalidRequest where the file is none, or lacks a price."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        known = json.loads(PRICES.read_text())
    except (OSError, ValueError) as fault:
        raise InvalidRequest([FieldError(str(file), f"is no price file: {fault}")]) from fault
    if missing := sorted(known.keys() - {"sources"} - found.keys()):
        raise InvalidRequest([FieldError(str(file), f"lacks {name}") for name in missing])
    return found


def plans(rate: float, steps: int, speed: Speed, table: dict[str, Any], *, memory: int = 3008) -> list[Plan]:
    """One for each kind of host, for ``rate`` images an hour; ``memory`` in MB is the Lambda function's."""
    seconds = speed.image_seconds(steps)
    beside = overhead(seconds, table)
    made = []
    for name, price in table["lambda_gb_second"].items():
        # Billed by the millisecond while it draws: what nobody asks for costs nothing.
        image = seconds * memory / 1024 * price + table["lambda_request"] + beside
        made.append(Plan(f"Lambda {name}, {memory} MB", seconds, _busy(rate, seconds), rate * image, 1000 * image))
    for name, hour in table["hosts"].items():
        # Billed while it is there: the rest of the last worker's hour is paid as well.
        workers = _busy(rate, seconds)
        cost = workers * hour + rate * beside
        made.append(Plan(name, seconds, workers, cost, 1000 * cost / rate))
    return made


def _busy(rate: float, seconds: float) -> int:
    return max(1, math.ceil(rate * seconds / 3600 / MOST_BUSY))


def overhead(seconds: float, table: dict[str, Any]) -> float:
    """Dollars of a task's way to its worker and back, each question for the result included."""
    polls = 1 + math.ceil(seconds / POLL_EVERY)
    light = table["lambda_request"] + LIGHT_GB_SECONDS * table["lambda_gb_second"]["x86_64"]
    calls = (1 + polls) * (table["api_request"] + light) + polls * table["s3_get"]
    return float(calls + PUTS * table["s3_put"] + GETS * table["s3_get"] + MESSAGES * table["sqs_request"])


def speed_of(result: dict[str, Any]) -> tuple[Speed, int]:
    """The speed that a completed task shows, and its steps. Raises InvalidRequest where there is none.

    ``result`` is what ``darkroom status --json`` prints. Its seconds are shared by the tasks of its batch.
    """
    try:
        times, request = result["timings"], result["request"]
        steps = int(request["num_inference_steps"] * (request.get("strength") or 1))
        images = int(request["num_images"]) * max(1, int(result["batch_size"] or 1))
        step = times["denoise"] / steps / images
        other = (times["text"] + times["decode"] + times["encode"] + times["upload"]) / int(request["num_images"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as fault:
        raise InvalidRequest([FieldError("result", "is not that of a completed task")]) from fault
    return Speed(step, other), steps
