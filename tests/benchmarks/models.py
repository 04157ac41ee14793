"""Random weights of real sizes, for benchmarks of speed and memory: what they draw means nothing."""

from __future__ import annotations

import json
import shutil
import zlib
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from handler.engine.cards import card_of
from handler.settings import BUILT_IN_MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from handler.contract.card import ModelCard

CROSS, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD21_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS, CROSS, CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", CROSS, CROSS),
    "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "force_upcast": False,
}
SD21_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
SD3_VAE: dict[str, Any] = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 8,
}
TOKENS = 77


TINY_UNET = SD21_UNET | {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": (CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", CROSS_UP),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 4),
}
SD3_TRANSFORMER = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
"""Stable Diffusion 3 medium's: 2.0 billion parameters."""
SIZES = {
    "sd21": ("SD 2.1, 512x512", "float16"),
    "sdxl": ("SDXL, 1024x1024", "float16"),
    "dit": ("a DiT of 2 B (SD 3), 512x512", "bfloat16"),
    "tiny": ("a tiny UNet, 64x64", "float32"),
}
"""What there is, and the dtype that it is measured in. ``tiny`` shows on a CPU that a benchmark runs."""


class _Embeds:
    """Random embeddings in place of text encoders, the same for the same text; pipelines take all else from there."""

    def _embeds(self: Any, prompt: Any, tokens: int, wide: int, pooled: int) -> tuple[torch.Tensor, torch.Tensor]:
        network = getattr(self, "unet", None) or self.transformer
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(str(prompt).encode()))
        made = (torch.randn(shape, generator=generator) for shape in ((1, tokens, wide), (1, pooled)))
        embeds, pooling = (one.to(network.device, network.dtype) for one in made)
        return embeds, pooling


class RandomStableDiffusion(_Embeds, StableDiffusionPipeline):  # type: ignore[misc]
    def encode_prompt(self, prompt: Any, device: Any, count: int, guided: bool, negative: Any = None, **_: Any) -> Any:
        wide = self.unet.config.cross_attention_dim
        texts = [self._embeds(text, TOKENS, wide, 1)[0].repeat(count, 1, 1) for text in (prompt, negative)]
        return texts[0], texts[1] if guided else None


class _FourEmbeds(_Embeds):
    """With pooled embeddings as well, of the prompt and of the negative one."""

    def _four(self, prompt: Any, negative: Any, count: int, shape: tuple[int, int, int]) -> Any:
        (one, pooled), (other, also) = (self._embeds(text, *shape) for text in (prompt, negative))
        return (one.repeat(count, 1, 1), other.repeat(count, 1, 1), pooled.repeat(count, 1), also.repeat(count, 1))


class RandomXL(_FourEmbeds, StableDiffusionXLPipeline):  # type: ignore[misc]
    def encode_prompt(self, prompt: Any, num_images_per_prompt: int = 1, negative_prompt: Any = None, **_: Any) -> Any:
        return self._four(prompt, negative_prompt, num_images_per_prompt, (TOKENS, 2048, 1280))


class RandomSD3(_FourEmbeds, StableDiffusion3Pipeline):  # type: ignore[misc]
    def encode_prompt(self, prompt: Any, num_images_per_prompt: int = 1, negative_prompt: Any = None, **_: Any) -> Any:
        return self._four(prompt, negative_prompt, num_images_per_prompt, (2 * TOKENS, 4096, 2048))


def build(size: str, device: str, dtype: str) -> tuple[Any, ModelCard]:
    """A pipeline (one of SIZES), made on the device, without text encoders but complete in all else, and its card."""
    _quiet()
    torch.manual_seed(0)
    kind, none = getattr(torch, dtype), {"text_encoder": None, "tokenizer": None}
    with torch.device(device):
        vae = AutoencoderKL(**VAE | {"dit": SD3_VAE, "tiny": TINY_VAE}.get(size, {}))
        if size == "dit":
            denoiser: Any = SD3Transformer2DModel(**SD3_TRANSFORMER)
        else:
            denoiser = UNet2DConditionModel(**{"sd21": SD21_UNET, "sdxl": SDXL_UNET, "tiny": TINY_UNET}[size])
    vae, denoiser = vae.to(kind).eval(), denoiser.to(kind).eval()
    scheduler = EulerDiscreteScheduler(steps_offset=1)
    pipe: Any
    if size == "dit":
        others = dict.fromkeys(("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
        flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe = RandomSD3(transformer=denoiser, vae=vae, scheduler=flow, **none, **others)
    elif size == "sdxl":
        more = {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        pipe = RandomXL(unet=denoiser, vae=vae, scheduler=scheduler, **none, **more)
    else:
        parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = RandomStableDiffusion(unet=denoiser, vae=vae, scheduler=scheduler, **none, **parts)
    pipe.set_progress_bar_config(disable=True)
    own = {"defaults": {"width": 512, "height": 512}} if size == "dit" else {}
    return pipe, card_of(pipe, size, None, dtype, own)


def write_sd21(folder: Path) -> None:
    """A whole pipeline of SD 2.1's size as float16 safetensors, 2.6 GB, with the built-in model's tokenizer."""
    _quiet()
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SD21_UNET), AutoencoderKL(**VAE)
        text = CLIPTextModel(CLIPTextConfig(**SD21_TEXT))
    for part in (unet, vae, text):
        part.to(torch.float16).to_empty(device="cpu")
        for weights in part.parameters():
            torch.nn.init.normal_(weights, std=0.02)
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        part.save_pretrained(folder / name, safe_serialization=True, max_shard_size="10GB")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(BUILT_IN_MODEL / name, folder / name)
    index = json.loads((BUILT_IN_MODEL / "model_index.json").read_text()) | {"vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def _quiet() -> None:
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
