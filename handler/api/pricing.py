"""Cost estimates: from images per hour and measured step times to workers, seconds and dollars.

``prices.json`` holds dated list prices; another file of the same shape can replace it. Makes no AWS calls.
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
"""The most of a worker's time that a plan uses: near 1, requests that arrive at random would queue without end."""
POLL_EVERY = 5.0
"""Seconds between two polls for a result, as assumed here."""
START, END = 420.0, 420.0
"""Seconds for which a GPU host is paid and draws nothing, once a burst: from its order to its first picture, as the
simulation of scaling assumes, and after its last one at most, with gpu.yaml's defaults: the queue's metrics are up to
three minutes late, the alarm wants three of them, and the host outlives its worker by ``IdleSeconds``.
``tests/infra/test_scaling.py`` holds both against the template."""
LIGHT_GB_SECONDS = 0.1
"""GB-seconds of one warm call of ``submit`` or ``status``: 1 GB for a tenth of a second."""
PUTS, GETS, MESSAGES = 6, 1, 3
"""S3 and SQS requests of a short task that came over HTTP; `make bench ONLY=overhead` counts them."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a worker's time for one image, at full batches.

    ``step``: seconds per denoising step; ``other``: of text encoding, decoding, encoding and upload together.
    """

    step: float
    other: float = 0.0

    def image_seconds(self, steps: int) -> float:
        return steps * self.step + self.other


@dataclass(frozen=True)
class Plan:
    """What one kind of host would cost. Dollars include the API, SQS and S3 requests and the polls.

    ``seconds``: of a worker's time for one image; ``dollars_a_thousand``: for 1,000 images. ``tail_dollars_a_day``: on
    top, for what hosts that come and go with each burst are paid without drawing.
    """

    host: str
    seconds: float
    workers: int
    dollars_an_hour: float
    dollars_a_thousand: float
    tail_dollars_a_day: float = 0.0


def prices(file: Path = PRICES) -> dict[str, Any]:
    """The price table in ``file``. Raises InvalidRequest if it cannot be read or lacks a price."""
    try:
        table: dict[str, Any] = json.loads(file.read_text())
        known = json.loads(PRICES.read_text())
    except (OSError, ValueError) as fault:
        raise InvalidRequest([FieldError(str(file), f"is no price file: {fault}")]) from fault
    if missing := sorted(known.keys() - {"sources"} - table.keys()):
        raise InvalidRequest([FieldError(str(file), f"lacks {name}") for name in missing])
    return table


def plans(
    rate: float, steps: int, speed: Speed, table: dict[str, Any], *, memory: int = 3008, bursts: int = 0
) -> list[Plan]:
    """A plan for each kind of host, for ``rate`` images per hour.

    ``memory``: MB of the Lambda function; ``bursts``: how often a day all workers come and go, 0 where they stay.
    """
    seconds = speed.image_seconds(steps)
    beside = overhead(seconds, table)
    made = []
    for name, price in table["lambda_gb_second"].items():
        # Billed by the millisecond of use: idle time costs nothing.
        image = seconds * memory / 1024 * price + table["lambda_request"] + beside
        made.append(Plan(f"Lambda {name}, {memory} MB", seconds, _busy(rate, seconds), rate * image, 1000 * image))
    for name in table["hosts"]:
        # Billed while it runs: idle time costs the same.
        hour = host_hour(name, table)
        workers = _busy(rate, seconds)
        cost = workers * hour + rate * beside
        tails = bursts * workers * hour * (START + END) / 3600
        made.append(Plan(name, seconds, workers, cost, 1000 * cost / rate, tails))
    return made


def host_hour(name: str, table: dict[str, Any]) -> float:
    """Dollars an hour of a GPU host with what AWS takes for managing it, which is a part of its price on demand."""
    hosts = table["hosts"]
    return float(hosts[name] + table["managed_fee"] * hosts.get(name.removesuffix(" spot"), hosts[name]))


def _busy(rate: float, seconds: float) -> int:
    return max(1, math.ceil(rate * seconds / 3600 / MOST_BUSY))


def overhead(seconds: float, table: dict[str, Any]) -> float:
    """Dollars of everything but the worker for one task that takes ``seconds``: API, SQS and S3 requests, polls."""
    polls = 1 + math.ceil(seconds / POLL_EVERY)
    light = table["lambda_request"] + LIGHT_GB_SECONDS * table["lambda_gb_second"]["x86_64"]
    calls = (1 + polls) * (table["api_request"] + light) + polls * table["s3_get"]
    return float(calls + PUTS * table["s3_put"] + GETS * table["s3_get"] + MESSAGES * table["sqs_request"])


def speed_of(result: dict[str, Any]) -> tuple[Speed, int]:
    """The speed measured by a completed task, and its number of steps. Raises InvalidRequest for any other result.

    ``result``: as ``darkroom status --json`` prints it. Its denoising seconds are divided among the tasks of its batch.
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
