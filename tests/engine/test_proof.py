"""What is proven at load, and what becomes of a model that fails its proof."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.engine import starting
from handler.engine.compute import Compute
from handler.engine.loading import load_pipeline, pick_dtype
from handler.engine.proof import UNMERGEABLE
from handler.engine.running import PipelineEngine
from handler.engine.warmup import warm_up
from handler.errors import ModelUnavailable, NotFinite
from handler.settings import Settings

from ..families import unets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_core")
PLAIN = Settings(dtype="float32", max_batch=4)


@pytest.fixture
def loaded() -> Iterator[PipelineEngine]:
    engine = PipelineEngine(*load_pipeline(PLAIN), Compute())
    yield engine
    engine.close()


def test_what_is_proven_is_drawn_together(loaded: PipelineEngine) -> None:
    warm_up(loaded, PLAIN)
    assert (loaded.capacity, loaded.batcher.merging) == (4, True)


def test_a_pipeline_that_changes_its_networks_draws_one_task_at_a_time(loaded: PipelineEngine) -> None:
    """As those with perturbed-attention guidance do: whatever MAX_BATCH says."""
    pipe = loaded.pipe
    own, processors = type(pipe).__call__, dict(pipe.unet.attn_processors)

    class Perturbed(type(pipe)):  # type: ignore[misc]
        @functools.wraps(own)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.unet.set_attn_processor(dict(processors))  # which empties it
            return own(self, *args, **kwargs)

    pipe.__class__ = Perturbed
    warm_up(loaded, PLAIN)
    assert (loaded.capacity, loaded.batcher.merging) == (1, False)


def test_a_pipeline_whose_calls_no_two_tasks_can_share_draws_one_at_a_time_and_says_so(
    loaded: PipelineEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """As those whose network fills a cache at the first step, each task its own."""
    own = type(loaded.pipe).__call__

    class Caching(type(loaded.pipe)):  # type: ignore[misc]
        @functools.wraps(own)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return own(self, *args, cross_attention_kwargs={"cache": SimpleNamespace()}, **kwargs)

    loaded.pipe.__class__ = Caching
    warm_up(loaded, PLAIN)
    assert (loaded.capacity, loaded.batcher.merging) == (1, False)
    assert UNMERGEABLE in [vars(line).get("reason") for line in caplog.records]


def test_a_pipeline_that_draws_at_random_draws_one_task_at_a_time(loaded: PipelineEngine) -> None:
    decode = loaded.pipe.vae.decode
    loaded.pipe.vae.decode = lambda *args, **kwargs: tuple(one + torch.rand(()) for one in decode(*args, **kwargs))
    warm_up(loaded, PLAIN)
    assert (loaded.capacity, loaded.batcher.merging) == (1, False)


def test_a_pipeline_whose_steps_are_not_seen_is_refused(loaded: PipelineEngine) -> None:
    own = type(loaded.pipe).__call__

    class Hidden(type(loaded.pipe)):  # type: ignore[misc]
        @functools.wraps(own)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            network = self.unet._inner if hasattr(self.unet, "_inner") else self.unet
            self.__dict__["unet"] = network
            return own(self, *args, **kwargs)

    loaded.pipe.__class__ = Hidden
    with pytest.raises(ModelUnavailable, match="draws without a call of its UNet2DConditionModel"):
        warm_up(loaded, PLAIN)


def test_a_pipeline_that_is_another_through_the_engine_is_refused(
    loaded: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = loaded.untouched
    monkeypatch.setattr(loaded, "untouched", lambda call: 1 - untouched(call))
    with pytest.raises(ModelUnavailable, match="another picture through the engine than by itself"):
        warm_up(loaded, PLAIN)


def test_few_steps_are_no_reason_to_refuse(loaded: PipelineEngine) -> None:
    """Some pipelines take a fixed number of steps and no other."""
    own = type(loaded.pipe).__call__

    class Fixed(type(loaded.pipe)):  # type: ignore[misc]
        @functools.wraps(own)
        def __call__(self, *args: Any, num_inference_steps: int = 2, **kwargs: Any) -> Any:
            if num_inference_steps == 3:
                raise ValueError("not three")
            return own(self, *args, num_inference_steps=2, **kwargs)

    loaded.pipe.__class__ = Fixed
    warm_up(loaded, PLAIN)
    assert loaded.batcher.merging


@pytest.mark.parametrize("broken", ["measure", "fit_previewer", "timed"])
def test_a_measurement_that_fails_is_left_out(
    loaded: PipelineEngine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(f"handler.engine.warmup.{broken}", fails)
    warm_up(loaded, Settings(dtype="float32", previews=True, max_batch=0 if broken == "measure" else 4))
    assert loaded.capacity == (1 if broken == "measure" else 4)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_what_is_not_finite_is_no_picture(loaded: PipelineEngine, part: str) -> None:
    with torch.no_grad():
        next(getattr(loaded.pipe, part).parameters() if part == "unet" else loaded.pipe.vae.decoder.parameters()).fill_(
            float("nan")
        )
    with pytest.raises(NotFinite, match="not finite in float32"):
        warm_up(loaded, PLAIN)


def overflowing(monkeypatch: pytest.MonkeyPatch, *dtypes: str) -> list[str]:
    """From now on models overflow in these; the dtypes that are tried."""
    tried: list[str] = []
    load, draw = starting._start, PipelineEngine.run

    def noted(settings: Settings, fetch: Any, tell: Callable[[tuple[str, str]], None]) -> PipelineEngine:
        def told(dtype_and_name: tuple[str, str]) -> None:
            tried.append(dtype_and_name[0])
            tell(dtype_and_name)

        return load(settings, fetch, told)

    def run(engine: PipelineEngine, *args: Any, **kwargs: Any) -> Any:
        if engine.card.dtype in dtypes:
            raise NotFinite("the picture is not finite")
        return draw(engine, *args, **kwargs)

    monkeypatch.setattr(starting, "_start", noted)
    monkeypatch.setattr(PipelineEngine, "run", run)
    return tried


def test_a_model_that_overflows_is_loaded_in_a_wider_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.engine.loading.pick_dtype", lambda wanted, *_, **__: wanted.replace("auto", "float16"))
    tried = overflowing(monkeypatch, "float16", "bfloat16")
    engine = starting.start(Settings(max_batch=2))
    assert (tried, engine.card.dtype) == (["float16", "bfloat16", "float32"], "float32")
    engine.close()


def test_the_next_start_begins_with_the_wider_dtype(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("handler.engine.loading.pick_dtype", lambda wanted, *_, **__: wanted.replace("auto", "float16"))
    tried = overflowing(monkeypatch, "float16", "bfloat16")
    unets.stable_diffusion().save_pretrained(tmp_path / "model")
    settings = Settings(model_id=str(tmp_path / "model"), max_batch=2)
    for dtypes in (["float16", "bfloat16", "float32"], ["float32"]):
        starting.start(settings).close()
        assert tried == dtypes
        tried.clear()
    starting.start(replace(settings, dtype="float32")).close()
    assert tried == ["float32"]
    tried.clear()
    with pytest.raises(ModelUnavailable, match="cannot be drawn with"):
        starting.start(replace(settings, dtype="float16"))
    assert tried == ["float16"], "what was asked for is tried, whatever is known"
    tried.clear()
    with (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").open("ab") as weights:
        weights.write(b" ")
    with pytest.raises(ModelUnavailable):
        starting.start(settings)
    assert tried == ["float16"], "of other weights nothing is known"


def test_a_dtype_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = overflowing(monkeypatch, "bfloat16")
    with pytest.raises(ModelUnavailable, match="cannot be drawn with: the picture is not finite"):
        starting.start(Settings(dtype="bfloat16"))
    assert tried == ["bfloat16"]


@pytest.mark.parametrize(
    ("native", "stored", "transformer", "picked"),
    [
        (True, "float32", True, "bfloat16"),
        (True, "float32", False, "float16"),
        (True, "float16", True, "float16"),
        (True, "bfloat16", False, "bfloat16"),
        (True, None, True, "bfloat16"),
        (False, "float32", True, "float16"),
        (False, "bfloat16", True, "float16"),
    ],
)
def test_the_dtype_on_cuda(
    monkeypatch: pytest.MonkeyPatch, *, native: bool, stored: str | None, transformer: bool, picked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_dtype("auto", "cuda", stored, transformer=transformer) == picked
    assert pick_dtype("float32", "cuda", stored, transformer=transformer) == "float32"
