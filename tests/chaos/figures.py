"""A run in numbers, and all that it violated in words."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .function import LAMBDA
from .scaled import LEASE, VISIBILITY

if TYPE_CHECKING:
    from .run import Outcome

GRACE = 5.0
"""Seconds beyond its lease within which a killed worker's task runs again."""
CLAIMING = 0.5
"""Seconds around a claim in which a fault may hide from the worker that it holds the task."""


@dataclass
class Reruns:
    """Seconds from a signal to the next attempt of each task that it interrupted."""

    delays: dict[str, list[float]] = field(default_factory=lambda: {"SIGKILL": [], "SIGTERM": []})
    disturbed: int = 0
    late: list[str] = field(default_factory=list)


def reruns(outcome: Outcome) -> Reruns:
    """By signal. Each fault that meets the redelivery itself (its message was lost on the way, its claim failed, its
    receiver was killed as well), or that kept the worker from knowing its own claim, may cost the same time once more;
    such a task is counted as ``disturbed``, not timed. A message that Lambda gave to a process which was killed before
    it could say a word stays hidden for as long as the queue says: nothing of ours can do anything about that.
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
            # A worker may also die with its long poll open: the server then gives a message to nobody.
            dead = {other.who for other in outcome.fleet.kills if other.at < again.at}
            claim = next(seen for seen in outcome.witness.history[task] if seen.record.attempt == attempt)
            faults = sum(
                kill.at < at < again.at or abs(at - claim.at) < CLAIMING for at in outcome.witness.disturbed[task]
            )
            given = [(at, who) for at, who in outcome.witness.deliveries[task] if kill.at < at < again.at]
            faults += sum(who in dead for _, who in given)
            unheard = sum(
                who == LAMBDA and not any(at < heard < again.at for heard in outcome.witness.hidden[task])
                for at, who in given
            )
            delay = again.at - kill.at
            told = [f"{at - kill.at:.1f} s to {who}" for at, who in given]
            if delay > (LEASE + GRACE) * (1 + faults) + VISIBILITY * unheard:
                found.late.append(
                    f"{task}: again {delay:.1f} s after {name} to {kill.who}, {faults} faults, given {told}"
                )
            if faults or unheard:
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
        *ended.left, *again.late, *filter(None, [outcome.stuck_after, outcome.care.fault and repr(outcome.care.fault)]),
    ]  # fmt: skip
    statuses = Counter(record.status for record in ended.records.values())
    return {
        "seed": outcome.seed,
        "tasks": len(outcome.load.accepted),
        "seconds": round(outcome.seconds, 1),
        "requests": outcome.schedule.requests,
        "kills": {
            "total": len(fleet.kills),
            **signals,
            "tasks_interrupted": sum(map(len, again.delays.values())) + again.disturbed,
        },
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
        "doctor": {"rounds": outcome.care.rounds, "broken_off": outcome.care.broken, "mended": outcome.care.mended},
        "redriven": outcome.care.redriven,
        "function": {
            "invocations": sum(one.invocations for one in fleet.functions),
            "messages given back": sum(one.given_back for one in fleet.functions),
            "tasks suspended": sum(
                one.log.read_text().count("does not fit into this invocation") for one in fleet.members
            ),
            "processes broken off": sum(one.function is not None and one.status == 1 for one in fleet.members),
        },
        "lost": len(ended.lost),
        "doubled": len(ended.doubled),
        "wrong": len(ended.wrong),
        "stuck": len(ended.stuck),
        "violations": violations,
    }
