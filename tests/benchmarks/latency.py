"""How long a picture takes under load: Darkroom's worker, the tutorial's server with a lock around its pipeline (the
loop behind a queue), LitServe.

Tasks arrive by a seeded Poisson process at 50, 80 and 95 % of Darkroom's capacity, so that all servers get the same
tasks at the same times; a server of less capacity falls behind, and is shown as overloaded. The capacity is measured
first: the tasks come twice over at once, and the middle half of the pictures counts, drawn while the server is full.
Some tasks, of other steps, guidance, prompts and seeds, come round again and again: no server keeps their pictures.

Latencies count from the time a task was due to its picture. A task without a right picture counts as if it waited
until ``GRACE`` seconds after the last arrival; a percentile that hangs on such a task is a bound, told by ``>``.

The second table: a small task that comes when a server has begun on four large ones, against the same task alone. Each
large one has another guidance, so that no peer draws them in one call.

``SECONDS=5`` ends the arrivals sooner, ``TASKS=8`` takes fewer different tasks (and measures the capacity roughly),
``ROUNDS=1`` fewer rounds of the small task; ``JSON=1`` prints one JSON object a line in place of the tables.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.table import Table

from .hosting import Unavailable, end_on_sigterm
from .judging import draw_right, is_right
from .lineup import DARKROOM, LITSERVE, LOCKED, SERVERS, warmed_up
from .load import LIMIT, Load, Task
from .mix import draw_lots
from .report import figure, print_line, wide_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from .load import Client, Outcome

COMPARED = (DARKROOM, LOCKED, LITSERVE)
SHARES = (50, 80, 95)
SECONDS, TASKS, ROUNDS, GRACE, SEED = 40.0, 48, 3, 15.0, 42
LARGE = tuple(
    Task(0.0, f"a {thing}", 50, guidance, seed)
    for seed, (thing, guidance) in enumerate((("cat", 4.0), ("lemon", 5.5), ("owl", 7.5), ("rose", 9.0)))
)
SMALL = Task(0.25, "a fox", 8, 4.0, 7)
"""Due when the large ones have been begun."""


def arrivals(rate: float, seconds: float) -> list[float]:
    """Times of arrival until then. So few would miss their rate by chance: the gaps are stretched to meet it."""
    lots, count = random.Random(SEED), max(1, round(rate * seconds))
    dues = list(itertools.accumulate(lots.expovariate(rate) for _ in range(count)))
    return [due * count / rate / dues[-1] for due in dues]


@dataclass(frozen=True)
class Latency:
    """Seconds from a task's arrival to its picture, or, if it never came, to the end of the run."""

    seconds: float
    came: bool


@dataclass(frozen=True)
class Quantile:
    """Of seconds; ``bound``: it is at least so much."""

    seconds: float
    bound: bool

    def __str__(self) -> str:
        return f"{'> ' if self.bound else ''}{figure(self.seconds)}"


def quantile(percent: float, latencies: Sequence[Latency]) -> Quantile:
    """The least latency that so many percent of the tasks do not exceed."""
    ordered = sorted(latencies, key=lambda one: one.seconds)
    place = max(0, math.ceil(percent / 100 * len(ordered)) - 1)
    return Quantile(ordered[place].seconds, not all(one.came for one in ordered[: place + 1]))


@dataclass(frozen=True)
class Level:
    """What a server did while tasks arrived at a rate. ``asked``, ``rate``: tasks and right pictures a second.

    ``right``: percent of the tasks that got the right picture in time; ``undone``: tasks that waited still when the run
    ended; ``fault``: one of those that failed.
    """

    share: int
    asked: float
    rate: float
    p50: Quantile
    p99: Quantile
    right: float
    undone: int
    failed: int
    fault: str


@dataclass(frozen=True)
class Overtaking:
    """A small task's seconds alone and behind large ones, and how many of these had their picture before it: medians.
    ``right``: percent of all these pictures.
    """

    alone: float
    behind: float
    before: float
    right: float


class Server:
    """Started when it is first asked; begun anew after a load that it did not finish, which would be in the way."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self._name, self._stack = name, stack
        self._client: Client | None = None

    def drive(self, tasks: Sequence[Task], patience: float) -> tuple[float, list[Outcome]]:
        client = self._client = self._client or self._stack.enter_context(warmed_up(self._name))
        began, outcomes = Load(client, tasks, patience).run()
        if not all(outcome.picture for outcome in outcomes):
            self._stack.close()
            self._client = None
        return began, outcomes


def measured_capacity(server: Server, tasks: Sequence[Task]) -> float:
    """Images a second of a server that always has more to draw than it can at once."""
    _, outcomes = server.drive([*tasks, *tasks], LIMIT)
    finished = sorted(outcome.finished for outcome in outcomes if outcome.picture)
    first, last = len(finished) // 4, len(finished) * 3 // 4
    return (last - first) / (finished[last] - finished[first])


def at_level(server: Server, share: int, tasks: Sequence[Task], pictures: Sequence[np.ndarray]) -> Level:
    """Drives the tasks, which are due at their times; ``pictures`` are the right ones, which come round."""
    began, outcomes = server.drive(tasks, GRACE)
    ended = began + tasks[-1].due + GRACE
    latencies = []
    for at, (task, outcome) in enumerate(zip(tasks, outcomes, strict=True)):
        came = bool(outcome.picture) and is_right(outcome.picture, pictures[at % len(pictures)])
        latencies.append(Latency((outcome.finished if came else ended) - began - task.due, came))
    right, undone = sum(one.came for one in latencies), sum(outcome.late for outcome in outcomes)
    faults = [outcome.fault for outcome in outcomes if outcome.fault and not outcome.late]
    last = ended if undone else max(outcome.finished for outcome in outcomes)
    return Level(
        share,
        len(tasks) / tasks[-1].due,
        right / (last - began),
        quantile(50, latencies),
        quantile(99, latencies),
        100 * right / len(tasks),
        undone,
        len(faults),
        faults[0] if faults else "",
    )


def overtaking(server: Server, rounds: int, pictures: Sequence[np.ndarray]) -> Overtaking:
    """``pictures``: the right ones of the large tasks, then of the small one."""
    alone, behind, before, right = [], [], [], []
    for _ in range(rounds):
        began, (one,) = server.drive([replace(SMALL, due=0.0)], LIMIT)
        alone.append(one.finished - began)
        began, outcomes = server.drive([*LARGE, SMALL], LIMIT)
        behind.append(outcomes[-1].finished - began - SMALL.due)
        before.append(sum(large.finished < outcomes[-1].finished for large in outcomes[:-1]))
        pairs = zip([one, *outcomes], [pictures[-1], *pictures], strict=True)
        right += [bool(outcome.picture) and is_right(outcome.picture, picture) for outcome, picture in pairs]
    median = statistics.median
    return Overtaking(median(alone), median(behind), median(before), 100 * statistics.mean(right))


class Measured:
    """All figures, as they come in; servers that cannot be measured here are left out, with the reason."""

    def __init__(self) -> None:
        self.capacity = 0.0
        self.levels: dict[tuple[str, int], Level] = {}
        self.overtaking: dict[str, Overtaking] = {}
        self.reasons: list[str] = []

    def measure(self, name: str, tasks: Sequence[Task], pictures: Sequence[np.ndarray]) -> None:
        """``pictures``: the right ones of the tasks, then of the large ones and the small one."""
        rounds, seconds = int(os.environ.get("ROUNDS", ROUNDS)), float(os.environ.get("SECONDS", SECONDS))
        with ExitStack() as stack:
            server = Server(name, stack)
            print(f"measuring {name}: a small task behind large ones", file=sys.stderr)
            self.overtaking[name] = overtaking(server, rounds, pictures[len(tasks) :])
            self.capacity = self.capacity or measured_capacity(server, tasks)
            for share in SHARES:
                print(f"measuring {name} at {share} % of {self.capacity:.2f} images/s", file=sys.stderr)
                dues = arrivals(self.capacity * share / 100, seconds)
                due = [replace(tasks[at % len(tasks)], due=when) for at, when in enumerate(dues)]
                self.levels[name, share] = at_level(server, share, due, pictures[: len(tasks)])

    def as_tables(self) -> None:
        console = wide_console()
        console.print(self._under_load(), self._behind_large())
        faults = [(f"{name} at {share} %", one.fault) for (name, share), one in self.levels.items() if one.fault]
        for line in [f"{where}: e.g. {fault[:70]}" for where, fault in faults] + self.reasons:
            console.print(line, highlight=False, markup=False)

    def _under_load(self) -> Table:
        title = f"latency under load: arrivals at shares of Darkroom's capacity, {figure(self.capacity)} images/s"
        columns = ("load", "server", "images/s", "p50 s", "p99 s", "right in time %", "failed", "undone")
        table = Table(*columns, title=title, caption=f"undone: no picture {GRACE:.0f} s after the last arrival")
        for share in SHARES:
            for (name, at), one in self.levels.items():
                if at == share:
                    undone = f"{one.undone}, overloaded" if one.undone else "0"
                    cells = figure(one.rate), str(one.p50), str(one.p99), figure(one.right), str(one.failed), undone
                    table.add_row(f"{share} %: {figure(one.asked)}/s", name, *cells)
            table.add_section()
        return table

    def _behind_large(self) -> Table:
        table = Table("server", "alone s", "behind s", "times", "large before it", "right %")
        table.title = f"a task of {SMALL.steps} steps behind {len(LARGE)} of {LARGE[0].steps}"
        for name, small in self.overtaking.items():
            values = (small.alone, small.behind, small.behind / small.alone, small.before, small.right)
            table.add_row(name, *map(figure, values))
        return table

    def as_json(self) -> None:
        """A p50 or p99 that is only a bound says so in its name."""
        print_line("latency", f"{DARKROOM}: capacity", self.capacity, "images/s")
        for (name, share), one in self.levels.items():
            which = f"{name} at {share} %"
            print_line("latency", f"{which}: asked", one.asked, "images/s")
            print_line("latency", f"{which}: rate", one.rate, "images/s")
            for percent, value in ((50, one.p50), (99, one.p99)):
                print_line("latency", f"{which}: p{percent}{', at least' * value.bound}", value.seconds, "s")
            print_line("latency", f"{which}: right in time", one.right, "%")
            print_line("latency", f"{which}: failed", one.failed, "tasks")
            print_line("latency", f"{which}: undone", one.undone, "tasks")
        for name, small in self.overtaking.items():
            print_line("latency", f"{name}: small task alone", small.alone, "s")
            print_line("latency", f"{name}: small task behind large ones", small.behind, "s")
            print_line("latency", f"{name}: small task", small.behind / small.alone, "times", "alone")
            print_line("latency", f"{name}: large tasks drawn before it", small.before, "tasks")
            print_line("latency", f"{name}: right of these", small.right, "%")


def main() -> None:
    """Prints each server's latencies at each load, and those of the small task."""
    end_on_sigterm()
    busy = os.getloadavg()[0]
    tasks = draw_lots([0.0] * int(os.environ.get("TASKS", TASKS)))
    right = {dtype: draw_right([*tasks, *LARGE, SMALL], dtype).pictures for dtype in ("fast", "float32")}
    measured = Measured()
    for name in COMPARED:
        try:
            measured.measure(name, tasks, right[SERVERS[name][0]])
        except Unavailable as fault:
            if name == DARKROOM:
                raise
            measured.reasons.append(f"{name}: {fault}")
    if os.environ.get("JSON") == "1":
        measured.as_json()
    else:
        measured.as_tables()
        print(f"load average of the machine before: {busy:.1f}")
