"""Recorded forwards: what is drawn is the same, what cannot be recorded runs as it is, memory is bounded."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.engine.compute import Compute
from handler.engine.graphed import WORTH, Graphed, bucket_of, key_of
from handler.engine.layers import plain
from handler.engine.loading import load_pipeline
from handler.engine.proof import NoObserver, pixels
from handler.engine.running import PipelineEngine
from handler.engine.warmup import _call, _request, warm_up
from handler.errors import OutOfMemory
from handler.settings import Settings

from .callers import all_of, network, together
from .recorders import CpuRecorder

if TYPE_CHECKING:
    import logging

    from handler.engine.batcher import Batcher

pytestmark = pytest.mark.usefixtures("one_core")


class Net(torch.nn.Module):
    """Adds its arguments; ``rows`` are those of each forward that ran, not those that were replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(
        self, sample: torch.Tensor, timestep: Any = 0, table: Any = None, scale: float = 1.0, other: Any = None
    ) -> Any:
        self.rows.append(sample.shape[0])
        times = torch.as_tensor(timestep).expand(sample.shape[0]).reshape(-1, 1)
        return (sample * scale + times + (0 if table is None else table.sum()),)


def graphed(budget: int = 1000) -> tuple[Graphed, CpuRecorder, Net]:
    net, recorder = Net(), CpuRecorder()
    return Graphed(plain(net), recorder, budget), recorder, net


def run(layer: Graphed, rows: int, **arguments: Any) -> torch.Tensor:
    """A forward of random rows, which must be what the network itself makes of them."""
    sample = torch.rand(rows, 3)
    output: torch.Tensor = layer({"sample": sample, **arguments}, rows)[0]
    assert torch.equal(output, Net()(sample, **arguments)[0])
    return output


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 12), (13, 16), (16, 16), (17, 20)]
)
def test_the_numbers_of_rows(rows: int, bucket: int) -> None:
    assert bucket_of(rows) == bucket


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("timestep", [7, 7.5, torch.tensor(3.0), None])
def test_a_replay_draws_what_the_network_draws(rows: int, timestep: Any) -> None:
    layer, recorder, _ = graphed()
    arguments = {} if timestep is None else {"timestep": timestep}
    for _ in range(WORTH + 3):
        run(layer, rows, **arguments, table=torch.rand(7, 7))
    assert (recorder.made, layer.replays) == (1, 3)


def test_rows_of_one_bucket_share_a_recording() -> None:
    layer, recorder, net = graphed()
    for rows in (5, 6, 7, 8, 5, 7):
        run(layer, rows, timestep=torch.rand(rows))
    assert recorder.made == 1
    assert net.rows[:2] == [5, 6], "as they are, until it is worth it"


def test_other_shapes_types_and_values_have_their_own() -> None:
    layer, recorder, _ = graphed()
    for _ in range(WORTH + 1):
        run(layer, 2)
        run(layer, 2, scale=2.0)
        run(layer, 2, table=torch.ones(4))
        run(layer, 2, table=torch.ones(5))
        run(layer, 2, table=torch.ones(4, dtype=torch.int64))
    assert recorder.made == 5


def test_an_output_is_the_callers_own() -> None:
    layer, _, _ = graphed()
    outputs = [run(layer, 2) for _ in range(WORTH + 3)]
    kept = [output.clone() for output in outputs]
    run(layer, 2)
    assert all(torch.equal(one, other) for one, other in zip(outputs, kept, strict=True))


@pytest.mark.parametrize("other", [object(), {1}, torch.rand(2, 3).to_sparse()])
def test_what_cannot_be_told_runs_as_it_is(other: Any) -> None:
    sample = torch.rand(2, 3)
    assert key_of({"sample": sample, "other": other}, 2, 2) is None
    layer, recorder, _ = graphed()
    for _ in range(WORTH + 1):
        layer({"sample": sample, "other": other}, 2)
    assert recorder.made == 0


def test_a_table_as_long_as_there_are_rows_is_no_row_of_each() -> None:
    """Padded it would be another table: the first replay shows it."""
    layer, _, _ = graphed()
    for _ in range(WORTH + 2):
        run(layer, 5, table=torch.rand(5, 5))
    assert layer.replays == 0
    for _ in range(WORTH + 1):
        run(layer, 5, table=torch.rand(7, 5))
    assert layer.replays == 1


def test_the_log_says_once_that_nothing_is_recorded(told: list[logging.LogRecord]) -> None:
    layer, recorder, _ = graphed()
    recorder.refuse = RuntimeError("operation not permitted when stream is capturing")
    for rows in (1, 2, 4, 8):
        for _ in range(WORTH + 2):
            run(layer, rows)
    assert (recorder.made, layer.replays) == (0, 0)
    (line,) = told
    assert line.getMessage() == "forwards of this network are not recorded"
    assert "operation not permitted" in vars(line)["fault"]


def test_a_replay_that_draws_something_else_is_not_used(told: list[logging.LogRecord]) -> None:
    layer, recorder, _ = graphed()
    recorder.spoil = 0.5
    for _ in range(WORTH + 2):
        run(layer, 2)
    assert layer.replays == 0
    assert "draws something else" in vars(told[0])["fault"]


def test_those_not_used_for_longest_go_first() -> None:
    layer, recorder, _ = graphed(budget=20)
    for rows in (1, 2):
        for _ in range(WORTH):
            run(layer, rows)
    run(layer, 1)
    for _ in range(WORTH):
        run(layer, 4)  # the third, for which that of two rows goes
    assert recorder.made == 3
    run(layer, 1)
    assert layer.replays == 2
    for _ in range(WORTH + 1):
        run(layer, 2)
    assert (recorder.made, layer.replays) == (4, 3)


def test_memory_that_runs_out_while_one_is_recorded_costs_all_of_them() -> None:
    layer, recorder, _ = graphed()
    for _ in range(WORTH):
        run(layer, 1)
    recorder.refuse = torch.OutOfMemoryError("CUDA out of memory")
    for _ in range(WORTH + 2):
        run(layer, 2)
    assert (recorder.emptied, layer.replays) == (1, 0)


def test_graphs_go_before_a_group_is_split(batcher: Batcher) -> None:
    recorder = CpuRecorder()
    batcher.graphs = batcher.forward = Graphed(plain(batcher.denoiser), recorder, 1000)
    for _ in range(WORTH + 1):
        together(batcher, [1.0, 2.0])
    assert (recorder.made, recorder.emptied) == (1, 0)

    def full(sample: torch.Tensor) -> None:
        if not recorder.emptied:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network(batcher).check = full
    rows = len(network(batcher).rows)
    assert together(batcher, [1.0, 2.0, 3.0]) == [2.0, 4.0, 6.0]
    assert recorder.emptied == 1
    assert network(batcher).rows[rows:] == [3, 3], "tried again whole"
    network(batcher).check = lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    assert all(isinstance(one, OutOfMemory) for one in together(batcher, [1.0, 2.0]))


def test_pictures_are_the_same_with_recordings() -> None:
    """One task and eight, and one that is resumed, through the real pipeline."""
    settings = Settings(dtype="float32", max_batch=8)
    engine = PipelineEngine(*load_pipeline(settings), Compute())
    warm_up(engine, settings)
    request = _request(engine, 6)
    asked = [request.model_copy(update={"seed": seed, "prompt": "fox" * seed}) for seed in range(8)]

    def draw(one: Any) -> Any:
        return pixels(engine.run(_call(engine, one), NoObserver()).pictures)

    before = [draw(one) for one in asked]
    recorder = CpuRecorder()
    engine.batcher.graphs = engine.batcher.forward = Graphed(engine.batcher.forward, recorder, 10**9)
    alone = [draw(one) for one in asked]
    assert recorder.made == 1
    assert engine.batcher.graphs.replays > 30
    assert all((one == other).all() for one, other in zip(before, alone, strict=True))
    met = all_of([partial(draw, one) for one in asked])
    assert recorder.made > 1
    assert max(abs(one - other).max() for one, other in zip(met, before, strict=True)) <= 1 / 255
    engine.close()
