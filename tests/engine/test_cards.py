"""A model's card: sizes and defaults by its kind, and what the card next to its weights overrides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from diffusers.image_processor import VaeImageProcessor

from handler.contract.request import GenerationRequest
from handler.engine.cards import card_of, read_overrides
from handler.engine.proof import NoObserver
from handler.engine.starting import start
from handler.settings import Settings

from ..families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from handler.contract.card import ModelCard

pytestmark = [pytest.mark.usefixtures("one_core"), pytest.mark.filterwarnings("ignore")]  # diffusers' deprecations


def test_only_defaults_and_limits_are_taken(tmp_path: Path) -> None:
    (tmp_path / "model_card.json").write_text(json.dumps({"id": "x", "defaults": {"num_inference_steps": 4}}))
    assert read_overrides(tmp_path) == {"defaults": {"num_inference_steps": 4}}


def test_what_compiling_did_stays_on_the_card(tmp_path: Path) -> None:
    measured = {"device": "a GPU", "dtype": "float16", "time": 0.8, "psnr": 45.5}
    (tmp_path / "model_card.json").write_text(json.dumps({"compiled": measured}))
    made = card(family("StableDiffusionPipeline"), **read_overrides(tmp_path))
    assert made.compiled is not None
    assert made.compiled.model_dump() == measured
    assert card(family("StableDiffusionPipeline")).compiled is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"defaults": 5}', '{"limits": "many"}'])
def test_a_broken_one_is_named_and_left_aside(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """As ``darkroom card > model_card.json`` left it, which emptied the file before it read it."""
    (tmp_path / "model_card.json").write_text(text)
    assert read_overrides(tmp_path) == {}
    (line,) = caplog.records
    assert line.getMessage() == "the model's card cannot be read and is left aside"
    assert vars(line)["file"] == str(tmp_path / "model_card.json")


def family(name: str) -> Any:
    """The tiny pipeline of a class, made to believe that its autoencoder scales by 8, as the real ones' do."""
    pipe = next(one for one in FAMILIES if one.name == name).build()
    times = 8 // pipe.vae_scale_factor
    pipe.image_processor = VaeImageProcessor(vae_scale_factor=times * pipe.image_processor.config.vae_scale_factor)
    pipe.vae_scale_factor = 8
    return pipe


def card(pipe: Any, name: str = "a-model", **overrides: Any) -> ModelCard:
    return card_of(pipe, name, None, "float32", overrides)


@pytest.mark.parametrize(
    ("name", "multiple", "side"),
    [
        ("StableDiffusionPipeline", 8, 128),
        ("StableDiffusionXLPipeline", 8, 128),
        ("StableDiffusion3Pipeline", 8, 128),  # the tiny one has patches of 1
        ("FluxPipeline", 16, 1024),
        ("ChromaPipeline", 16, 1024),
        ("QwenImagePipeline", 16, 1024),
        ("ZImagePipeline", 16, None),  # learnt from the first picture
        ("HiDreamImagePipeline", 16, 1024),
        ("AuraFlowPipeline", 16, 1024),
        ("CogView4Pipeline", 16, 1024),
        ("Lumina2Pipeline", 16, 32),
        ("PixArtSigmaPipeline", 8, 256),
        ("Flux2KleinPipeline", 16, 1024),
    ],
)
def test_sizes_are_what_the_pipeline_itself_takes(name: str, multiple: int, side: int | None) -> None:
    made = card(family(name))
    assert (made.size_multiple, made.defaults.width, made.defaults.height) == (multiple, side, side)


@pytest.mark.parametrize(("name", "multiple"), [("SanaPipeline", 32), ("BriaFiboPipeline", 16)])
def test_autoencoders_of_other_factors(name: str, multiple: int) -> None:
    pipe = next(one for one in FAMILIES if one.name == name).build()
    assert card(pipe).size_multiple == multiple


def test_qwen_images_own_sizes_are_accepted() -> None:
    made = card(family("QwenImagePipeline"))
    for width, height in [(1328, 1328), (1664, 928), (928, 1664), (1472, 1140 // 16 * 16)]:
        assert made.faults({"width": width, "height": height}) == []


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("HunyuanDiTPipeline", [(1024, 1024), (1280, 768), (864, 1152)]),
        ("HunyuanDiTPAGPipeline", [(1024, 1024), (960, 1280)]),
        ("Kandinsky5T2IPipeline", [(1024, 1024), (640, 1408), (1152, 896)]),
    ],
)
def test_a_pipeline_that_draws_sizes_of_a_list_refuses_others(name: str, some: list[tuple[int, int]]) -> None:
    """It would draw the nearest shape of its list in place of what was asked for."""
    made = card(next(one for one in FAMILIES if one.name == name).build())
    assert set(some) < set(made.sizes)
    for width, height in some:
        assert made.faults({"width": width, "height": height}) == []
    (fault,) = made.faults({"width": 512, "height": 512})
    assert fault.field == "width"
    assert fault.message.startswith("512 x 512 is none of this model's sizes: 1024 x 1024, ")
    assert (made.defaults.width, made.defaults.height) in made.sizes


def test_no_other_pipeline_draws_sizes_of_a_list() -> None:
    assert not card(family("PixArtSigmaPipeline")).sizes, "it scales the picture to what was asked for"
    assert not card(family("StableDiffusionPipeline")).sizes


def test_an_autoencoder_that_scales_twice() -> None:
    """Kandinsky's pipelines round sizes up to the square of its factor."""
    pipe = next(one for one in FAMILIES if one.name == "Kandinsky3Pipeline").build()
    pipe.movq.register_to_config(block_out_channels=(32, 64, 64, 64))
    assert card(pipe).size_multiple == 64


@pytest.mark.parametrize(
    ("pipeline", "name", "steps", "guidance"),
    [
        ("StableDiffusionPipeline", "stabilityai/sd-turbo", 1, 0.0),
        ("StableDiffusionPipeline", "stabilityai/stable-diffusion-2-1", 50, 7.5),
        ("StableDiffusionXLPipeline", "./SDXL-Turbo/", 1, 0.0),
        ("StableDiffusionXLPipeline", "ByteDance/SDXL-Lightning", 4, 0.0),
        ("StableDiffusionXLPipeline", "s3://models/sdxl_lightning_8step", 8, 0.0),
        ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0", 50, 5.0),
        ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-large-turbo", 4, 0.0),
        ("FluxPipeline", "black-forest-labs/FLUX.1-dev", 28, 3.5),
        ("ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo", 8, 0.0),
        ("ZImagePipeline", "Tongyi-MAI/Z-Image", 50, 5.0),
        ("QwenImagePipeline", "Qwen/Qwen-Image", 50, 4.0),
        ("QwenImagePipeline", "mine/Qwen-Image-Lightning-4steps", 4, 1.0),
        ("Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-4B", 4, 1.0),
        ("Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-base-4B", 50, 4.0),
    ],
)
def test_distilled_checkpoints_have_defaults_of_their_own(
    pipeline: str, name: str, steps: int, guidance: float
) -> None:
    pipe = family(pipeline)
    if pipeline == "FluxPipeline":
        pipe.transformer.register_to_config(guidance_embeds=True)
    made = card(pipe, name).defaults
    assert (made.num_inference_steps, made.guidance_scale) == (steps, guidance)


def test_a_distilled_checkpoint_by_another_name_is_known_by_its_configuration() -> None:
    pipe = family("FluxPipeline")
    pipe.transformer.register_to_config(guidance_embeds=False)
    made = card(pipe, "my-own")
    assert (made.defaults.num_inference_steps, made.defaults.guidance_scale) == (4, None)
    assert "guidance_scale" not in made.parameters  # it would do nothing


def test_a_card_goes_before_what_is_known_of_a_name() -> None:
    made = card(family("StableDiffusionXLPipeline"), "sdxl-turbo", defaults={"num_inference_steps": 3})
    assert (made.defaults.num_inference_steps, made.defaults.guidance_scale) == (3, 0.0)


def test_steps_that_a_configuration_fixes_are_no_parameter() -> None:
    """Qwen-Image 2.1 has as many as its author's sigmas, whatever number is asked for."""
    pipe = next(one for one in FAMILIES if one.name == "QwenImage21Pipeline").build()
    assert "num_inference_steps" in card(pipe).parameters
    pipe.register_to_config(sample_sigmas=[1.0, 0.75, 0.5, 0.25])
    made = card(pipe)
    assert "num_inference_steps" not in made.parameters
    assert made.defaults.num_inference_steps is None


@pytest.mark.parametrize("pipeline", ["BriaFibo2Pipeline", "Flux2KleinKVPipeline", "QwenImage21Pipeline"])
def test_pictures_to_edit_may_be_left_out(pipeline: str) -> None:
    made = card(next(one for one in FAMILIES if one.name == pipeline).build())
    assert ("image" in made.parameters, made.required) == (True, [])


def test_a_size_that_no_configuration_tells_is_learnt_from_the_first_picture(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    next(one for one in FAMILIES if one.name == "IFPipeline").build().save_pretrained(folder)
    engine = start(Settings(model_id=str(folder), dtype="float32", max_batch=1))
    request = engine.card.resolve(GenerationRequest(prompt="a", seed=1, num_inference_steps=1))
    drawn = engine.develop(request, NoObserver()).pictures[0]
    engine.close()
    assert (request.width, request.height) == drawn.size
    assert engine.measured is not None
