"""Texts that are longer than a model reads, and pictures that its safety checker flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from handler.contract.request import GenerationRequest
from handler.engine.cards import card_of
from handler.engine.compute import Compute
from handler.engine.proof import NoObserver
from handler.engine.reading import Reading
from handler.engine.running import PipelineEngine
from handler.engine.warmup import warm_up
from handler.errors import UnsafeContent
from handler.settings import Settings

from ..families import language_models, rectified_flows, unets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.usefixtures("one_core"), pytest.mark.filterwarnings("ignore")]  # diffusers' deprecations


def words(text: str) -> int:
    return len(text.split()) + 2


@pytest.mark.parametrize(
    ("texts", "limits", "warned"),
    [
        ("a fox", [77], []),
        (["word " * 98], [77], [("prompt", "the model reads 77 tokens; 23 more were cut")]),
        ("word " * 75, [77], []),
        ("word " * 76, [77], [("prompt", "the model reads 77 tokens; 1 more were cut")]),
        ("word " * 98, [77, 77], [("prompt", "the model reads 77 tokens; 23 more were cut")]),
        ("word " * 98, [77, 512], []),  # CLIP cuts it, T5 reads it
        ("word " * 600, [77, 512], [("prompt", "the model reads 512 tokens; 90 more were cut")]),
        (["a fox", "nothing " * 99], [77], [("negative_prompt", "the model reads 77 tokens; 24 more were cut")]),
    ],
)
def test_what_is_cut(texts: Any, limits: list[int], warned: list[tuple[str, str]]) -> None:
    reading = Reading()
    for limit in limits:
        reading.note(texts, limit, words)
    negative = "nothing " * 99
    prompt = texts if isinstance(texts, str) else texts[0]
    assert reading.warnings({"prompt": prompt, "negative_prompt": negative}) == warned
    assert reading.limits == set(limits)


def test_a_short_text_is_not_counted() -> None:
    """Most are short, and counting costs each of them a millisecond."""
    Reading().note("a red fox in the snow, at dawn", 77, lambda _: pytest.fail("counted"))


@pytest.fixture
def engine_of() -> Iterator[Callable[[Any], PipelineEngine]]:
    engines: list[PipelineEngine] = []

    def made(pipe: Any) -> PipelineEngine:
        pipe.set_progress_bar_config(disable=True)
        engines.append(PipelineEngine(pipe, card_of(pipe, "a-model", None, "float32", {}), Compute()))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def developed(engine: PipelineEngine, prompt: str, **more: Any) -> Any:
    request = GenerationRequest(prompt=prompt, seed=1, num_inference_steps=2, width=32, height=32, **more)
    return engine.develop(request, NoObserver())


@pytest.mark.parametrize(
    ("build", "limit"),
    [(unets.stable_diffusion, 77), (unets.sdxl, 77), (rectified_flows.flux, 512)],
    ids=["sd", "sdxl", "flux"],
)
def test_a_long_prompt_is_warned_of(engine_of: Callable[[Any], PipelineEngine], build: Any, limit: int) -> None:
    engine = engine_of(build())
    assert developed(engine, "a fox").warnings == ()
    drawn = developed(engine, "x " * 950)
    ((field, message),) = drawn.warnings
    assert field == "prompt"
    assert message.startswith(f"the model reads {limit} tokens; ")
    assert drawn.prompt_tokens == limit


def test_a_long_negative_prompt_is_warned_of(engine_of: Callable[[Any], PipelineEngine]) -> None:
    drawn = developed(engine_of(unets.stable_diffusion()), "a fox", negative_prompt="owl " * 300)
    assert [field for field, _ in drawn.warnings] == ["negative_prompt"]


def test_words_that_a_pipeline_puts_around_are_still_the_prompts(engine_of: Callable[[Any], PipelineEngine]) -> None:
    drawn = developed(engine_of(language_models.qwen_image()), "qzxj" * 490)
    assert [field for field, _ in drawn.warnings] == ["prompt"]


def test_the_card_tells_how_much_is_read(engine_of: Callable[[Any], PipelineEngine]) -> None:
    engine = engine_of(unets.stable_diffusion())
    warm_up(engine, Settings(dtype="float32", max_batch=1))
    assert engine.card.limits.prompt_tokens == 77


def test_a_flagged_picture_keeps_no_other(
    engine_of: Callable[[Any], PipelineEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = unets.stable_diffusion()
    flags = [False, True, False]
    monkeypatch.setattr(type(pipe), "run_safety_checker", lambda _, image, *__: (image, flags))
    engine = engine_of(pipe)
    drawn = developed(engine, "a fox", num_images=3)
    assert drawn.unsafe == {1}
    request = GenerationRequest(prompt="a fox", seed=1, num_images=3)
    assert [(one.unsafe, bool(one.body), one.seed) for one in engine.encode(drawn, request)] == [
        (False, True, 1),
        (True, False, 2),
        (False, True, 3),
    ]
    flags[:] = [True] * 3
    with pytest.raises(UnsafeContent):
        developed(engine, "a fox", num_images=3)
