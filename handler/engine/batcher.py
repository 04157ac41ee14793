"""Continuous batching: denoiser calls of several tasks that wait at the same time and fit together share a forward."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OutOfMemory
from ..logs import logger
from .faults import device_lost, free_memory, out_of_memory
from .layers import plain
from .merging import Call, call_of, fit, merge, split
from .timing import watch_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .compute import Compute
    from .graphed import Graphed
    from .layers import Forward

PATIENCE = 0.25
"""The next forward waits for the tasks that the last one served: while the device is still at that one, and then for
this part of its duration.

Without the wait two tasks would take turns, each in forwards of its own.
"""
LEAST_PATIENCE, MOST_PATIENCE = 0.001, 0.1
"""Bounds of that wait, in seconds."""


class Batcher:
    """Batches all tasks' calls of one network. Implements :class:`.compute.Source` for the compute thread.

    A merged forward that fails is run again call by call, so that a bad call stays alone; its key is not merged again.
    ``forwards`` counts those that succeeded, ``calls`` the calls that they served. ``forward`` is what runs one: the
    network, with or without layers round it; ``graphs`` that among them which records.
    """

    def __init__(self, denoiser: torch.nn.Module, compute: Compute) -> None:
        self.denoiser = denoiser
        self.forward: Forward = plain(denoiser)
        self.graphs: Graphed | None = None
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
        self._patient_until = self._free_at = 0.0
        self._watch = watch_of(self.device)
        self._worth = 0
        """Rows of a forward times their size: what brings the most rows a second. 0: it was not measured."""
        self._most_rows: dict[tuple[object, ...], int] = {}
        self._alone: set[tuple[object, ...]] = set()
        """Keys whose calls are not merged, because a merged forward of them failed."""
        self._savable = True

    def call(self, owner: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Queues a task's (``owner``'s) call and blocks until it has its output. Raises what the forward raised.

        Raises WorkerBroken if the compute thread ends.
        """
        call = call_of(owner, self.bind(args, kwargs))

        def queue() -> None:
            self._waiting.append(call)
            self._awaited.discard(owner)

        self._compute.await_(call, queue)
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

    def note_unsavable(self, kind: str) -> None:
        """Says in the log, once for this network, that its outputs cannot be saved: ``kind`` is what they are."""
        with self._compute.changed:
            known, self._savable = not self._savable, False
        if not known:
            logger.warning("this pipeline's steps cannot be saved; a task that is stopped starts anew", output=kind)

    def leave(self, owner: object) -> None:
        """The task makes no more calls: no forward waits for it any longer."""
        with self._compute.changed:
            self._awaited.discard(owner)
            self._compute.changed.notify_all()

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """A forward for the longest waiting call and all that fit it, once the tasks just served are back or late."""
        if not self._waiting:
            return None, None
        first = self._waiting[0]
        if self._merges(first) and self._awaited and now < self._patient_until:
            return None, self._patient_until - now
        group = self._take(first)
        return (lambda: self._run(group)), None

    def bound(self, tasks: int) -> None:
        """No forward gets more rows than so many tasks like the last one have, or as many more as pictures are smaller:
        beyond that they take longer and are no more worth it.
        """
        if self.last_call is not None:
            self._worth = tasks * self.last_call.rows * self.last_call.size

    def time_forward(self, call: Call, size: int) -> float:
        """Runs a forward of ``size`` copies of ``call`` and returns its seconds. Call it in the compute thread."""
        arguments = merge([call] * size)
        began = time.perf_counter()
        with torch.inference_mode():
            self.forward(arguments, call.rows * size)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _merges(self, call: Call) -> bool:
        return self.merging and call.key not in self._alone

    def _most_of(self, call: Call) -> int | None:
        """The most rows of forwards of such calls; None if any number will do."""
        worth = max(1, int(self._worth / call.size)) if self._worth else None
        return min(filter(None, (worth, self._most_rows.get(call.key))), default=None)

    def _take(self, first: Call) -> list[Call]:
        most = self._most_of(first)
        group, rows = [first], first.rows
        for call in self._waiting[1:] if self._merges(first) else []:
            if (most is None or rows + call.rows <= most) and fit(first, call):
                group.append(call)
                rows += call.rows
        taken = set(map(id, group))
        self._waiting = [call for call in self._waiting if id(call) not in taken]
        return group

    def _run(self, group: list[Call]) -> None:
        """Runs a group and releases every caller in it."""
        began = time.perf_counter()
        self._watch.begin()
        done = self._outcomes(group)
        spent = self._watch.end()
        with self._compute.changed:  # before the callers wake: one that calls again at once must not be awaited twice
            self._awaited = {call.owner for call, _, fault, _ in done if fault is None}
            self._free_at = max(began, self._free_at) + spent
            self._patient_until = self._free_at + min(max(self.patience * spent, LEAST_PATIENCE), self.most_patience)
        for call, output, fault, together in done:
            call.together = together
            call.finish(output, fault)

    def _outcomes(self, group: list[Call]) -> list[tuple[Call, Any, BaseException | None, int]]:
        """Each call of a group with its output or fault, and how many calls shared its forward.

        A merged forward that fails is run again in parts, unless the device is lost: then all of the group get that.
        """
        done: list[tuple[Call, Any, BaseException | None, int]] = []
        parts = [group]
        while parts:
            part = parts.pop(0)
            outputs, fault = self._attempt(part)
            if isinstance(fault, OutOfMemory):
                if self.graphs is not None and self.graphs.forget():
                    parts = [part, *parts]
                    continue
                fault = _freed(fault)  # only now, out of the except clause, is what the failed forward held let go
            left = [call for one in (part, *parts) for call in one]
            if fault is not None and device_lost(fault):
                return done + [(call, None, fault, len(part)) for call in left]
            if fault is not None and len(part) > 1:
                parts = self._in_parts(left, fault, sum(call.rows for call in part))
                continue
            done += [(call, output, fault, len(part)) for call, output in zip(part, outputs, strict=True)]
        return done

    def _in_parts(self, calls: list[Call], fault: BaseException, rows: int) -> list[list[Call]]:
        """What to run after ``rows`` merged rows failed: fewer at once if memory ran out, else each call alone."""
        key = calls[0].key
        if isinstance(fault, OutOfMemory):
            self._most_rows[key] = max(1, rows // 2)
            return self._fitting(calls)
        self._alone.add(key)
        logger.warning("a merged forward failed; such calls run alone from now on", fault=type(fault).__name__)
        return [[call] for call in calls]

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
        self.last_call = group[0]
        if len(group) == 1:
            outputs = [self.forward(group[0].arguments, group[0].rows)]
        else:
            rows = [call.rows for call in group]
            outputs = split(self.forward(merge(group), sum(rows)), rows)
        self.forwards += 1
        self.calls += len(group)
        return outputs


def _freed(short: OutOfMemory) -> BaseException:
    """Frees memory after ``short``. Returns the callers' fault: ``short``, unless the device turns out to be lost."""
    try:
        free_memory()
    except Exception as fault:
        if device_lost(fault):
            return fault
        logger.warning("memory could not be freed", fault=type(fault).__name__)
    return short
