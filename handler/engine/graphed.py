"""Replays a network's forwards as CUDA graphs: one launch in place of the hundreds that small networks are bound by.

A graph reads and writes fixed memory and takes one number of rows. So inputs are copied into buffers, rows are padded
with copies to the next of a few numbers, and outputs are copied out. See PyTorch's notes on CUDA graphs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from ..logs import logger
from .faults import out_of_memory
from .merging import exactly, has_rows, is_time, leaves_of, rebuilt, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .layers import Forward

    Key = tuple[object, ...]

T = TypeVar("T")
SMALL_BUCKETS, FURTHER = (1, 2, 4, 8), 4
"""Numbers of rows that graphs are recorded for: these, and multiples of FURTHER."""
WORTH = 3
"""A graph is recorded when its forward comes for this time: recording takes as long as some ten forwards."""
KNOWN = 1024
"""Forwards that are counted at most, each by its shapes."""
CLOSE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference between a replay and the eager forward, of the output's largest value, that rounding explains
(float32 on CUDA convolves in TF32). What is wrong is wrong by far more."""


class Recorder(Protocol):
    """Records what runs on a device. On CUDA :class:`.capture.CudaRecorder`; tests have one for the CPU."""

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What ``run`` returned, and a replay that writes the same memory anew. Raises what ``run`` or the device
        raises."""

    def reserved(self) -> int:
        """Bytes of the device that this process has reserved."""

    def start_anew(self) -> None:
        """All recordings are gone: gives their memory back."""


@dataclass
class Recording:
    """``buffers``: the tensors it reads, by path; ``output``: the memory that it writes; ``size``: bytes reserved."""

    buffers: dict[str, torch.Tensor]
    output: Any
    replay: Callable[[], None]
    rows: int
    size: int


class Graphed:
    """A layer round another one. ``budget``: bytes that recordings may hold; those not used for longest go first.

    What cannot be recorded runs as it is, and the log says so once. Call it in the compute thread.
    """

    def __init__(self, inner: Forward, recorder: Recorder, budget: int) -> None:
        self._inner, self._recorder, self._budget = inner, recorder, budget
        self._made: OrderedDict[Key, Recording] = OrderedDict()
        self._seen: Counter[Key] = Counter()
        self._never: set[Key] = set()
        self.replays = 0

    def __call__(self, arguments: dict[str, Any], rows: int) -> Any:
        leaves = leaves_of(arguments)
        to = bucket_of(rows) if _batched(arguments, rows) else rows
        key = key_of(leaves, rows, to)
        if key is None or key in self._never:
            return self._inner(arguments, rows)
        if key not in self._made:
            self._seen[key] += 1
            if self._seen[key] < WORTH:
                self._bound()
                return self._inner(arguments, rows)
            return self._recorded(key, arguments, leaves, rows, to)
        self._made.move_to_end(key)
        made = self._made[key]
        fill(made.buffers, leaves, rows)
        made.replay()
        self.replays += 1
        return split(made.output, [rows, to - rows])[0]

    def forget(self) -> bool:
        """Lets all recordings go, for memory ran out. Returns whether there were any."""
        had = bool(self._made)
        self._made.clear()
        self._seen.clear()
        if had:
            self._recorder.start_anew()
        return had

    def relieve(self, _: int) -> bool:
        """As :attr:`.batcher.Batcher.relief`: graphs go before a group of calls is split."""
        return self.forget()

    def _recorded(self, key: Key, arguments: dict[str, Any], leaves: Mapping[str, Any], rows: int, to: int) -> Any:
        """Runs the forward as it is and records it for the next time. Returns the output of the first."""
        eager = self._inner(arguments, rows)
        before = self._recorder.reserved()
        try:
            buffers = buffers_for(leaves, to)
            fill(buffers, leaves, rows)
            fixed = rebuilt(arguments, {**leaves, **buffers})
            output, replay = self._recorder.record(lambda: self._inner(fixed, to))
            replay()
            if not close(eager, split(output, [rows, to - rows])[0]):
                raise ValueError("a replay draws something else")
        except Exception as fault:
            if out_of_memory(fault):
                self.forget()
            if not self._never:
                logger.warning("forwards of this network are not recorded", fault=f"{type(fault).__name__}: {fault}")
            self._never.add(key)
            return eager
        size = max(0, self._recorder.reserved() - before)
        self._made[key] = Recording(buffers, output, replay, to, size)
        while len(self._made) > 1 and sum(one.size for one in self._made.values()) > self._budget:
            gone, _ = self._made.popitem(last=False)
            del self._seen[gone]
        return eager

    def _bound(self) -> None:
        if len(self._seen) > KNOWN:
            self._seen = Counter({key: self._seen[key] for key in self._made})


def _batched(arguments: dict[str, Any], rows: int) -> bool:
    """Whether the rows are a dimension of tensors, and not the length of lists of them."""
    first = next((one for one in arguments.values() if isinstance(one, torch.Tensor) and one.ndim), None)
    return first is not None and first.shape[0] == rows


def bucket_of(rows: int) -> int:
    """The number of rows that a forward of ``rows`` is padded to."""
    return next((size for size in SMALL_BUCKETS if size >= rows), -(-rows // FURTHER) * FURTHER)


def key_of(leaves: Mapping[str, Any], rows: int, to: int) -> tuple[object, ...] | None:
    """What forwards have in common that one recording serves; None if one of their arguments cannot be told."""
    traits: list[object] = [to]
    for path, leaf in leaves.items():
        if not isinstance(leaf, torch.Tensor):
            told = exactly(leaf)
            if type(told) is object:
                return None
            traits.append((path, type(leaf), None if is_time(path, leaf) else told))
            continue
        if leaf.layout is not torch.strided or leaf.is_quantized:
            return None
        by_row = has_rows(path, leaf, rows)
        if path == "timestep" and (by_row or is_time(path, leaf)):  # one for all rows becomes one for each
            traits.append((path, leaf.dtype))
        else:
            traits.append((path, by_row, leaf.dtype, leaf.device, leaf.shape[1:] if by_row else leaf.shape))
    return tuple(traits)


def buffers_for(leaves: Mapping[str, Any], to: int) -> dict[str, torch.Tensor]:
    """Memory of its own for each tensor, with ``to`` rows where it has rows, and for the time, a row each."""
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, torch.Tensor) and leaf.ndim]
    device, rows = tensors[0].device, tensors[0].shape[0]
    buffers: dict[str, torch.Tensor] = {}
    for path, leaf in leaves.items():
        if is_time(path, leaf):
            buffers[path] = torch.as_tensor(leaf, device=device).expand(to).clone()
        elif isinstance(leaf, torch.Tensor):
            shape = (to, *leaf.shape[1:]) if has_rows(path, leaf, rows) else leaf.shape
            buffers[path] = torch.empty_strided(*_laid_out(leaf, shape), dtype=leaf.dtype, device=leaf.device)
    return buffers


def _laid_out(like: torch.Tensor, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a tensor in the memory format of another, or contiguous."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    empty = torch.empty(shape, device="meta", memory_format=torch.channels_last if last else torch.contiguous_format)
    return shape, empty.stride()


def fill(buffers: Mapping[str, torch.Tensor], leaves: Mapping[str, Any], rows: int) -> None:
    """Copies a forward's tensors into the buffers; rows that are left get copies of its first."""
    for path, buffer in buffers.items():
        leaf = leaves[path]
        if not isinstance(leaf, torch.Tensor):
            buffer.fill_(leaf)
        elif leaf.shape == buffer.shape or leaf.ndim == 0:
            buffer.copy_(leaf, non_blocking=True)
        else:
            buffer[:rows].copy_(leaf, non_blocking=True)
            buffer[rows:].copy_(leaf[:1].expand_as(buffer[rows:]), non_blocking=True)


def close(one: Any, other: Any) -> bool:
    """Whether two outputs of the same forward differ by no more than rounding explains."""
    pairs = zip(leaves_of({"": one}).values(), leaves_of({"": other}).values(), strict=True)
    return all(map(_close, *zip(*pairs, strict=True)))


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return True
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(one.float().abs().max()) if one.numel() else 0.0
    apart = float((one.float() - other.float()).abs().max()) if one.numel() else 0.0
    return apart <= CLOSE.get(one.dtype, 1e-1) * largest
