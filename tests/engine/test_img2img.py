"""Pictures from input images: a pipeline that draws from nothing else, and the variant of one that need not.

The first is a tiny SDXL with random weights, saved and loaded as any model is; the second the built-in model's.
"""

from __future__ import annotations

import copy
import io
import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from handler.api.models import models
from handler.contract.request import GenerationRequest, parse
from handler.engine.anatomy import from_image, taken
from handler.engine.cards import card_of
from handler.engine.compute import Compute
from handler.engine.loading import load_pipeline, tune
from handler.engine.running import PipelineEngine
from handler.engine.starting import start
from handler.errors import InvalidRequest
from handler.settings import BUILT_IN_MODEL, Settings
from handler.work.serving import Generate

from ..engine.test_families import (
    SIDE,
    assert_right,
    autoencoder,
    flux,
    qwen_image,
    run_together,
    stable_diffusion,
    stable_diffusion_3,
    unet,
)
from ..engine.test_families import sdxl as sdxl_family
from ..engine.test_resume import Watch, pixels, stop
from ..forms import picture
from ..support import record_of, sqs_event
from ..work.test_path import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine import Developed

    from ..engine.test_families import Family

TOLERANCE = 1  # of 255
pytestmark = pytest.mark.usefixtures("one_core")


def tiny_sdxl(**text: Any) -> Any:
    """An SDXL img2img pipeline with its two text encoders, all of random weights."""
    torch.manual_seed(0)
    config = CLIPTextConfig.from_pretrained(BUILT_IN_MODEL / "text_encoder", projection_dim=32)
    tokenizer = CLIPTokenizerFast.from_pretrained(BUILT_IN_MODEL / "tokenizer")
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 5 * 8 + 32}
    layers = {"use_linear_projection": True, "transformer_layers_per_block": (1, 2), "cross_attention_dim": 256}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        unet=unet(addition_embed_type="text_time", **sizes, **layers),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),  # draws noise at every step
        requires_aesthetics_score=True,
        **text,
    )


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineEngine]:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny_sdxl().save_pretrained(folder)
    engine = start(Settings(model_id=str(folder), dtype="float32", max_batch=4))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def built_in() -> Iterator[PipelineEngine]:
    pipe, card = load_pipeline(Settings(dtype="float32"))
    engine = PipelineEngine(pipe, card, Compute(), capacity=4)
    yield engine
    engine.close()


@pytest.fixture(params=["sdxl", "built_in"])
def engine(request: pytest.FixtureRequest) -> PipelineEngine:
    made: PipelineEngine = request.getfixturevalue(request.param)
    return made


def task(engine: PipelineEngine, **given: Any) -> GenerationRequest:
    request = {"prompt": "fox", "seed": 5, "num_inference_steps": 10, "image": "any", "strength": 0.7, **given}
    return engine.card.resolve(GenerationRequest.model_validate(request))


def stock(engine: PipelineEngine, request: GenerationRequest, body: bytes) -> Any:
    """The same by the pipeline as diffusers has it, in the same thread: another number of cores rounds otherwise."""
    pipe = copy.copy(engine.from_image)
    pipe.scheduler = type(engine.pipe.scheduler).from_config(engine.pipe.scheduler.config)
    call = engine.arguments(request, Image.open(io.BytesIO(body)).convert("RGB"))

    def draw() -> Any:
        with torch.inference_mode():
            return np.stack([np.asarray(one) for one in pipe(**call).images])

    return engine.compute.run(draw)


def together(engine: PipelineEngine, requests: Sequence[GenerationRequest], bodies: Sequence[bytes]) -> list[Developed]:
    """All at once; none makes its first step before all have come to it."""
    done: list[Any] = [None] * len(requests)
    met = threading.Barrier(len(requests), timeout=30)

    class Meeting(Quiet):
        def at_step(self, step: int, steps: int) -> None:
            if step == 0:
                met.wait()

    def run(at: int) -> None:
        done[at] = engine.develop(requests[at], Meeting(), b"", bodies[at])

    threads = [threading.Thread(target=partial(run, at), daemon=True) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return done


def test_the_card_says_what_a_pipeline_takes(sdxl: PipelineEngine, built_in: PipelineEngine) -> None:
    assert {"image", "strength", "width", "height"} <= set(sdxl.card.parameters)
    assert (sdxl.card.required, sdxl.card.defaults.strength) == (["image"], 0.3)
    assert {"image", "strength"} <= set(built_in.card.parameters)
    assert (built_in.card.required, built_in.card.defaults.strength) == ([], 0.2)
    assert built_in.card.pipeline == "StableDiffusionPipeline"
    baked = json.loads((BUILT_IN_MODEL / "model_card.json").read_text())
    assert {**built_in.card.model_dump(), "dtype": "auto"} == baked


def test_a_pipeline_that_needs_an_image_is_not_asked_without(sdxl: PipelineEngine) -> None:
    assert sdxl.batcher.merging  # and it was proven when it loaded, with an image of its own
    assert sdxl.measured is not None
    (fault,) = parse('{"prompt": "fox"}', sdxl.card).faults
    assert fault.field == "image"


def test_the_variant_shares_the_weights(built_in: PipelineEngine) -> None:
    assert type(built_in.from_image).__name__ == "StableDiffusionImg2ImgPipeline"
    for name in ("unet", "vae", "text_encoder"):
        assert getattr(built_in.from_image, name) is getattr(built_in.pipe, name)
    assert "width" not in taken(built_in.from_image)


@pytest.mark.parametrize("build", [stable_diffusion, sdxl_family, stable_diffusion_3, flux, qwen_image])
def test_other_families_draw_from_images_too(build: Callable[[], Family]) -> None:
    """By the variant that diffusers names like them, as it does alone, and merged."""
    torch.manual_seed(0)
    family = build()
    family.pipe.set_progress_bar_config(disable=True)
    engine = PipelineEngine(family.pipe, card_of(family.pipe, "tiny", None, "float32", {}), Compute(), capacity=2)
    assert type(engine.from_image).__name__ == type(family.pipe).__name__.replace("Pipeline", "Img2ImgPipeline")

    def call(at: int) -> dict[str, Any]:
        given = family.call(at, image=Image.open(io.BytesIO(picture(SIDE, SIDE))).convert("RGB"), strength=0.6)
        return {name: value for name, value in given.items() if name in taken(engine.from_image)}

    wanted = []
    for at in (1, 2):
        pipe = copy.copy(engine.from_image)
        pipe.scheduler = type(family.pipe.scheduler).from_config(family.pipe.scheduler.config)
        wanted.append(pipe(**call(at)).images)
    try:
        for outcome, pictures in zip(run_together(engine, [call(1), call(2)]), wanted, strict=True):
            assert_right(outcome, pictures)
        assert engine.batcher.forwards < engine.batcher.calls
    finally:
        engine.close()


def test_a_family_without_a_variant_draws_from_text_alone() -> None:
    class LoneStableDiffusionPipeline(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        """diffusers knows no other of this name."""

    pipe = LoneStableDiffusionPipeline(**stable_diffusion().pipe.components, requires_safety_checker=False)
    assert from_image(pipe) is None
    card = card_of(pipe, "lone", None, "float32", {})
    assert not {"image", "strength"} & set(card.parameters)
    assert card.defaults.strength is None
    (fault,) = parse('{"prompt": "fox", "image": "any"}', card).faults
    assert "does not take it" in fault.message


def test_a_picture_is_the_stock_pipelines(engine: PipelineEngine) -> None:
    body, request = picture(SIDE, SIDE), task(engine, num_images=2)
    watch = Watch()
    developed = engine.develop(request, watch, b"", body)
    assert np.array_equal(pixels(developed), stock(engine, request, body))
    assert watch.steps == request.steps == 7
    for at, seed in enumerate(request.seeds()):
        alone = engine.develop(task(engine, seed=seed), Watch(), b"", body)
        assert np.abs(pixels(alone)[0].astype(int) - pixels(developed)[at]).max() <= TOLERANCE


def test_the_image_and_the_strength_show(engine: PipelineEngine) -> None:
    body, other = picture(SIDE, SIDE), picture(SIDE, SIDE, "JPEG", quality=5)
    drawn = [
        pixels(engine.develop(task(engine, strength=strength), Watch(), b"", one)).astype(int)
        for strength, one in ((0.5, body), (0.5, other), (0.9, body))
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 2 * TOLERANCE
    assert np.abs(drawn[0] - drawn[2]).max() > 2 * TOLERANCE


def test_tasks_with_an_image_and_without_share_forwards(built_in: PipelineEngine) -> None:
    plain = built_in.card.resolve(GenerationRequest(prompt="owl", seed=1, num_inference_steps=9, width=64, height=64))
    requests = [plain, task(built_in), task(built_in, prompt="a red apple", seed=3, strength=1.0)]
    bodies = [b"", picture(), picture(80, 48)]
    requests[2] = requests[2].model_copy(update={"width": 64, "height": 64})  # scaled, and so merged with the others
    alone = [
        pixels(built_in.develop(one, Watch(), b"", body)).astype(int)
        for one, body in zip(requests, bodies, strict=True)
    ]
    before = built_in.batcher.calls - built_in.batcher.forwards
    done = together(built_in, requests, bodies)
    assert built_in.batcher.calls - built_in.batcher.forwards > before + 5
    assert max(one.batch_size for one in done) == 3
    for one, other in zip(done, alone, strict=True):
        assert np.abs(pixels(one).astype(int) - other).max() <= TOLERANCE


def test_tasks_of_a_pipeline_that_needs_images_share_forwards(sdxl: PipelineEngine) -> None:
    requests = [task(sdxl, prompt=word, seed=at, strength=0.5 + at / 10) for at, word in enumerate(("a", "b", "c"))]
    bodies = [picture(SIDE, SIDE, form) for form in ("PNG", "JPEG", "WEBP")]
    done = together(sdxl, requests, bodies)
    assert max(one.batch_size for one in done) > 1
    for one, request, body in zip(done, requests, bodies, strict=True):
        assert np.abs(pixels(one).astype(int) - stock(sdxl, request, body).astype(int)).max() <= TOLERANCE


def test_a_resumed_picture_is_bit_identical(engine: PipelineEngine) -> None:
    body, request = picture(SIDE, SIDE), task(engine)
    whole = pixels(engine.develop(request, Watch(), b"", body))
    watch = Watch(stop_at=4)
    with pytest.raises(Exception, match="enough"):
        engine.develop(request, watch, b"", body)
    rest = Watch()
    resumed = engine.develop(request, rest, watch.snapshot(), body)
    assert np.array_equal(pixels(resumed), whole)
    assert (resumed.resumed_steps, rest.steps) == (4, 3)
    anew = Watch()
    engine.develop(request, anew, watch.snapshot(), picture(SIDE, SIDE, "JPEG"))
    assert anew.steps == 7, "a checkpoint of another input image is passed over"


def test_a_checkpoint_without_an_image_is_as_before(built_in: PipelineEngine) -> None:
    request = task(built_in, image=None, strength=None)
    body = stop(built_in, request, at=3)
    rest = Watch()
    built_in.develop(request, rest, body)
    assert rest.steps == 7


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler"])
def test_progress_counts_the_steps_that_are_run(built_in: PipelineEngine, scheduler: str) -> None:
    own = built_in.pipe.scheduler
    told: list[tuple[int, int]] = []

    class Told(Quiet):
        def at_step(self, step: int, steps: int) -> None:
            told.append((step, steps))

    known = {"prediction_type", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps"}
    try:
        kind = getattr(diffusers, scheduler)
        built_in.pipe.scheduler = kind.from_config({key: own.config[key] for key in known})
        built_in.develop(task(built_in, strength=0.5), Told(), b"", picture())
    finally:
        built_in.pipe.scheduler = own
    assert [step for step, _ in told] == list(range(len(told)))
    assert {steps for _, steps in told} == {len(told)}


def test_through_the_whole_path(sdxl: PipelineEngine, settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    generate = Generate(settings, store, queue, lambda _: sdxl)
    bodies = []
    for at, form in enumerate(("PNG", "JPEG", "WEBP")):
        store.put_upload(f"upload-{at}", picture(SIDE, SIDE, form), f"image/{form.lower()}")
        asked = {"prompt": "fox", "image": f"upload-{at}", "task_id": f"t{at}", "num_inference_steps": 10}
        bodies.append(json.dumps(asked))
    bodies.append('{"prompt": "fox", "task_id": "without"}')
    assert generate.handle(sqs_event(*bodies), None) == {"batchItemFailures": []}
    for at in range(3):
        record = record_of(store, f"t{at}")
        assert record.status == "completed", record.error
        assert record.progress is not None
        assert (record.progress.step, record.progress.steps) == (3, 3)  # of ten, at the card's own strength
        assert (record.images[0].width, record.images[0].height) == (SIDE, SIDE)
    error = record_of(store, "without").error
    assert error is not None
    assert [one.field for one in error.details] == ["image"]


def test_what_is_no_image_fails_the_task_and_no_other(
    built_in: PipelineEngine, settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    generate = Generate(settings, store, queue, lambda _: built_in)
    store.put_upload("bad", b"<svg/>", "image/png")
    store.put_upload("good", picture(), "image/png")
    bodies = [json.dumps({"prompt": "fox", "image": name, "task_id": name}) for name in ("bad", "good")]
    assert generate.handle(sqs_event(*bodies), None) == {"batchItemFailures": []}
    bad = record_of(store, "bad")
    assert (bad.status, bad.error and bad.error.code) == ("failed", "INVALID_REQUEST")
    assert record_of(store, "good").status == "completed"


def test_in_half_precision_the_vae_stays_in_float32() -> None:
    """As on CUDA: what it encodes has to come back in the denoiser's own type."""
    pipe = stable_diffusion().pipe.to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    tune(pipe, "float16")
    pipe.vae.to(torch.float32)
    engine = PipelineEngine(pipe, card_of(pipe, "tiny", None, "float16", {}), Compute())
    try:
        developed = engine.develop(task(engine), Watch(), b"", picture(SIDE, SIDE))
        assert pixels(developed).shape == (1, SIDE, SIDE, 3)
    finally:
        engine.close()


def test_a_form_learns_from_the_card_what_is_needed(sdxl: PipelineEngine) -> None:
    health: Any = {"model_status": "available", "model": sdxl.card.model_dump(mode="json"), "reason": None}
    (described,) = models(health, Settings())["models"]
    fields = {one["name"]: one for one in described["parameters"]}
    assert fields["image"]["required"]
    assert (fields["strength"]["default"], fields["strength"]["least"], fields["strength"]["most"]) == (0.3, 0, 1)


def test_an_image_that_does_not_fit_says_so(built_in: PipelineEngine) -> None:
    with pytest.raises(InvalidRequest) as refused:
        built_in.develop(task(built_in), Quiet(), b"", picture(100, 64))
    (fault,) = refused.value.details
    assert fault.field == "image"
    assert "its width of 100 is not a multiple of 8" in fault.message
    scaled = built_in.develop(task(built_in, width=64, height=96), Quiet(), b"", picture(100, 64))
    assert scaled.pictures[0].size == (64, 96)
