"""Continuous batching: denoiser calls of several tasks that wait at the same time and fit together share a forward."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OutOfMemory
from .faults import free_memory, out_of_memory
from .merging import Call, call_of, merge, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from .compute import Compute

PATIENCE = 0.25
"""The next forward waits for the tasks that the last one served, at most for this part of that forward's duration.

Without the wait two tasks would take turns, each in forwards of its own.
"""
LEAST_PATIENCE, MOST_PATIENCE = 0.001, 0.1
"""Bounds of that wait, in seconds."""


class Batcher:
    """Batches all tasks' calls of one network. Implements :class:`.compute.Source` for the compute thread.

    ``calls`` and ``forwards`` count what was asked for and what was run.
    """

    def __init__(self, denoiser: torch.nn.Module, compute: Compute) -> None:
        self.denoiser = denoiser
        self.merging = True
        self.patience, self.most_patience = PATIENCE, MOST_PATIENCE
        self.last_call: Call | None = None
        self.forwards = 0
        self.calls = 0
        self.device = next(denoiser.parameters()).device
        self._compute = compute
        self._signature = inspect.signature(denoiser.forward)
        self._waiting: list[Call] = []
        self._awaited: set[object] = set()
        self._patient_until = 0.0
        self._most_rows: dict[tuple[object, ...], int] = {}

    def call(self, owner: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Queues a task's (``owner``'s) call and blocks until it has its output. Raises what the forward raised."""
        call = call_of(owner, self.bind(args, kwargs))
        with self._compute.changed:
            self._waiting.append(call)
            self._awaited.discard(owner)
            self._compute.changed.notify_all()
        call.done.wait()
        if call.fault is not None:
            raise call.fault
        return call

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, bound to the signature of the network's ``forward``."""
        bound = self._signature.bind(*args, **kwargs)
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            else:
                arguments[name] = value
        return arguments

    def leave(self, owner: object) -> None:
        """The task makes no more calls: no forward waits for it any longer."""
        with self._compute.changed:
            self._awaited.discard(owner)
            self._compute.changed.notify_all()

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """A forward for the longest waiting call and all that fit it, once the tasks just served are back or late."""
        if not self._waiting:
            return None, None
        if self.merging and self._awaited and now < self._patient_until:
            return None, self._patient_until - now
        group = self._take(self._waiting[0].key)
        return (lambda: self._run(group)), None

    def time_forward(self, call: Call, size: int) -> float:
        """Runs a forward of ``size`` copies of ``call`` and returns its seconds. Call it in the compute thread."""
        arguments = merge([call] * size)
        began = time.perf_counter()
        with torch.inference_mode():
            self.denoiser(**arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _take(self, key: tuple[object, ...]) -> list[Call]:
        most = self._most_rows.get(key)
        group: list[Call] = []
        rows = 0
        for call in self._waiting:
            fits = call.key == key and (most is None or rows + call.rows <= most)
            if not group or (self.merging and fits):
                group.append(call)
                rows += call.rows
        taken = set(map(id, group))
        self._waiting = [call for call in self._waiting if id(call) not in taken]
        return group

    def _run(self, group: list[Call]) -> None:
        """Runs a group and releases every caller in it, whatever happens; out of memory splits the group."""
        began = time.perf_counter()
        done: list[tuple[Call, Any, BaseException | None, int]] = []
        parts = [group]
        while parts:
            part = parts.pop(0)
            outputs, fault = self._attempt(part)
            if isinstance(fault, OutOfMemory):
                free_memory()  # after the except clause, whose traceback kept the failed forward's tensors alive
                if len(part) > 1:
                    self._most_rows[part[0].key] = max(1, sum(call.rows for call in part) // 2)
                    parts = self._fitting([call for one in (part, *parts) for call in one])
                    continue
            done += [(call, output, fault, len(part)) for call, output in zip(part, outputs, strict=True)]
        ended = time.perf_counter()
        with self._compute.changed:  # before the callers wake: one that calls again at once must not be awaited twice
            self._awaited = {call.owner for call, _, fault, _ in done if fault is None}
            spent = ended - began
            self._patient_until = ended + min(max(self.patience * spent, LEAST_PATIENCE), self.most_patience)
        for call, output, fault, together in done:
            call.finish(output, fault, together)

    def _attempt(self, part: list[Call]) -> tuple[list[Any], BaseException | None]:
        try:
            with torch.inference_mode():
                return self._outputs(part), None
        except BaseException as fault:
            if not out_of_memory(fault):
                return [None] * len(part), fault
        return [None] * len(part), OutOfMemory("the device has too little memory for a picture of this size")

    def _fitting(self, calls: list[Call]) -> list[list[Call]]:
        most = self._most_rows[calls[0].key]
        parts: list[list[Call]] = []
        for call in calls:
            if parts and sum(one.rows for one in parts[-1]) + call.rows <= most:
                parts[-1].append(call)
            else:
                parts.append([call])
        return parts

    def _outputs(self, group: list[Call]) -> list[Any]:
        self.forwards += 1
        self.calls += len(group)
        self.last_call = group[0]
        if len(group) == 1:
            return [self.denoiser(**group[0].arguments)]
        output = self.denoiser(**merge(group))
        return split(output, [call.rows for call in group])
