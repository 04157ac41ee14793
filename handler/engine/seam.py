"""The seam: stands in the denoiser's place, so that calls of many stock pipelines become one forward.

Calls fit together when their arguments have the same structure, dtypes and shapes but for the batch dimension, and
everything else is equal. A tensor whose first dimension is the call's batch size is concatenated, a scalar timestep is
expanded to one per row, and each caller gets its rows of the output. A call that nobody joins is passed on untouched.
"""

from __future__ import annotations

import inspect
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ..errors import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .compute import Compute

T = TypeVar("T")
PATIENCE = 0.25
"""Part of a forward's time for which the next one waits for the callers that the last one released."""
LEAST_PATIENCE, MOST_PATIENCE = 0.001, 0.1
SHARED = frozenset({"img_ids", "txt_ids"})
"""Position tables: one for the whole batch, whatever their length."""


@dataclass(eq=False)
class Call:
    """One pipeline's call of its denoiser, on its way through the compute thread."""

    owner: object
    arguments: dict[str, Any]
    rows: int
    leaves: dict[str, Any]
    key: tuple[object, ...]
    arrived: float = field(default_factory=time.perf_counter)
    done: threading.Event = field(default_factory=threading.Event)
    output: Any = None
    fault: BaseException | None = None
    together: int = 1

    def finish(self, output: Any = None, fault: BaseException | None = None, together: int = 1) -> None:
        self.output, self.fault, self.together = output, fault, together
        self.done.set()


class Forwards:
    """All calls of all running tasks to one denoiser. A source of work for the compute thread."""

    def __init__(self, denoiser: torch.nn.Module, compute: Compute) -> None:
        self.denoiser = denoiser
        self.merging = True
        self.patience, self.most_patience = PATIENCE, MOST_PATIENCE
        self.last_call: Call | None = None
        self.count = 0
        self.calls = 0
        self.device = next(denoiser.parameters()).device
        self._compute = compute
        self._signature = inspect.signature(denoiser.forward)
        self._waiting: list[Call] = []
        self._awaited: set[object] = set()
        self._patient_until = 0.0
        self._most_rows: dict[tuple[object, ...], int] = {}

    def call(self, owner: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Hands a call over and waits for its rows. ``owner`` is the task. Raises what the forward raised."""
        call = describe(owner, self.named(args, kwargs))
        with self._compute.changed:
            self._waiting.append(call)
            self._awaited.discard(owner)
            self._compute.changed.notify_all()
        call.done.wait()
        if call.fault is not None:
            raise call.fault
        return call

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments by the names of the network's own signature."""
        bound = self._signature.bind(*args, **kwargs)
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                named |= value
            else:
                named[name] = value
        return named

    def leave(self, owner: object) -> None:
        """The task makes no more calls: nobody waits for it."""
        with self._compute.changed:
            self._awaited.discard(owner)
            self._compute.changed.notify_all()

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        """The group of the call that has waited longest, once those just released are back or late."""
        if not self._waiting:
            return None, None
        if self.merging and self._awaited and now < self._patient_until:
            return None, self._patient_until - now
        group = self._take(self._waiting[0].key)
        return (lambda: self._run(group)), None

    def time(self, call: Call, size: int) -> float:
        """Seconds of a forward of ``size`` such calls. For the compute thread."""
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
        """Whatever happens, every caller of the group is released, and only those that failed with a fault."""
        began = time.perf_counter()
        done: list[tuple[Call, Any, BaseException | None, int]] = []
        parts = [group]
        while parts:
            part = parts.pop(0)
            outputs, fault = self._attempt(part)
            if isinstance(fault, OutOfMemory):
                free_memory()  # only now, out of the except clause, is what the failed forward held let go
                if len(part) > 1:
                    self._most_rows[part[0].key] = max(1, sum(call.rows for call in part) // 2)
                    parts = self._fitting([call for one in (part, *parts) for call in one])
                    continue
            done += [(call, output, fault, len(part)) for call, output in zip(part, outputs, strict=True)]
        ended = time.perf_counter()
        with self._compute.changed:  # before they are released: one that comes back at once is not waited for again
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
        self.count += 1
        self.calls += len(group)
        self.last_call = group[0]
        if len(group) == 1:
            return [self.denoiser(**group[0].arguments)]
        output = self.denoiser(**merge(group))
        return split(output, [call.rows for call in group])


def describe(owner: object, arguments: dict[str, Any]) -> Call:
    """The call with its batch size (first dimension of its first tensor) and the key that says what it fits."""
    leaves = dict(_leaves(arguments))
    at, first = next((path, leaf) for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor) and leaf.ndim)
    rows = first.shape[0]
    # A list of tensors has no batch dimension: such calls go alone.
    key = tuple(_trait(path, leaf, rows) for path, leaf in leaves.items()) if at in arguments else (object(),)
    return Call(owner, arguments, rows, leaves, key)


def _trait(path: str, leaf: Any, rows: int) -> tuple[object, ...]:
    if not isinstance(leaf, torch.Tensor):
        if path == "timestep" and isinstance(leaf, int | float):
            return (path, "time", type(leaf))
        return (path, "same", type(leaf), leaf if leaf.__hash__ else repr(leaf))
    if _is_time(path, leaf):
        return (path, "time", leaf.dtype)
    if _has_rows(path, leaf, rows):
        return (path, "rows", leaf.dtype, leaf.shape[1:])
    return (path, "table", leaf.dtype, leaf.shape, leaf.float().cpu().numpy().tobytes())


def _is_time(path: str, leaf: Any) -> bool:
    return path == "timestep" and (not isinstance(leaf, torch.Tensor) or leaf.ndim == 0)


def _has_rows(path: str, leaf: torch.Tensor, rows: int) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] == rows and not (path in SHARED and leaf.ndim == 2)


def merge(group: Sequence[Call]) -> dict[str, Any]:
    """The arguments of one forward for calls with equal keys."""
    first = group[0]
    merged: dict[str, Any] = {}
    for path, leaf in first.leaves.items():
        if _is_time(path, leaf):
            device = next(one.device for one in first.leaves.values() if isinstance(one, torch.Tensor))
            times = [torch.as_tensor(call.leaves[path], device=device).expand(call.rows) for call in group]
            merged[path] = torch.cat(times)
        elif isinstance(leaf, torch.Tensor) and _has_rows(path, leaf, first.rows):
            merged[path] = torch.cat([call.leaves[path] for call in group])
        else:
            merged[path] = leaf
    return cast("dict[str, Any]", _rebuilt(first.arguments, merged))


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """Each call's rows of the output, as tensors of their own; what has no rows goes to all."""
    if isinstance(output, torch.Tensor):
        if output.ndim and output.shape[0] == sum(rows):
            return [part.clone() for part in torch.split(output, list(rows))]
        return [output] * len(rows)
    if isinstance(output, dict):
        parts = {name: split(value, rows) for name, value in output.items()}
        return [type(output)(**{name: part[at] for name, part in parts.items()}) for at in range(len(rows))]
    if isinstance(output, tuple | list):
        columns = [split(value, rows) for value in output]
        return [type(output)(column[at] for column in columns) for at in range(len(rows))]
    return [output] * len(rows)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple | list):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{at}")
    else:
        yield path, value


def _rebuilt(value: Any, leaves: dict[str, Any], path: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _rebuilt(inner, leaves, f"{path}.{name}" if path else str(name)) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(inner, leaves, f"{path}.{at}") for at, inner in enumerate(value))
    return leaves[path]


def out_of_memory(fault: BaseException) -> bool:
    """CUDA says so by type, the CPU's allocator in words."""
    return isinstance(fault, torch.OutOfMemoryError) or "can't allocate memory" in str(fault)


def free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StandIn(torch.nn.Module):
    """A component's place in one task's pipeline: looks like the component in everything but its calls.

    ``__class__`` too is the component's, for pipelines ask with isinstance what they were given.
    """

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)  # not a submodule: nothing of it is to be moved or counted twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_inner"])

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        inner: torch.nn.Module = self.__dict__["_inner"]
        return inner.parameters(recurse)


class Seam(StandIn):
    """The denoiser's place. ``through`` makes the call for this task: it counts, replays, waits."""

    def __init__(self, denoiser: torch.nn.Module, through: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__(denoiser)
        object.__setattr__(self, "_through", through)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_through"](args, kwargs)


class Errands(StandIn):
    """The place of any other network (text encoder, VAE, safety checker): its work is done in the compute thread."""

    METHODS = frozenset({"encode", "decode", "get_text_features", "get_image_features", "generate"})

    def __init__(self, inner: torch.nn.Module, compute: Compute) -> None:
        super().__init__(inner)
        object.__setattr__(self, "_compute", compute)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self.__dict__["_inner"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in self.METHODS:
            return found
        return lambda *args, **kwargs: self._run(found, args, kwargs)

    def _run(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        compute: Compute = self.__dict__["_compute"]
        return compute.run(lambda: self._work(work, args, kwargs))

    @torch.inference_mode()
    def _work(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        inner = self.__dict__["_inner"]
        tile = getattr(inner, "enable_tiling", None)
        if tile is not None:  # a VAE, which may be kept in float32 while the rest is not (loading.tune)
            args = tuple(_as_floating(value, inner.dtype) for value in args)
        try:
            return work(*args, **kwargs)
        except Exception as fault:
            if not out_of_memory(fault) or tile is None:
                raise
        free_memory()  # only now, out of the except clause, is what the failed try held let go
        tile()  # in pieces from now on: slower, and within what there is
        return work(*args, **kwargs)


def _as_floating(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Guarded:
    """A tokenizer's place: fast tokenizers keep padding state between calls, and two threads corrupt each other's."""

    def __init__(self, inner: Any, lock: threading.Lock) -> None:
        self._inner, self._lock = inner, lock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return Guarded(found, self._lock) if inspect.ismethod(found) else found  # `tokenize` changes the state, too

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._inner(*args, **kwargs)
