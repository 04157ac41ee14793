"""One run of the chaos proof, from empty queues to the figures."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws, create_resources
from handler.settings import Settings

from ..warm import ONE_THREAD, Zygote
from . import scaled, steps
from .care import CARE, Care
from .checks import Backstage, Ended, check, compare
from .fleet import Fleet
from .load import Load, plan
from .proxy import Proxy, Schedule
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .load import Planned

WARM = (
    "tests.chaos.scaled",
    "tests.chaos.steps",
    "handler.__main__",
    "handler.worker",
    "handler.engine.starting",
    "handler.engine.running",
    "handler.engine.loading",
    "handler.engine.warmup",
    "handler.engine.checkpoint",
    "handler.engine.seam",
    "handler.engine.imaging",
)
"""What the processes of a fleet have in common."""
WORKERS = 3
TASKS_A_KILL = 5
MODEL = {"DTYPE": "float32", "MAX_BATCH": "4"}
"""float32, so that pictures can be compared to one step of 255 whatever company they were drawn in."""
WORKER = {
    **MODEL,
    **scaled.VARIABLES,
    "CHECKPOINT_EVERY": str(3 / scaled.FACTOR),  # of a deployment that has hosts which break: by default there are none
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
    care: Care
    ended: Ended = field(default_factory=Ended)
    spent: steps.Spent = field(default_factory=steps.Spent)
    seconds: float = 0.0
    stuck_after: str = ""


def run(seed: int, tasks: int, folder: Path, *, limit: float, settings: dict[str, str] | None = None) -> Outcome:
    """``limit``: seconds after which what has not ended counts as stuck. Logs of the workers are left in ``folder``."""
    began = time.monotonic()
    os.environ.update(CREDENTIALS)
    witness, schedule = Witness(), Schedule(seed)
    zygote = Zygote(WARM)
    try:
        with EmbeddedAws() as aws:
            proxy = Proxy(aws.endpoint, schedule, witness)
            resources = create_resources(aws.endpoint, visibility=scaled.VISIBILITY, max_receives=scaled.MAX_RECEIVES)
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
            care = Care(Settings.load({**environ, "AWS_ENDPOINT_URL": proxy.door(CARE)}), scaled.DOCTOR_EVERY)
            care.start()
            outcome = Outcome(seed, tasks, schedule, witness, fleet, load, care)
            backstage = Backstage(aws.endpoint, resources)
            _work(outcome, random.Random(f"kills {seed}"), backstage, began + limit)
            schedule.armed = False
            care.stop()
            fleet.stop()
            fleet.read_logs()
            completions = Counter(
                name for name, seen in witness.history.items() for one in seen if one.record.status == "completed"
            )
            outcome.ended, pictures = check(backstage, load.accepted, completions)
            compare(outcome.ended, pictures, zygote, environ, folder / "references")
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
    outcome.stuck_after = (
        f"not done in time: {backstage.messages()}, {sorted(load.accepted.keys() - witness.terminal())}"
    )


def _strikes(draw: random.Random, tasks: int) -> Iterator[tuple[int, float]]:
    """At how many ended tasks, and how many seconds later, each signal is due: spread over the work, however fast."""
    for ended in sorted(draw.randrange(max(1, tasks - 5)) for _ in range(tasks // TASKS_A_KILL)):
        yield ended, draw.uniform(0, 1)
