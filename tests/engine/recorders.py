"""A stand-in for CUDA's graphs on the CPU: recordings that, as those do, read and write the same memory every time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from handler.engine.merging import leaves_of

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class CpuRecorder:
    """Implements :class:`handler.engine.graphed.Recorder`. ``bytes_each``: what one recording reserves.

    ``refuse``: raised at each recording, as CUDA does for what it cannot record. ``spoil`` is added to what a replay
    writes.
    """

    def __init__(self, bytes_each: int = 10) -> None:
        self.bytes_each, self.made, self.emptied = bytes_each, 0, 0
        self.refuse: Exception | None = None
        self.spoil = 0.0
        self._reserved = 0

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        if self.refuse is not None:
            raise self.refuse
        output = run()
        self.made += 1
        self._reserved += self.bytes_each

        def replay() -> None:
            for fixed, fresh in zip(_tensors(output), _tensors(run()), strict=True):
                fixed.copy_(fresh + self.spoil)

        return output, replay

    def reserved(self) -> int:
        return self._reserved

    def start_anew(self) -> None:
        self.emptied += 1
        self._reserved = 0


def _tensors(output: object) -> list[torch.Tensor]:
    return [leaf for leaf in leaves_of({"": output}).values() if isinstance(leaf, torch.Tensor)]
