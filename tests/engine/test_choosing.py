"""What makes forwards fast is chosen by timing, within what settings leave open; what is not there is refused."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.contract.request import GenerationRequest
from handler.engine import attention, choosing
from handler.engine.choosing import Choice, choose, first_choice, hooked
from handler.engine.compute import Compute
from handler.engine.loading import load_pipeline
from handler.engine.proof import NoObserver
from handler.engine.running import PipelineEngine
from handler.engine.timing import Watch
from handler.engine.warmup import warm_up
from handler.errors import ModelUnavailable
from handler.settings import Settings

from ..families import language_models, unets
from .callers import all_of, network, together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from handler.engine.batcher import Batcher

pytestmark = [pytest.mark.usefixtures("one_core"), pytest.mark.filterwarnings("ignore")]  # diffusers' deprecations
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SETTINGS = Settings(dtype="float32", max_batch=2)


def stand(network: Any, device: torch.device = CUDA) -> Any:
    """A batcher as far as choosing looks at it."""
    return SimpleNamespace(denoiser=network, device=device)


@pytest.fixture(scope="module")
def unet() -> Any:
    return unets.stable_diffusion().unet


@pytest.fixture(scope="module")
def transformer() -> Any:
    return language_models.qwen_image().transformer


def timer(times: dict[str, float]) -> tuple[Callable[[Choice], float | None], list[Choice]]:
    """Seconds of a choice: the product of the parts of what it has. Parts that are not named cannot be used."""
    asked: list[Choice] = []

    def seconds(choice: Choice) -> float | None:
        asked.append(choice)
        used = [name for name in ("channels_last", "fused", "graphs", "compiled") if getattr(choice, name)]
        used += [choice.attention] if choice.attention else []
        if not all(name in times for name in used):
            return None
        took = 1.0
        for name in used:
            took *= times[name]
        return took

    return seconds, asked


def test_each_part_is_kept_if_it_is_faster_with_what_was_kept_before(unet: Any) -> None:
    seconds, _ = timer({"channels_last": 1.1, "fused": 0.99, "graphs": 0.5, "compiled": 0.9})
    assert choose(Choice(), stand(unet), SETTINGS, seconds) == Choice(graphs=True, compiled=True)
    seconds, _ = timer({"channels_last": 0.8, "fused": 0.9, "graphs": 1.0})
    assert choose(Choice(), stand(unet), SETTINGS, seconds) == Choice(channels_last=True, fused=True)


def test_a_transformers_attention_is_the_fastest_that_is_installed(
    transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "installed", lambda: ["flash", "xformers", "_native_cudnn"])
    seconds, asked = timer({"flash": 0.9, "_native_cudnn": 0.7, "graphs": 0.9})
    assert choose(Choice(), stand(transformer), SETTINGS, seconds) == Choice(attention="_native_cudnn", graphs=True)
    assert not any(one.channels_last or one.fused for one in asked), "they are for networks of convolutions"


def test_what_settings_fix_is_not_tried(unet: Any) -> None:
    seconds, asked = timer({})
    fixed = replace(SETTINGS, graphs="0", compile="0")
    choose(first_choice(unet, fixed, CUDA, "float16"), stand(unet), fixed, seconds)
    assert not any(one.graphs or one.compiled for one in asked)
    fixed = replace(SETTINGS, graphs="1", compile="1")
    first = first_choice(unet, fixed, CUDA, "float16")
    assert (first.graphs, first.compiled) == (True, True)


def test_on_a_cpu_nothing_is_timed(unet: Any) -> None:
    seconds, asked = timer({})
    assert choose(Choice(), stand(unet, CPU), SETTINGS, seconds) == Choice()
    assert asked == []


def test_memory_format_on_a_cpu_is_that_of_its_size_and_dtype(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not first_choice(unet, SETTINGS, CPU, "bfloat16").channels_last
    monkeypatch.setattr(choosing, "LARGE", 1)
    assert first_choice(unet, SETTINGS, CPU, "bfloat16").channels_last
    assert not first_choice(unet, SETTINGS, CPU, "float32").channels_last
    assert not first_choice(unet, SETTINGS, CUDA, "bfloat16").channels_last, "there it is measured"


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[PipelineEngine]:
    build = getattr(request, "param", unets.stable_diffusion)
    build().save_pretrained(tmp_path)
    made = PipelineEngine(*load_pipeline(replace(SETTINGS, model_id=str(tmp_path))), Compute())
    yield made
    made.close()


def test_what_was_chosen_is_in_use(engine: PipelineEngine) -> None:
    unet: Any = engine.batcher.denoiser
    engine.use(Choice(channels_last=True, fused=True), SETTINGS)
    convolution = next(one for one in unet.modules() if isinstance(one, torch.nn.Conv2d) and one.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert any(getattr(one, "fused_projections", False) for one in unet.modules())
    engine.use(Choice(), SETTINGS)
    assert convolution.weight.is_contiguous()
    assert not any("Fused" in type(one).__name__ for one in unet.attn_processors.values())
    assert not any(name.endswith("to_qkv.weight") for name in unet.state_dict())
    warm_up(engine, SETTINGS)
    assert engine.batcher.merging


def test_what_a_gpu_is_faster_with_is_proven_and_kept(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a load on CUDA: chosen by forwards of this network, in use when merging is proven."""
    monkeypatch.setattr(choosing, "_open", lambda *_: [{"channels_last": True}, {"fused": True}, {"compiled": True}])
    paces = iter([1.0, 0.5, 0.6, 0.9])
    monkeypatch.setattr("handler.engine.warmup.pace", lambda _: next(paces))
    used: list[Choice] = []
    use = engine.use

    def noted(choice: Choice, settings: Settings) -> Choice:
        used.append(choice)
        return use(choice, settings)

    monkeypatch.setattr(engine, "use", noted)
    warm_up(engine, SETTINGS)
    assert used[-1] == Choice(channels_last=True)
    assert len(used) == 6, "the first, four that are timed, the best"
    assert engine.batcher.merging
    used.clear()
    warm_up(engine, SETTINGS)
    assert used == [Choice(channels_last=True)], "what is kept is not timed again"


def test_graphs_without_cuda_are_refused(engine: PipelineEngine) -> None:
    with pytest.raises(ModelUnavailable, match="GRAPHS=1: CUDA alone has graphs, and the device is cpu"):
        warm_up(engine, replace(SETTINGS, graphs="1"))


def test_attention_that_would_do_nothing_is_refused(engine: PipelineEngine) -> None:
    with pytest.raises(ModelUnavailable, match="ATTENTION=native would do nothing: UNet2DConditionModel"):
        warm_up(engine, replace(SETTINGS, attention="native"))


@pytest.mark.parametrize("engine", [language_models.qwen_image], indirect=True)
def test_an_attention_backend_is_set_by_name(engine: PipelineEngine) -> None:
    with pytest.raises(ModelUnavailable, match=r"ATTENTION=fast: must be auto or one of .*flash, .*native"):
        warm_up(engine, replace(SETTINGS, attention="fast"))
    with pytest.raises(ModelUnavailable, match="ATTENTION=flash_hub: must be auto or one of"):
        warm_up(engine, replace(SETTINGS, attention="flash_hub"))
    with pytest.raises(ModelUnavailable, match=r"ATTENTION=sage cannot be used here: .*sageattention"):
        warm_up(engine, replace(SETTINGS, attention="sage"))
    warm_up(engine, replace(SETTINGS, attention="_native_math"))
    backends = {getattr(one, "_attention_backend", "") for one in _processors(engine)}
    assert {str(getattr(one, "value", one)) for one in backends} == {"_native_math"}
    engine.use(Choice(), SETTINGS)
    assert {one._attention_backend for one in _processors(engine)} == {None}


def _processors(engine: PipelineEngine) -> list[Any]:
    found = [getattr(one, "processor", None) for one in engine.batcher.denoiser.modules()]
    return [one for one in found if one is not None]


def test_none_of_them_is_downloaded() -> None:
    assert "native" in attention.names()
    assert not any("hub" in name for name in attention.names())
    assert set(attention.EXACT) <= set(attention.names())


def test_hooks_are_seen(unet: Any) -> None:
    assert not hooked(unet)
    handle = unet.mid_block.register_forward_pre_hook(lambda *_: None)
    assert hooked(unet)
    handle.remove()


def test_no_forward_has_more_rows_than_are_worth_it(batcher: Batcher) -> None:
    """Measured with rows of two numbers: of those with four only half as many."""
    together(batcher, [1.0])
    batcher.bound(2)
    rows = network(batcher).rows
    rows.clear()
    assert together(batcher, [1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert rows == [2, 2, 1]
    assert batcher.last_call is not None
    assert batcher._most_of(replace(batcher.last_call, size=4)) == 1
    assert batcher._most_of(replace(batcher.last_call, size=1)) == 4


class Moment:
    """An event of a device that works at its own pace: ``now`` is its clock in ms, ``done`` up to when it has got."""

    now = done = 0.0

    def record(self) -> None:
        self.at = Moment.now

    def query(self) -> bool:
        return self.at <= Moment.done

    def synchronize(self) -> None:
        Moment.done = max(Moment.done, self.at)

    def elapsed_time(self, end: Moment) -> float:
        return end.at - self.at


def test_a_devices_seconds_are_those_of_its_events() -> None:
    """A launch takes no time; the first forward is waited for, later ones are known when they are done."""
    watch = Watch(Moment)
    spent: deque[float] = deque()
    for took in (40.0, 20.0, 30.0):
        watch.begin()
        Moment.now += took
        spent.append(watch.end())
    assert list(spent) == [0.04, 0.04, 0.04]
    Moment.done = Moment.now
    watch.begin()
    Moment.now += 50
    assert watch.end() == 0.03, "the last that is done"


@pytest.mark.parametrize("kept", [False, True], ids=["first start", "with what was kept"])
def test_nothing_is_compiled_while_tasks_are_served(
    engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, kept: bool
) -> None:
    """Dynamo compiles anew for each mode of gradients, size of batch and the like: all of them come at load."""
    network: Any = engine.batcher.denoiser
    own = network.compile_repeated_blocks
    monkeypatch.setattr(network, "compile_repeated_blocks", lambda: own(backend="eager"))
    settings = replace(SETTINGS, compile="1", max_batch=0, cache_dir=str(tmp_path))
    warm_up(engine, settings)
    if kept:
        torch._dynamo.reset()
        warm_up(engine, settings)
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    assert before > 0
    engine.capacity = 8
    request = engine.card.resolve(GenerationRequest(prompt="a", num_inference_steps=4))

    def draw(at: int) -> Any:
        one = request.model_copy(update={"seed": at, "num_inference_steps": 3 + at % 3})
        return engine.run(engine.arguments(one), NoObserver())

    drawn = all_of([partial(draw, at) for at in range(8)])
    assert not [one for one in drawn if isinstance(one, Exception)]
    draw(1)
    assert counted["unique_graphs"] == before
    torch._dynamo.reset()
