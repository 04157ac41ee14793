"""What a snapshot of a task holds: never fewer steps than were loaded, and nothing at all where it cannot be exact."""

from __future__ import annotations

import gc
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from handler.contract.request import GenerationRequest
from handler.engine import checkpoint
from handler.engine.batcher import Batcher
from handler.engine.calls import SavedOutputs, TaskCalls
from handler.engine.checkpoint import identity, name_of, pack, unpack, weights_of

from ..support import CARD

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from handler.engine import Running
    from handler.engine.compute import Compute

MADE_BY = {"model": "a test"}
STEPS = 5


class Answers(torch.nn.Module):
    """A network whose answer to a sample is what ``answer`` makes of it."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.answer = answer

    def forward(self, sample: torch.Tensor, **_: Any) -> Any:
        return self.answer(sample)


class Notes:
    """Takes a snapshot at the beginning and before each step, with the steps that it is said to hold."""

    def __init__(self) -> None:
        self.running: Running | None = None
        self.steps: list[int] = []
        self.held: list[tuple[int, int]] = []

    def begins(self, running: Running) -> None:
        self.running = running
        self.look()

    def at_step(self, step: int, steps: int) -> None:
        self.steps.append(step)
        self.look()

    def look(self) -> None:
        assert isinstance(self.running, TaskCalls)
        self.held.append((self.running.saved_steps(), len(unpack(self.running.snapshot(), MADE_BY))))


def calls_of(
    compute: Compute,
    notes: Notes,
    body: bytes = b"",
    answer: Callable[[torch.Tensor], Any] = lambda sample: (sample + 1,),
) -> TaskCalls:
    batcher = Batcher(Answers(answer), compute)
    compute.serve(batcher)
    pipe = types.SimpleNamespace(scheduler=types.SimpleNamespace(timesteps=range(STEPS)))
    calls = TaskCalls(batcher, notes, SavedOutputs(MADE_BY, body))
    calls.begin(pipe)
    return calls


def step(calls: TaskCalls, at: int) -> Any:
    return calls((), {"sample": torch.full((1, 4, 2, 2), float(at))})


def test_a_snapshot_holds_all_that_was_loaded_from_the_beginning_on(compute: Compute) -> None:
    notes = Notes()
    calls = calls_of(compute, notes, pack([torch.full((1, 4, 2, 2), float(at)) for at in range(3)], MADE_BY))
    for at in range(STEPS):
        step(calls, at)
        notes.look()
    begun, *later = notes.held
    assert begun == (3, 3)
    # after each of three replayed steps; then before and after each that is computed
    assert later == [(3, 3)] * 3 + [(3, 3), (4, 4), (4, 4), (5, 5)]
    assert notes.steps == [3, 4]


def test_what_was_loaded_comes_before_what_was_computed(compute: Compute) -> None:
    notes = Notes()
    calls = calls_of(compute, notes, pack([torch.full((1, 4, 2, 2), 10.0 + at) for at in range(3)], MADE_BY))
    for at in range(2):
        step(calls, at)
    half = [float(one[0, 0, 0, 0]) for one in unpack(calls.snapshot(), MADE_BY)]
    for at in range(2, STEPS):
        step(calls, at)
    whole = [float(one[0, 0, 0, 0]) for one in unpack(calls.snapshot(), MADE_BY)]
    assert half == [10.0, 11.0, 12.0]
    assert whole == [10.0, 11.0, 12.0, 4.0, 5.0]


def test_nothing_is_held_of_a_checkpoint_of_something_else(compute: Compute) -> None:
    notes = Notes()
    step(calls_of(compute, notes, pack([torch.ones(1)], {"model": "another"})), 0)
    assert notes.held[0] == (0, 0)
    assert notes.steps == [0]


def test_nothing_is_held_where_the_network_writes_into_an_argument(compute: Compute) -> None:
    """Qwen-Image 2.1's first call fills a cache, which the later ones read: replayed, it would leave it empty."""
    calls = calls_of(compute, Notes())
    for at in range(2):
        calls((), {"sample": torch.full((1, 4, 2, 2), float(at)), "kv_cache": types.SimpleNamespace()})
    assert (calls.snapshot(), calls.saved_steps()) == (b"", 0)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda sample: (list(sample),), id="a list of tensors, as Z-Image"),
        pytest.param(lambda sample: (sample, sample), id="several tensors"),
        pytest.param(lambda sample: {"sample": sample}, id="a dict"),
        pytest.param(lambda sample: sample, id="no tuple"),
        pytest.param(lambda sample: (sample.to_sparse(),), id="a sparse tensor"),
        pytest.param(lambda _: (), id="nothing"),
        pytest.param(lambda _: None, id="none"),
    ],
)
def test_an_output_that_cannot_be_saved_is_no_fault(
    compute: Compute, told: list[logging.LogRecord], answer: Callable[[torch.Tensor], Any]
) -> None:
    notes = Notes()
    calls = calls_of(compute, notes, answer=answer)
    for at in range(3):
        step(calls, at)
    another = TaskCalls(calls._batcher, Notes(), SavedOutputs(MADE_BY))
    another.begin(calls._pipe)
    step(another, 0)
    assert (calls.snapshot(), another.snapshot()) == (b"", b"")
    assert calls.saved_steps() == 0
    assert calls.preview() == b""
    assert notes.steps == [0, 1, 2]
    (line,) = told  # for both tasks, however often they are asked
    assert "cannot be saved" in line.getMessage()


def test_outputs_that_share_memory_are_saved(compute: Compute) -> None:
    one = torch.ones(1, 4, 2, 2)
    calls = calls_of(compute, Notes(), answer=lambda _: (one,))
    for at in range(2):
        step(calls, at)
    assert len(unpack(calls.snapshot(), MADE_BY)) == 2


def test_outputs_leave_the_device_as_they_come(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy on the host is another tensor, only the last output stays: the preview needs it."""
    monkeypatch.setattr(checkpoint, "to_host", lambda output: output.clone())
    made: list[weakref.ref[torch.Tensor]] = []

    def answer(sample: torch.Tensor) -> tuple[torch.Tensor]:
        output = sample + 1
        made.append(weakref.ref(output))
        return (output,)

    calls = calls_of(compute, Notes(), answer=answer)
    for at in range(STEPS):
        step(calls, at)
    calls._batcher.last_call = None
    compute.run(gc.collect)
    assert [one() is None for one in made] == [True] * (STEPS - 1) + [False]
    assert len(unpack(calls.snapshot(), MADE_BY)) == STEPS


def request(**given: Any) -> GenerationRequest:
    return CARD.resolve(GenerationRequest(prompt="fox", seed=5, **given))


def test_a_field_that_a_later_version_adds_changes_no_other_request() -> None:
    class Later(GenerationRequest):
        a_new_one: str | None = None
        another: int = 3

    now = request()
    later = Later.model_validate(now.model_dump())
    assert identity(CARD, "w", later) == identity(CARD, "w", now)
    assert identity(CARD, "w", later.model_copy(update={"another": 4})) != identity(CARD, "w", now)


def test_the_dtype_stands_by_itself_in_an_identity() -> None:
    one = identity(CARD, "w", request())
    other = identity(CARD.model_copy(update={"dtype": "bfloat16"}), "w", request())
    assert {name for name in one if one[name] != other[name]} == {"dtype"}
    assert name_of(one) != name_of(other)


def test_a_name_is_short_and_for_all_that_makes_the_picture() -> None:
    asked = request()
    name = name_of(identity(CARD, "w", asked))
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
    others = [
        identity(CARD, "v", asked),
        identity(CARD.model_copy(update={"revision": "2"}), "w", asked),
        identity(CARD, "w", request(num_images=2)),
        identity(CARD, "w", asked, b"an image"),
        identity(CARD, "w", asked, b"another image"),
    ]
    assert len({name, *map(name_of, others)}) == 1 + len(others)
    same = request(task_id="t", tags=["a"], output_format="webp", quality=3)
    assert name_of(identity(CARD, "w", same)) == name


def test_quantised_weights_are_told_apart_by_what_they_are_made_of() -> None:
    """As torchao's: a tensor of several, which refuses most of what other tensors can do."""

    def told(first: float, second: float) -> str:
        network = torch.nn.Linear(2, 2)
        made = TwoTensor(torch.full((2, 2), first), torch.full((2, 2), second))  # type: ignore[no-untyped-call]
        network.weight = torch.nn.Parameter(made, requires_grad=False)
        with torch.no_grad():
            network.bias.fill_(0)
        return weights_of([network])

    assert told(1, 2) == told(1, 2)
    assert len({told(1, 2), told(2, 1), told(1, 3), told(2, 2)}) == 4
