"""Decodes that wait together are merged where that was proven, and other tasks' steps do not wait for a long one."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.engine.batcher import Batcher
from handler.engine.decoding import Decoder
from handler.errors import NotFinite, OutOfMemory, WorkerBroken

from .callers import PATIENCE, Doubles, all_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.engine.compute import Compute

pytestmark = pytest.mark.usefixtures("one_core")


class Block(torch.nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample + 1


class Vae(torch.nn.Module):
    """Adds one in each of its two blocks. ``rows``: of each decode; ``check`` gets its latents and may raise."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.decoder = torch.nn.Module()
        self.decoder.up_blocks = torch.nn.ModuleList([Block(), Block()])
        self.rows: list[int] = []
        self.check: Callable[[torch.Tensor], None] = lambda _: None
        self.tiled = 0
        self.noise = 0.0

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> tuple[torch.Tensor]:
        self.rows.append(z.shape[0])
        self.check(z)
        for block in self.decoder.up_blocks:  # type: ignore[union-attr]
            z = block(z)
        return (z + self.noise * torch.rand(()),)

    def enable_tiling(self) -> None:
        self.tiled += 1


@pytest.fixture
def vae() -> Vae:
    return Vae()


@pytest.fixture
def decoder(vae: Vae, compute: Compute) -> Decoder:
    made = Decoder(vae, compute)
    made(torch.zeros(1, 2), return_dict=False, generator=torch.Generator())
    vae.rows.clear()
    return made


def at_once(compute: Compute, decoder: Decoder, values: list[float]) -> list[Any]:
    """Outcomes of decodes that wait at the same time, each with a generator of its own."""
    go = threading.Event()
    held = threading.Thread(target=lambda: compute.run(lambda: go.wait(PATIENCE)), daemon=True)
    held.start()

    def decode(value: float) -> float:
        latent = torch.full((1, 2), value)
        return float(decoder(latent, return_dict=False, generator=torch.Generator())[0][0, 0])

    def meanwhile() -> None:
        while len(decoder.batcher._waiting) < len(values):
            threading.Event().wait(0.001)
        go.set()

    return all_of([partial(decode, value) for value in values], meanwhile)


def test_those_that_wait_together_are_merged_once_that_is_proven(compute: Compute, vae: Vae, decoder: Decoder) -> None:
    assert at_once(compute, decoder, [1.0, 2.0, 3.0]) == [3.0, 4.0, 5.0]
    assert vae.rows == [1, 1, 1]
    assert decoder.prove(1e-6)
    vae.rows.clear()
    assert at_once(compute, decoder, [1.0, 2.0, 3.0]) == [3.0, 4.0, 5.0]
    assert vae.rows == [3]


def test_one_that_decodes_at_random_is_not_merged(vae: Vae, decoder: Decoder) -> None:
    vae.noise = 0.5
    assert not decoder.prove(1e-3)


def test_memory_that_runs_out_splits_and_then_tiles(compute: Compute, vae: Vae, decoder: Decoder) -> None:
    assert decoder.prove(1e-6)

    def full(latents: torch.Tensor) -> None:
        if latents.shape[0] > 1 or not vae.tiled:
            raise torch.OutOfMemoryError("CUDA out of memory")

    vae.check = full
    vae.rows.clear()
    assert at_once(compute, decoder, [1.0, 2.0]) == [3.0, 4.0]
    assert (vae.rows, vae.tiled) == ([2, 1, 1, 1], 1)
    vae.check = lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    assert all(isinstance(one, OutOfMemory) for one in at_once(compute, decoder, [1.0, 2.0]))


def test_a_black_picture_is_its_own_tasks_fault(compute: Compute, vae: Vae, decoder: Decoder) -> None:
    assert decoder.prove(1e-6)
    good, bad = at_once(compute, decoder, [1.0, float("nan")])
    assert good == 3.0
    assert isinstance(bad, NotFinite)
    assert decoder.batcher.merging
    vae.rows.clear()
    at_once(compute, decoder, [1.0, 2.0])
    assert vae.rows == [2], "and no reason to merge no more"


def test_steps_of_others_run_between_the_blocks_of_a_decode(compute: Compute, vae: Vae, decoder: Decoder) -> None:
    steps = Batcher(Doubles(), compute)
    compute.serve(steps)
    order: list[str] = []
    inside, queued = threading.Event(), threading.Event()

    def enter(_: torch.Tensor) -> None:
        inside.set()
        assert queued.wait(PATIENCE)
        order.append("decode begins")

    vae.check = enter
    steps.denoiser.check = lambda _: order.append("step")  # type: ignore[assignment]

    def decode() -> Any:
        outcome = decoder(torch.ones(1, 2), return_dict=False)[0]
        order.append("decode ended")
        return outcome

    def step() -> Any:
        assert inside.wait(PATIENCE)
        return steps.call(object(), (), {"sample": torch.ones(1, 2)}).output[0]

    def meanwhile() -> None:
        while not steps._waiting:
            threading.Event().wait(0.001)
        queued.set()

    decoded, stepped = all_of([decode, step], meanwhile)
    assert order == ["decode begins", "step", "decode ended"]
    assert torch.equal(decoded, torch.full((1, 2), 3.0))
    assert torch.equal(stepped, torch.full((1, 2), 2.0))


def test_bookkeeping_that_breaks_within_a_decode_ends_the_thread(compute: Compute, vae: Vae, decoder: Decoder) -> None:
    """Nobody waits for ever, and the decode that it broke into is done."""
    broken = SimpleNamespace(next=lambda _: (lambda: (_ for _ in ()).throw(KeyError("bookkeeping")), None))
    vae.check = lambda _: compute._sources.append(broken)
    outcomes = all_of([lambda: decoder(torch.ones(1, 2), return_dict=False)[0]])
    assert torch.equal(outcomes[0], torch.full((1, 2), 3.0))
    with pytest.raises(WorkerBroken, match="KeyError"):
        compute.run(lambda: None)
