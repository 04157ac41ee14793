"""Merges calls into one forward and splits its output again.

Calls fit together when their arguments have the same structure, dtypes and shapes except for the batch dimension, and
everything else is equal. Tensors whose first dimension is the call's batch size are concatenated, a scalar timestep is
expanded to one per row, and each caller gets its rows of the output.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from .compute import Pending

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLAIN = (torch.Tensor, np.ndarray, np.generic, str, int, float, complex, torch.dtype, torch.device, type(None))
"""What hides nothing: as an argument a network only reads it, as an output it goes to every call."""
SHARED = frozenset({"img_ids", "txt_ids"})
"""Position ids: one table for the whole batch, never concatenated."""


@dataclass(eq=False)
class Call(Pending):
    """One task's call of a network: its arguments now, its output or fault once ``done`` is set.

    ``leaves``: the arguments flattened by path; ``key``: what calls that fit together have in common, but for the
    content of their ``tables``, which :func:`fit` compares; ``size``: numbers in a row of its latents; ``together``:
    how many calls shared its forward.
    """

    owner: object
    arguments: dict[str, Any]
    rows: int
    leaves: dict[str, Any]
    key: tuple[object, ...]
    size: int = 1
    tables: list[torch.Tensor] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    together: int = 1

    def written_to(self) -> str:
        """The kind of an argument that the network may write into, such as a cache of what it made of the prompt.

        Empty if there is none. A call that is answered from a checkpoint would leave it as it was before.
        """
        return next((type(leaf).__name__ for leaf in self.leaves.values() if not isinstance(leaf, PLAIN)), "")

    @property
    def merges(self) -> bool:
        """Whether there can be calls that it fits."""
        return type(self.key[0]) is not object


def call_of(owner: object, arguments: dict[str, Any]) -> Call:
    """A call with its key and its batch size, which is the first dimension of its first tensor."""
    leaves = leaves_of(arguments)
    at, first = next((path, leaf) for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor) and leaf.ndim)
    rows = first.shape[0]
    # A list of tensors has no batch dimension: such calls go alone.
    key = tuple(_trait(path, leaf, rows) for path, leaf in leaves.items()) if at in arguments else (object(),)
    tables = [leaf for path, leaf in leaves.items() if _is_table(path, leaf, rows)]
    return Call(owner, arguments, rows, leaves, key, first[0].numel(), tables)


def fit(one: Call, other: Call) -> bool:
    """Whether two calls may share a forward: equal keys, and the same bytes in their tables.

    Tables are compared where they are, and only if they are not the same memory: a copy of each to the host at every
    step would cost more than what it saves.
    """
    return one.key == other.key and all(map(_same_bytes, one.tables, other.tables))


def mergeable(call: Call) -> bool:
    """Whether any call could share a forward with this one: not if it holds what is its task's alone."""
    return call.merges and not call.written_to()


def _trait(path: str, leaf: Any, rows: int) -> tuple[object, ...]:
    if not isinstance(leaf, torch.Tensor):
        if is_time(path, leaf):
            return (path, "time", type(leaf))
        return (path, "same", type(leaf), exactly(leaf))
    if is_time(path, leaf):
        return (path, "time", leaf.dtype)
    if has_rows(path, leaf, rows):
        return (path, "rows", leaf.dtype, leaf.shape[1:])
    if leaf.layout is not torch.strided or leaf.is_quantized:
        return (object(),)  # has no bytes to compare: goes alone
    return (path, "table", leaf.dtype, leaf.device, leaf.shape)


def exactly(leaf: Any) -> object:
    """Something hashable that equals another's only if the arguments are the same: never, if that cannot be told."""
    if isinstance(leaf, float | complex | np.generic):
        return repr(leaf)  # unlike ==, tells 0.0 from -0.0, and takes NaN for NaN
    if isinstance(leaf, np.ndarray):
        return (leaf.dtype.str, leaf.shape, leaf.tobytes())
    return leaf if isinstance(leaf, PLAIN) else object()  # what it holds may change, and a key would keep it alive


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of tensors with equal dtypes, devices and shapes."""
    if _place(one) == _place(other):
        return True
    return torch.equal(_bytes(one), _bytes(other))


def _place(table: torch.Tensor) -> tuple[object, ...]:
    return (table.data_ptr(), table.stride(), table.is_conj(), table.is_neg())


def _bytes(table: torch.Tensor) -> torch.Tensor:
    return table.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _is_table(path: str, leaf: Any, rows: int) -> bool:
    return isinstance(leaf, torch.Tensor) and not is_time(path, leaf) and not has_rows(path, leaf, rows)


def is_time(path: str, leaf: Any) -> bool:
    """Whether it is a time for all rows, of which a merged forward needs one for each."""
    number = leaf.ndim == 0 if isinstance(leaf, torch.Tensor) else isinstance(leaf, int | float)
    return path == "timestep" and number


def has_rows(path: str, leaf: torch.Tensor, rows: int) -> bool:
    """Whether its first dimension is that of the rows."""
    return leaf.ndim > 0 and leaf.shape[0] == rows and not (path in SHARED and leaf.ndim == 2)


def merge(group: Sequence[Call]) -> dict[str, Any]:
    """The arguments of one forward of calls that fit together."""
    first = group[0]
    merged: dict[str, Any] = {}
    for path, leaf in first.leaves.items():
        if is_time(path, leaf):
            device = next(one.device for one in first.leaves.values() if isinstance(one, torch.Tensor))
            times = [torch.as_tensor(call.leaves[path], device=device).expand(call.rows) for call in group]
            merged[path] = torch.cat(times)
        elif isinstance(leaf, torch.Tensor) and has_rows(path, leaf, first.rows):
            merged[path] = torch.cat([call.leaves[path] for call in group])
        else:
            merged[path] = leaf
    return cast("dict[str, Any]", rebuilt(first.arguments, merged))


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """Each call's rows of the output, copied; parts of it without a batch dimension go to every call.

    Raises TypeError for what may hold rows out of sight, such as a cache of what was made of the pictures to edit.
    """
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
    if not isinstance(output, PLAIN):
        raise TypeError(f"a {type(output).__name__} cannot be split")
    return [output] * len(rows)


def leaves_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments flattened: what dicts, tuples and lists among them hold, by path."""
    return dict(_leaves(arguments))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple | list):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{at}")
    else:
        yield path, value


def rebuilt(value: Any, leaves: dict[str, Any], path: str = "") -> Any:
    """What :func:`leaves_of` flattened, with these leaves in place of its own."""
    if isinstance(value, dict):
        return {name: rebuilt(inner, leaves, f"{path}.{name}" if path else str(name)) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(rebuilt(inner, leaves, f"{path}.{at}") for at, inner in enumerate(value))
    return leaves[path]
