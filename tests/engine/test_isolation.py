"""What a task's pipeline shares with the others, the networks, and what is its own: everything else."""

from __future__ import annotations

import copy
import inspect
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import AutoTokenizer

from handler.engine.anatomy import denoisers
from handler.engine.batcher import Batcher
from handler.engine.calls import SavedOutputs, TaskCalls
from handler.engine.cards import card_of
from handler.engine.isolation import networks, own
from handler.engine.reading import Reading
from handler.engine.running import PipelineEngine
from handler.engine.seam import StandIn, TaskTokenizer
from handler.settings import BUILT_IN_MODEL

from .test_families import run_together, stable_diffusion

if TYPE_CHECKING:
    from handler.engine.compute import Compute

pytestmark = pytest.mark.usefixtures("one_core")
NETWORK = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(BUILT_IN_MODEL / "tokenizer"))


def test_a_stand_in_is_like_what_it_stands_for() -> None:
    stand_in = cast("Any", StandIn(NETWORK))
    assert isinstance(stand_in, torch.nn.Sequential)
    assert list(stand_in.modules()) == list(NETWORK.modules())
    assert [name for name, _ in stand_in.named_parameters()] == [name for name, _ in NETWORK.named_parameters()]
    assert stand_in.state_dict().keys() == NETWORK.state_dict().keys()
    assert (len(stand_in), list(stand_in), stand_in[0]) == (2, list(NETWORK), NETWORK[0])
    assert stand_in
    assert inspect.signature(stand_in.forward) == inspect.signature(NETWORK.forward)
    rows = torch.ones(1, 4)
    assert torch.equal(stand_in(rows), NETWORK(rows))


def test_what_is_changed_through_a_stand_in_is_told() -> None:
    network = copy.deepcopy(NETWORK)
    changes: list[str] = []
    stand_in = cast("Any", StandIn(network, changes.append))
    stand_in.training = True
    stand_in.add_module("last", torch.nn.Tanh())
    assert network[-1] is network.last
    assert changes == ["training", "add_module"]


def test_what_one_task_sets_on_a_tokenizer_is_its_own(tokenizer: Any) -> None:
    """As Sana and others do: they set the side and call it."""
    lock = threading.RLock()
    one, other = (cast("Any", TaskTokenizer(tokenizer, lock, Reading())) for _ in range(2))
    one.padding_side = "left"

    def ids(mine: Any) -> list[int]:
        found: list[int] = mine("a fox", padding="max_length", max_length=12, truncation=True).input_ids
        return found

    usual = ids(other)
    assert usual[0] == tokenizer.bos_token_id
    assert sorted(ids(one)) == sorted(usual)
    assert ids(one)[-1] == usual[usual.index(tokenizer.eos_token_id)]
    assert ids(one) != usual
    assert (one.padding_side, other.padding_side, tokenizer.padding_side) == ("left", "right", "right")
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == (None, None)
    assert isinstance(one, type(tokenizer))
    assert len(one) == len(tokenizer)


def test_tokenizers_set_in_many_ways_at_once(tokenizer: Any) -> None:
    lock, wrong = threading.RLock(), []

    def use(number: int) -> None:
        mine = cast("Any", TaskTokenizer(tokenizer, lock, Reading()))
        mine.padding_side = ("left", "right")[number % 2]
        for _ in range(50):
            got = mine("a red fox", padding="max_length", max_length=10 + number, truncation=True).input_ids
            if len(got) != 10 + number or (got[-1] == got[-2]) != bool(number % 2):
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Combined(StableDiffusionPipeline):  # type: ignore[misc]
    """Draws with another pipeline inside, as Kandinsky's combined ones do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder_pipe = StableDiffusionPipeline(*args, **kwargs)
        self.decoder_pipe.set_progress_bar_config(disable=True)
        self.guider = SimpleNamespace(seen=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.guider.seen += 1
        assert self.guider.seen == 1, "another task has left something here"
        return self.decoder_pipe(*args, **kwargs)


@pytest.fixture
def combined() -> Combined:
    torch.manual_seed(0)
    pipe = stable_diffusion().pipe
    return Combined(**pipe.components, requires_safety_checker=False)


def test_a_tasks_pipeline_shares_the_networks_and_nothing_else(combined: Combined) -> None:
    stood: list[Any] = []

    def stand_in(component: Any) -> Any:
        stood.append(component)
        return StandIn(component) if isinstance(component, torch.nn.Module) else component

    mine: Any = own(combined, stand_in)
    assert mine.scheduler is not combined.scheduler
    assert mine.scheduler is mine.decoder_pipe.scheduler, "what they shared they share"
    assert mine.unet is mine.decoder_pipe.unet
    assert mine.guider is not combined.guider
    assert mine.image_processor is not combined.image_processor
    assert [id(one) for one in networks(mine).values()] == [id(one) for one in dict.fromkeys(networks(mine).values())]
    assert len(stood) == len({id(one) for one in stood})
    assert combined.decoder_pipe.unet is combined.unet, "the shared one is as it was"


def test_a_pipeline_in_a_pipeline_is_seen_step_by_step(combined: Combined, compute: Compute) -> None:
    family = stable_diffusion()
    engine = PipelineEngine(combined, card_of(combined, "tiny", None, "float32", {}), compute, capacity=3)
    outcomes = run_together(engine, [family.call(task) for task in range(1, 4)])
    assert [type(one).__name__ for one in outcomes] == ["Developed"] * 3
    assert engine.batcher.calls > engine.batcher.forwards > 0


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.ended: list[int] = []

    def begins(self, running: object) -> None:
        """Needs none."""

    def at_step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))

    def all_drawn(self, steps: int) -> None:
        self.ended.append(steps)


def test_of_two_calls_a_step_each_step_is_told_once(compute: Compute) -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    steps = Steps()
    network = torch.nn.Linear(2, 2)
    batcher = Batcher(network, compute)
    compute.serve(batcher)
    calls = TaskCalls(batcher, steps, SavedOutputs({}))
    calls.begin(SimpleNamespace(scheduler=scheduler))
    assert "generator" in inspect.signature(scheduler.step).parameters, "as pipelines look for it"
    for at in scheduler.timesteps:
        for _ in range(2):
            calls((torch.ones(1, 2),), {})
        scheduler.step(torch.ones(1, 4, 2, 2), at, torch.ones(1, 4, 2, 2))
    assert steps.seen == [(0, 3), (1, 3), (2, 3)]
    assert steps.ended == [3]


def test_a_scheduler_that_is_copied_on_the_way_is_counted_too(compute: Compute) -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    steps = Steps()
    calls = TaskCalls(Batcher(torch.nn.Linear(2, 2), compute), steps, SavedOutputs({}))
    calls.begin(SimpleNamespace(scheduler=scheduler))
    another = copy.deepcopy(scheduler)
    another.set_timesteps(7)
    for at in another.timesteps[:2]:
        another.step(torch.ones(1, 4, 2, 2), at, torch.ones(1, 4, 2, 2))
    assert steps.ended == [2]


def test_two_denoisers_get_a_seam_each(combined: Combined) -> None:
    second = copy.deepcopy(combined.unet)
    combined.__dict__["unet_2"] = second
    assert list(denoisers(combined).values()) == [combined.unet, second]
