"""One run of the chaos proof, from empty queues to the figures."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from handler.local.aws import CREDENTIALS, EmbeddedAws, create_resources
from handler.settings import Settings
from handler.storage import TaskStore
from handler.submit import Submit
from handler.taskqueue import TaskQueue

from . import steps
from .checks import Backstage, Ended, check, compare
from .fleet import ONE_THREAD, Fleet, Zygote
from .load import Load, plan
from .proxy import Proxy, Schedule
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .load import Planned

WORKERS = 3
TASKS_A_KILL = 5
LEASE = 6
GRACE = 5.0
"""Seconds beyond its lease within which a killed worker's task runs again."""
CLAIMING = 0.5
"""Seconds around a claim in which a fault may hide from the worker that it holds the task."""
VISIBILITY = 30
"""The queue's own, longer than the lease, as a queue that also serves Lambda has it."""
MAX_RECEIVES = 50
MODEL = {"DTYPE": "float32", "MAX_BATCH": "4"}
"""float32, so that pictures can be compared to one step of 255 whatever company they were drawn in."""
WORKER = {
    **MODEL,
    "LEASE": str(LEASE),
    "BEAT_EVERY": "0.5",
    "FIRST_BEAT": "0.5",
    "CHECKPOINT_EVERY": "0.5",
}


@dataclass
class Outcome:
    """Everything that a run found out."""

    seed: int
    tasks: int
    schedule: Schedule
    witness: Witness
    fleet: Fleet
    load: Load
    ended: Ended = field(default_factory=Ended)
    spent: steps.Spent = field(default_factory=steps.Spent)
    seconds: float = 0.0
    stuck_after: str = ""


def run(seed: int, tasks: int, folder: Path, *, limit: float, settings: dict[str, str] | None = None) -> Outcome:
    """``limit``: seconds after which what has not ended counts as stuck. Logs of the workers are left in ``folder``."""
    began = time.monotonic()
    os.environ.update(CREDENTIALS)
    witness, schedule = Witness(), Schedule(seed)
    zygote = Zygote()
    try:
        with EmbeddedAws() as aws:
            proxy = Proxy(aws.endpoint, schedule, witness)
            resources = create_resources(aws.endpoint, visibility=VISIBILITY, max_receives=MAX_RECEIVES)
            environ = {
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "NO_PROXY": "127.0.0.1",
                **ONE_THREAD,
                **CREDENTIALS,
                **resources.variables,
                **WORKER,
                **(settings or {}),
                steps.FILE: str(folder / "steps"),
            }
            schedule.armed = True
            fleet = Fleet(WORKERS, zygote, proxy, witness, environ, folder)
            load = _load(plan(seed, tasks), proxy.door("callers"), environ, witness)
            outcome = Outcome(seed, tasks, schedule, witness, fleet, load)
            backstage = Backstage(aws.endpoint, resources)
            _work(outcome, random.Random(f"kills {seed}"), backstage, began + limit)
            schedule.armed = False
            fleet.stop()
            completions = Counter(
                name for name, seen in witness.history.items() for one in seen if one.record.status == "completed"
            )
            outcome.ended, pictures = check(backstage, load.accepted, completions)
            compare(outcome.ended, pictures, zygote, {**environ, steps.FILE: os.devnull}, folder / "references")
            outcome.spent = steps.read(folder / "steps")
            proxy.close()
    finally:
        zygote.close()
    outcome.seconds = time.monotonic() - began
    return outcome


def _load(planned: list[Planned], endpoint: str, environ: dict[str, str], witness: Witness) -> Load:
    settings = Settings.load({**environ, "AWS_ENDPOINT_URL": endpoint})
    store, queue = TaskStore(settings), TaskQueue(settings)
    load = Load(planned, Submit(settings, store, queue), queue, witness)
    load.start()
    return load


def _work(outcome: Outcome, draw: random.Random, backstage: Backstage, until: float) -> None:
    """Kills by the schedule until every task has ended and every message has gone, or until there is no more time."""
    fleet, witness, load = outcome.fleet, outcome.witness, outcome.load
    strikes = _strikes(draw, outcome.tasks)
    due = next(strikes, None)
    while time.monotonic() < until:
        time.sleep(0.03)
        fleet.look()
        terminal = witness.terminal()
        if due is not None and len(terminal) >= due[0]:
            time.sleep(due[1])
            if fleet.strike(draw):
                due = next(strikes, None)
        if load.fault is not None:
            outcome.stuck_after = f"the load broke: {load.fault!r}"
            return
        if load.is_alive() or load.accepted.keys() - terminal:
            continue
        if not any(backstage.messages().values()):
            return
        time.sleep(0.3)
    outcome.stuck_after = f"not done in time: {backstage.messages()}, {sorted(load.accepted.keys() - witness.terminal())}"


def _strikes(draw: random.Random, tasks: int) -> Iterator[tuple[int, float]]:
    """At how many ended tasks, and how many seconds later, each signal is due: spread over the work, however fast."""
    for ended in sorted(draw.randrange(max(1, tasks - 5)) for _ in range(tasks // TASKS_A_KILL)):
        yield ended, draw.uniform(0, 1)


@dataclass
class Reruns:
    """Seconds from a signal to the next attempt of each task that it interrupted."""

    delays: dict[str, list[float]] = field(default_factory=lambda: {"SIGKILL": [], "SIGTERM": []})
    disturbed: int = 0
    late: list[str] = field(default_factory=list)


def reruns(outcome: Outcome) -> Reruns:
    """By signal. Each fault that meets the redelivery itself (its message was lost on the way, its claim failed, its
    receiver was killed as well), or that kept the worker from knowing its own claim, may cost the same time once more;
    such a task is counted as ``disturbed``, not timed.
    """
    found = Reruns()
    for kill in outcome.fleet.kills:
        name = signal.Signals(kill.signal).name
        for task, attempt in kill.held.items():
            later = [seen for seen in outcome.witness.history[task] if seen.at > kill.at]
            if any(seen.record.attempt == attempt and seen.record.status in {"completed", "failed"} for seen in later):
                continue  # it was done before the signal had its effect
            again = next((seen for seen in later if seen.record.attempt > attempt), None)
            if again is None:
                continue  # cancelled, or it is among those stuck
            claim = next(seen for seen in outcome.witness.history[task] if seen.record.attempt == attempt)
            faults = sum(
                kill.at < at < again.at or abs(at - claim.at) < CLAIMING for at in outcome.witness.disturbed[task]
            )
            faults += sum(
                any(who == other.who and kill.at < at < other.at < again.at for other in outcome.fleet.kills)
                for at, who in outcome.witness.deliveries[task]
            )
            delay = again.at - kill.at
            if delay > (LEASE + GRACE) * (1 + faults):
                found.late.append(f"{task}: again {delay:.1f} s after {name} to {kill.who}, {faults} faults between")
            if faults:
                found.disturbed += 1
            else:
                found.delays[name].append(delay)
    return found


def figures(outcome: Outcome) -> dict[str, Any]:
    """The run in numbers; ``violations`` in words."""
    ended, spent, fleet = outcome.ended, outcome.spent, outcome.fleet
    again = reruns(outcome)
    needed = sum(ended.needed.values())
    computed = sum(spent.steps[name] for name in ended.needed)
    signals = Counter(signal.Signals(kill.signal).name for kill in fleet.kills)
    violations = [
        *outcome.witness.violations, *fleet.violations, *ended.lost, *ended.stuck, *ended.doubled, *ended.wrong,
        *ended.left, *again.late, *filter(None, [outcome.stuck_after]),
    ]  # fmt: skip
    statuses = Counter(record.status for record in ended.records.values())
    return {
        "seed": outcome.seed,
        "tasks": len(outcome.load.accepted),
        "seconds": round(outcome.seconds, 1),
        "requests": outcome.schedule.requests,
        "kills": {"total": len(fleet.kills), **signals, "tasks_interrupted": sum(map(len, again.delays.values())) + again.disturbed},
        "faults": {"total": sum(outcome.schedule.counts.values()), **outcome.schedule.counts},
        "duplicated_messages": outcome.load.duplicates,
        "submissions_repeated": outcome.load.repeated,
        "redeliveries": outcome.witness.received["again"],
        "attempts": sum(record.attempt for record in ended.records.values()),
        "statuses": dict(statuses),
        "images": ended.images,
        "bit_identical": ended.identical,
        "largest_pixel_difference": ended.largest,
        "resumed_attempts": spent.resumptions,
        "resumed_steps": spent.resumed,
        "steps_needed": needed,
        "steps_spent": computed,
        "wasted_share": round(computed / needed - 1, 4) if needed else None,
        "seconds_to_run_again": {
            name: {"median": round(sorted(all_)[len(all_) // 2], 2), "most": round(max(all_), 2)}
            for name, all_ in again.delays.items()
            if all_
        },
        "reruns_disturbed": again.disturbed,
        "lost": len(ended.lost),
        "doubled": len(ended.doubled),
        "wrong": len(ended.wrong),
        "stuck": len(ended.stuck),
        "violations": violations,
    }
