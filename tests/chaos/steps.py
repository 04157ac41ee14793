"""Counts denoiser steps in a worker process, also those that die with it: a line for each, written before its forward.

A line is ``step|replay PID TASK ATTEMPT INDEX``, appended with one system call, so that SIGKILL loses none.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from handler.engine.merging import Call

FILE = "CHAOS_STEPS"
"""Environment variable that names the file."""


def install(path: str) -> None:
    """From now on this process's forwards are counted. Steps of the proof at load are no task's and do not count."""
    from handler.engine.batcher import Batcher
    from handler.engine.calls import TaskCalls

    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    outputs, through = Batcher._outputs, TaskCalls.__call__

    def line(kind: str, calls_of_task: TaskCalls, at: int) -> bytes:
        record = getattr(calls_of_task._observer, "record", None)  # an attempt's; who draws a proof at load has none
        return f"{kind} {os.getpid()} {record.task_id} {record.attempt} {at}\n".encode() if record else b""

    def counted(self: Batcher, group: list[Call]) -> list[Any]:
        passages = [call.owner for call in group]
        os.write(out, b"".join(line("step", one, len(one._outputs)) for one in passages if isinstance(one, TaskCalls)))
        return outputs(self, group)

    def noted(self: TaskCalls, args: tuple[Any, ...], kwargs: dict[str, Any], batcher: Batcher | None = None) -> Any:
        fresh = self.first is None
        answer = through(self, args, kwargs, batcher)
        if fresh and self.saved.stored:
            os.write(out, line("replay", self, len(self.saved.stored)))
        return answer

    Batcher._outputs = counted  # type: ignore[method-assign]
    TaskCalls.__call__ = noted  # type: ignore[method-assign]


@dataclass
class Spent:
    """Steps computed for each task, by all its attempts; steps that checkpoints saved; attempts that resumed."""

    steps: Counter[str] = field(default_factory=Counter)
    by_attempt: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    resumed: int = 0
    resumptions: int = 0


def read(path: Path) -> Spent:
    spent = Spent()
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, _, name, attempt, index = line.split()
        if kind == "step":
            spent.steps[name] += 1
            spent.by_attempt[name][int(attempt)] += 1
        else:
            spent.resumed += int(index)
            spent.resumptions += 1
    return spent
