"""Models as they lie on disk: variants, shards, single files, quantised ones, without a part."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2VLImageProcessor
from transformers.utils import is_torchvision_available

from handler.engine.loading import load_pipeline
from handler.engine.sources import Form, find, form_of, stored_dtype
from handler.engine.starting import start
from handler.errors import ModelUnavailable
from handler.settings import Settings

from ..families import FAMILIES, rectified_flows, unets
from . import ldm

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator
    from pathlib import Path

    from handler.engine.running import PipelineEngine

pytestmark = pytest.mark.usefixtures("one_core")

SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
}


@pytest.fixture(scope="module")
def stock() -> Any:
    return unets.stable_diffusion()


@pytest.fixture(scope="module")
def drawn(stock: Any) -> Any:
    return picture(stock)


def picture(pipe: Any) -> Any:
    """float32 [1, H, W, 3] of the same task."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipe("a fox", num_inference_steps=2, generator=generator, output_type="np").images


def same(one: Any, other: Any) -> bool:
    """But for the rounding of another number of threads."""
    return bool(np.abs(one - other).max() < 1e-4)


def loaded(place: Path, **settings: Any) -> Any:
    return load_pipeline(Settings(model_id=str(place), dtype="float32", **settings))[0]


@pytest.mark.parametrize(
    ("files", "form"),
    [
        ("unet/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.safetensors", Form()),
        ("unet/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.fp16.safetensors", Form("fp16")),
        ("unet/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors", Form("fp16")),
        ("unet/model.fp16.safetensors unet/model.safetensors vae/model.fp16.safetensors", Form("fp16")),
        ("unet/model.non_ema.safetensors unet/model.bf16.safetensors", Form("bf16")),
        ("unet/model.ema.safetensors", Form("ema")),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", Form()),
        ("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", Form("fp16")),
        ("unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors", Form("fp16")),
        ("unet/model.safetensors other/model.fp16.safetensors model.fp16.safetensors", Form()),
        ("unet/model.safetensors safety_checker/pytorch_model.bin", Form(None, ("safety_checker",))),
        ("unet/model.safetensors safety_checker/model.safetensors safety_checker/pytorch_model.bin", Form()),
        ("unet/model.safetensors", Form()),
        ("", Form()),
    ],
)
def test_the_form_of_a_models_files(files: str, form: Form) -> None:
    assert form_of(SD, files.split()) == form


def test_parts_without_a_variant_in_common() -> None:
    with pytest.raises(ModelUnavailable, match="no variant in common: unet: fp16; vae: bf16"):
        form_of(SD, ["unet/model.fp16.safetensors", "vae/model.bf16.safetensors"])


def test_a_variant_alone(stock: Any, drawn: Any, tmp_path: Path) -> None:
    stock.save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.rglob("diffusion_pytorch_model.safetensors"))
    assert same(picture(loaded(tmp_path)), drawn)


def test_a_variant_of_the_unet_alone(stock: Any, drawn: Any, tmp_path: Path) -> None:
    stock.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    stock.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    assert same(picture(loaded(tmp_path)), drawn)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(stock: Any, drawn: Any, tmp_path: Path, variant: str | None) -> None:
    stock.save_pretrained(tmp_path, max_shard_size="200KB", variant=variant)
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    assert same(picture(loaded(tmp_path)), drawn)


def test_a_safety_checker_without_safetensors_is_left_out_aloud(
    stock: Any, drawn: Any, tmp_path: Path, told: list[logging.LogRecord]
) -> None:
    stock.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"safety_checker": SD["safety_checker"], "requires_safety_checker": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "safety_checker").mkdir()
    (tmp_path / "safety_checker/pytorch_model.bin").write_bytes(b"a pickle")
    assert same(picture(loaded(tmp_path)), drawn)
    assert [one.getMessage() for one in told if "safety_checker" in one.getMessage()] == [
        "the safety_checker has no safetensors and is left out: no picture is looked over"
    ]


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_that_the_denoiser_is_stored_in(tmp_path: Path, variant: str | None, dtype: str) -> None:
    pipe = unets.stable_diffusion()
    pipe.save_pretrained(tmp_path)  # in float32, which does not count where there is a variant alone of another part
    pipe.unet.to(getattr(torch, dtype)).save_pretrained(tmp_path / "unet", variant=variant, max_shard_size="200KB")
    if variant:
        shutil.move(tmp_path / "vae/diffusion_pytorch_model.safetensors", tmp_path / "vae/model.fp16.safetensors")
    else:
        (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert stored_dtype(find(str(tmp_path), None)) == dtype


def test_the_type_of_a_single_file(tmp_path: Path) -> None:
    pipe = unets.stable_diffusion().to(torch.bfloat16)
    ldm.write(pipe, tmp_path / "model.safetensors")
    configuration(pipe, tmp_path / "config")
    assert stored_dtype(find(str(tmp_path), None)) == "bfloat16"


def test_a_model_of_the_hub_is_found_in_its_cache(
    stock: Any, drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image, which never asks the Hub."""
    at = tmp_path / "models--mine--fox"
    stock.save_pretrained(at / "snapshots/0123456789abcdef0123456789abcdef01234567", variant="fp16")
    (at / "refs").mkdir()
    (at / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pipe, card = load_pipeline(Settings(model_id="mine/fox", dtype="float32"))
    assert same(picture(pipe), drawn)
    assert card.id == "mine/fox"


def configuration(pipe: Any, folder: Path) -> Path:
    """A pipeline's folder without its weights."""
    pipe.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def test_a_single_file(stock: Any, drawn: Any, tmp_path: Path) -> None:
    file, config = tmp_path / "model.safetensors", configuration(stock, tmp_path / "config")
    ldm.write(stock, file)
    assert same(picture(loaded(file, model_config=str(config))), drawn)


def test_a_folder_of_one_file_and_its_configuration(stock: Any, drawn: Any, tmp_path: Path) -> None:
    ldm.write(stock, tmp_path / "model.safetensors")
    configuration(stock, tmp_path / "config")
    (tmp_path / "model_card.json").write_text('{"defaults": {"num_inference_steps": 7}}')
    pipe, card = load_pipeline(Settings(model_id=str(tmp_path), dtype="float32"))
    assert same(picture(pipe), drawn)
    assert card.defaults.num_inference_steps == 7


def test_a_single_file_has_a_card_of_its_own(stock: Any, tmp_path: Path) -> None:
    ldm.write(stock, tmp_path / "one.safetensors")
    (tmp_path / "one.model_card.json").write_text('{"defaults": {"num_inference_steps": 9}}')
    (tmp_path / "model_card.json").write_text('{"defaults": {"num_inference_steps": 7}}')
    config = str(configuration(stock, tmp_path / "config"))
    settings = Settings(model_id=str(tmp_path / "one.safetensors"), model_config=config, dtype="float32")
    assert load_pipeline(settings)[1].defaults.num_inference_steps == 9


def test_a_single_file_of_unknown_configuration(stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ldm.write(stock, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelUnavailable, match=r"model\.safetensors holds weights alone: MODEL_CONFIG names the folder"
    ):
        loaded(tmp_path / "model.safetensors")


@pytest.mark.skipif(is_torchvision_available(), reason="is about a machine without torchvision")
def test_a_package_that_a_part_needs_is_named(tmp_path: Path) -> None:
    """As Qwen-Image 2.1's processor needs one for videos, whose message tells it on two lines."""
    next(one for one in FAMILIES if one.name == "QwenImage21Pipeline").build().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"processor": ["transformers", "Qwen3VLProcessor"]}))
    Qwen2VLImageProcessor().save_pretrained(tmp_path / "processor")
    kind = {"video_processor_type": "Qwen3VLVideoProcessor"}
    (tmp_path / "processor" / "video_preprocessor_config.json").write_text(json.dumps(kind))
    with pytest.raises(ModelUnavailable, match="it needs torchvision, which is not installed"):
        loaded(tmp_path)


def test_a_pipeline_without_a_denoiser_is_refused_before_it_is_read(tmp_path: Path) -> None:
    parts = {"_class_name": "StableCascadeCombinedPipeline", "decoder": ["diffusers", "StableCascadeUNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(ModelUnavailable, match="has neither a unet nor a transformer"):
        loaded(tmp_path)


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ModelUnavailable, match=r"several models in .*: MODEL_ID must name one of a.safetensors, b."):
        loaded(tmp_path)


def test_a_file_of_the_denoiser_alone(tmp_path: Path) -> None:
    """As transformers are handed round; the rest comes from the folder of the configuration."""
    stock = rectified_flows.flux()
    stock.save_pretrained(tmp_path / "rest")
    drawn = picture(stock)
    shutil.rmtree(tmp_path / "rest/transformer")
    stock.transformer.save_config(tmp_path / "rest/transformer")
    save_file(stock.transformer.state_dict(), tmp_path / "model.safetensors")
    assert same(picture(loaded(tmp_path / "model.safetensors", model_config=str(tmp_path / "rest"))), drawn)


def started(place: Path, **settings: Any) -> Iterator[PipelineEngine]:
    engine = start(Settings(model_id=str(place), dtype="float32", max_batch=2, **settings))
    yield engine
    engine.close()


def test_a_denoiser_in_gguf(tmp_path: Path) -> None:
    stock = rectified_flows.flux()
    drawn = picture(stock)
    stock.save_pretrained(tmp_path / "rest")
    shutil.rmtree(tmp_path / "rest/transformer")
    stock.transformer.save_config(tmp_path / "rest/transformer")
    file = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "flux")
    for name, weights in stock.transformer.state_dict().items():
        if weights.ndim == 2 and weights.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            file.add_tensor(name, gguf.quants.quantize(weights.numpy(), kind), raw_dtype=kind)
        else:
            file.add_tensor(name, weights.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    for engine in started(tmp_path / "model.gguf", model_config=str(tmp_path / "rest")):
        assert {type(one).__name__ for one in engine.pipe.transformer.parameters()} == {"GGUFParameter", "Parameter"}
        assert engine.batcher.merging  # proven: two together are what each is alone
        assert 0 < np.abs(picture(engine.pipe) - drawn).max() < 0.1


def test_a_gguf_without_the_rest(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnavailable, match=r"model\.gguf holds a denoiser alone: MODEL_CONFIG names the folder"):
        loaded(tmp_path / "model.gguf")
