"""Random histories of Darkroom's own classes over S3 and SQS in memory: ``python -m tests.chaos.histories --seed 1``.

Each is drawn from a seed of its own, which is all that is needed to see it again. The last line is JSON. The first
history that breaks a promise ends it: its events are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from handler.logs import logger

from .stepped import ORDERS
from .world import BODIES, DAY, INVOCATION, LEASE, NAMES, SKEW, SKEWS, WORKERS, World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.memory import Trouble

TROUBLES: tuple[Trouble, ...] = (*("none",) * 8, "before", "after")
WAITS = (1, 5, 30, LEASE + 1, LEASE + 1, 600, 1_000, 7_200, DAY)
EVENTS = {
    "goes_on": 40,
    "delivers": 10,
    "invokes": 6,
    "submits": 6,
    "waits": 8,
    "sends": 4,
    "dies": 4,
    "buries": 3,
    "looks": 2,
    "cancels": 1,
    "redrives": 2,
    "loses": 2,
}
"""Each with how often it is drawn."""


def happen(world: World, draw: random.Random) -> None:
    """One event."""
    (event,) = draw.choices(list(EVENTS), list(EVENTS.values()))
    pick = draw.randrange(50)
    if event == "goes_on":
        world.goes_on(pick, draw.choice((1, 1, 2, 4, 30)), draw.choice(TROUBLES), draw.choice(ORDERS))
    elif event == "delivers":
        world.delivers(draw.randrange(WORKERS), pick, twice=draw.random() < 0.1)
    elif event == "invokes":
        world.invokes(pick, draw.choice((1, 1, 2)), draw.choice(INVOCATION))
    elif event == "submits":
        world.submits(draw.choice(NAMES), draw.choice(BODIES))
    elif event == "sends":
        world.sends(draw.choice((*NAMES, None)), draw.choice((*BODIES, {"prompt": ""})))
    elif event in {"cancels", "redrives"}:
        getattr(world, event)(draw.choice(NAMES))
    elif event == "waits":
        world.waits(draw.choice(WAITS))
    elif event == "looks":
        world.looks()
    else:
        getattr(world, event)(pick)


def history(world: World, seed: int, skew: float = SKEW) -> list[str]:
    """Returns what was wrong with the history of this seed, in which two clocks differ by ``skew`` seconds at most."""
    draw = random.Random(seed)
    world.begin(tuple(draw.choice((0.0, skew / 2, skew)) for _ in range(SKEWS)))
    try:
        for life in range(draw.choice((1, 1, 2))):
            if life:
                world.redrives(None)  # what is over once may begin again
            for _ in range(draw.randrange(20, 80)):
                happen(world, draw)
            world.settle()
    except Exception as fault:
        world.ledger.wrong.append(f"{type(fault).__name__}: {fault}")
    world.end()
    return world.ledger.wrong


def run(world: World, seeds: Iterable[int], skew: float = SKEW) -> tuple[Counter[str], int | None]:
    """Counts of all that happened, and the first seed whose history broke a promise; it ends there."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        wrong = history(world, seed, skew)
        records = world.records()
        ended = {name: world.ledger.counts[name] for name in ("completed", "failed", "cancelled", "writes")}
        counts.update(histories=1, events=len(world.events), tasks=len(records), **ended)
        counts.update(sends=sum(record.sends for record in records))
        if wrong:
            return counts, seed
    return counts, None


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--count", type=int, default=2_000, help="histories")
    asked.add_argument("--seed", type=int, default=1, help="of the first one; the others follow")
    asked.add_argument("--minutes", type=float, default=60.0, help="after which no other one is begun")
    asked.add_argument("--skew", type=float, default=SKEW, help="seconds by which workers' clocks differ at most")
    asked.add_argument("--verbose", action="store_true", help="prints the events of every history")
    given = asked.parse_args()
    began = time.monotonic()

    def seeds() -> Iterable[int]:
        for seed in range(given.seed, given.seed + given.count):
            if time.monotonic() - began > given.minutes * 60:
                return
            yield seed

    logger.setLevel("CRITICAL")  # the faults are part of the histories
    world = World()
    counts, failed = run(world, seeds(), given.skew)
    if failed is not None or given.verbose:
        print("\n".join(world.events))
    for wrong in world.ledger.wrong:
        print(f"WRONG {wrong}")
    print(json.dumps({**counts, "seconds": round(time.monotonic() - began, 1), "failed_seed": failed}))
    return int(failed is not None)


if __name__ == "__main__":
    sys.exit(main())
