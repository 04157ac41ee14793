"""Callers of the batcher in threads of their own, and a network for them: no pipeline, no weights."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from handler.engine.batcher import Batcher

PATIENCE = 10
"""Seconds after which a caller counts as hanging."""


class Doubles(torch.nn.Module):
    """A network that doubles its input. ``check`` gets the rows of each forward first and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.check: Callable[[torch.Tensor], None] = lambda _: None
        self.rows: list[int] = []

    def forward(self, sample: torch.Tensor, table: Any = None, timestep: Any = 0) -> tuple[torch.Tensor]:
        self.rows.append(sample.shape[0])
        self.check(sample)
        return (sample * self.weight,)


def network(batcher: Batcher) -> Doubles:
    assert isinstance(batcher.denoiser, Doubles)
    return batcher.denoiser


def all_of(works: list[Callable[[], Any]], meanwhile: Callable[[], Any] = lambda: None) -> list[Any]:
    """What each of these returned or raised, in threads of their own. Fails if one hangs."""
    outcomes: list[Any] = [None] * len(works)

    def run(at: int) -> None:
        try:
            outcomes[at] = works[at]()
        except BaseException as fault:
            outcomes[at] = fault

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(works))]
    for thread in threads:
        thread.start()
    meanwhile()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    return outcomes


def together(batcher: Batcher, values: list[float], tables: Sequence[Any] = (None,)) -> list[Any]:
    """The outcomes of calls, a row each, that wait at the same time: the compute thread is kept busy until they do.

    The calls take turns with the ``tables``.
    """
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(PATIENCE)

    def meanwhile() -> None:
        deadline = time.monotonic() + PATIENCE
        while len(batcher._waiting) < len(values) and time.monotonic() < deadline:
            time.sleep(0.001)
        go.set()

    busy = threading.Thread(target=lambda: batcher._compute.run(hold), daemon=True)
    busy.start()
    assert held.wait(PATIENCE)

    def call(value: float, table: Any) -> float:
        arguments = {"sample": torch.full((1, 2), value), "table": table}
        return float(batcher.call(object(), (), arguments).output[0][0, 0])

    outcomes = all_of([partial(call, *one) for one in zip(values, cycle(tables))], meanwhile)
    busy.join(PATIENCE)
    return outcomes
