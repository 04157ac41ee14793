"""Darkroom's worker against other servers, each drawing the same tasks with the same model on this machine.

The others: the tutorial's server as it is and with a lock around its pipeline, LitServe and BentoML at their best
batching settings. Half of the tasks arrive at once, the others evenly over five seconds; each asks for other steps,
guidance, prompt and seed. Latencies count from a task's arrival to its picture. A picture is wrong when it differs
from the one that a sequential loop draws with the same type. Images a second, p50 and p99 are of right pictures only.

``TASKS=8`` takes fewer tasks; ``JSON=1`` prints one JSON object a line in place of the table.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from .hosting import Unavailable, end_on_sigterm
from .judging import Right, draw_right, is_right
from .lineup import BENTOML, DARKROOM, LITSERVE, LOCKED, SERVERS, warmed_up
from .load import Load, Task
from .mix import draw_lots
from .report import print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .load import Outcome

PEERS = (LITSERVE, BENTOML)
TASKS, ARRIVALS = 48, 5.0


def arrivals(count: int) -> list[float]:
    """Seconds from the start: half of them at once, the others evenly."""
    early = count - count // 2
    return [0.0] * early + [ARRIVALS * (at + 1) / (count - early) for at in range(count - early)]


@dataclass(frozen=True)
class Figures:
    """What one server did: right pictures a second, seconds of latency; None where no picture was right."""

    ran: bool = False
    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    failed: int = 0
    wrong: int = 0
    note: str = ""


def measure(name: str, tasks: Sequence[Task], right: dict[str, Right]) -> Figures:
    """Starts the server, warms it up, drives the tasks through it and stops it."""
    print(f"measuring {name}", file=sys.stderr)
    try:
        with warmed_up(name) as client:
            began, outcomes = Load(client, tasks).run()
    except Unavailable as fault:
        return Figures(note=str(fault))
    return judge(began, outcomes, tasks, right[SERVERS[name][0]])


def judge(began: float, outcomes: Sequence[Outcome], tasks: Sequence[Task], right: Right) -> Figures:
    latencies, wrong = [], 0
    for outcome, task, picture in zip(outcomes, tasks, right.pictures, strict=True):
        if outcome.picture and not is_right(outcome.picture, picture):
            wrong += 1
        elif outcome.picture:
            latencies.append((outcome.finished - began - task.due, outcome.finished))
    faults = [outcome.fault for outcome in outcomes if not outcome.picture]
    note = f"e.g. {faults[0][:70]}" if faults else ""
    if not latencies:
        return Figures(ran=True, failed=len(faults), wrong=wrong, note=note)
    waited = [latency for latency, _ in latencies]
    rate = len(latencies) / (max(finished for _, finished in latencies) - began)
    p50, p99 = np.percentile(waited, [50, 99])
    return Figures(True, rate, float(p50), float(p99), len(faults), wrong, note)


def of_darkroom(figures: dict[str, Figures], name: str, measure: str) -> float | None:
    """The server's figure divided by Darkroom's."""
    mine, other = getattr(figures[DARKROOM], measure), getattr(figures[name], measure)
    return other / mine if mine and other else None


def targets(figures: dict[str, Figures]) -> list[tuple[str, str, float | None, str]]:
    """What is claimed: Darkroom's figure divided by another server's, that server, the ratio, the target."""
    peers = [name for name in PEERS if figures[name].rate]
    best = max(peers, key=lambda name: figures[name].rate or 0.0, default=PEERS[0])
    claims = [("images/s", "rate", LOCKED, "at least 5"), ("p99", "p99", LOCKED, "at most 0.2")]
    claims.append(("images/s", "rate", best, "at least 2.2"))
    ratios = [(what, name, of_darkroom(figures, name, measure), target) for what, measure, name, target in claims]
    return [(what, name, ratio and 1 / ratio, target) for what, name, ratio, target in ratios]


def as_table(figures: dict[str, Figures], right: dict[str, Right], count: int) -> None:
    columns = ("server", "images/s", "p50 s", "p99 s", "failed", "wrong", "images/s", "p99")
    title = f"servers: {count} tasks; the second images/s and p99 are divided by Darkroom's"
    loops = [f"{count / one.seconds:.2f} in {one.dtype}" for one in right.values()]
    table = Table(*columns, title=title, caption=f"a sequential loop, images/s: {', '.join(loops)}")
    for name, one in figures.items():
        values = [one.rate, one.p50, one.p99]
        ratios = [of_darkroom(figures, name, measure) for measure in ("rate", "p99")]
        ran = [str(one.failed), str(one.wrong)] if one.ran else ["-", "-"]
        table.add_row(name, *map(_short, values), *ran, *map(_short, ratios))
    console = Console()
    console.print(table)
    for name, one in figures.items():
        if one.note:
            console.print(f"{name}: {one.note}", highlight=False, markup=False)
    for what, name, ratio, target in targets(figures):
        console.print(f"{DARKROOM} to {name}, {what}: {_short(ratio)} times; wanted {target}")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_json(figures: dict[str, Figures], right: dict[str, Right], count: int) -> None:
    """``against`` is the server that Darkroom's figure was divided by; empty for a plain figure. Null: not measured."""
    units = {"rate": "images/s", "p50": "s", "p99": "s", "failed": "tasks", "wrong": "tasks"}
    lines: list[tuple[str, float | None, str, str]] = []
    for name, one in figures.items():
        values = {field: getattr(one, field) if one.ran else None for field in units}
        lines += [(f"{name}: {field}", values[field], unit, "") for field, unit in units.items()]
    lines += [(f"sequential loop, {one.dtype}: rate", count / one.seconds, "images/s", "") for one in right.values()]
    lines += [(what, ratio, "times", name) for what, name, ratio, _ in targets(figures)]
    for measured, value, unit, against in lines:
        print_line("servers", measured, value, unit, against)


def main() -> None:
    """Prints what each server did, and Darkroom's figures against theirs."""
    end_on_sigterm()
    count = int(os.environ.get("TASKS", TASKS))
    busy = os.getloadavg()[0]
    tasks = draw_lots(arrivals(count))
    right = {dtype: draw_right(tasks, dtype) for dtype in ("fast", "float32")}
    figures = {name: measure(name, tasks, right) for name in SERVERS}
    if os.environ.get("JSON") == "1":
        as_json(figures, right, count)
    else:
        as_table(figures, right, count)
        print(f"load average of the machine before: {busy:.1f}")
