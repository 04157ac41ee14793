"""A deployment's counts, as infra/template.yaml has them, and its durations, all divided by one factor.

So are the delays of a message that goes back, which the code has. What a process keeps of an invocation or of its grace
period to save and to release is not: S3 and a step take their time here as well.
"""

from __future__ import annotations

import re

from handler.work import delivery
from tests.infra.template import Template, read

FACTOR = 10
TEMPLATE = Template(read("template.yaml"))
QUEUE = TEMPLATE.resources()["Queue"]["Properties"]


def seconds(parameter: str) -> float:
    """A duration among the template's parameters, as it is by default."""
    return float(TEMPLATE.parameter(parameter)) / FACTOR


def doctor_every() -> float:
    """Seconds between two of the doctor's rounds."""
    rates = [re.search(r"rate\((\d+) minutes\)", str(one)) for one in TEMPLATE.resources().values()]
    (minutes,) = [int(found[1]) for found in rates if found]
    return minutes * 60 / FACTOR


LEASE = round(seconds("Lease"))
VISIBILITY = round(float(QUEUE["VisibilityTimeout"]) / FACTOR)
BATCH = int(TEMPLATE.parameter("BatchSize"))
MAX_RECEIVES = int(QUEUE["RedrivePolicy"]["maxReceiveCount"])
DOCTOR_EVERY = doctor_every()
VARIABLES = {
    "LEASE": str(LEASE),
    "BEAT_EVERY": str(seconds("BeatEvery")),
    "FIRST_BEAT": str(seconds("FirstBeat")),
    "STUCK_AFTER": str(seconds("StuckAfter")),
    "MAX_TRIES": TEMPLATE.parameter("MaxTries"),
}


def install() -> None:
    """In a process of the fleet."""
    delivery.FIRST_DELAY /= FACTOR
    delivery.LONGEST_DELAY /= FACTOR
