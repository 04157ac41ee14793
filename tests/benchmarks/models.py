"""Random weights of real sizes, for benchmarks of speed and memory: what they draw means nothing."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from handler.contract.card import Defaults, ModelCard
from handler.settings import BUILT_IN_MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from handler.contract.request import GenerationRequest

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
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "force_upcast": False,
}
SD21_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
TOKENS = 77


def build(size: str, device: str, dtype: torch.dtype) -> tuple[Any, ModelCard]:
    """A pipeline (``sd21`` or ``sdxl``) without text encoders, made on the device, and a card for the engine."""
    _quiet()
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**(SD21_UNET if size == "sd21" else SDXL_UNET)).to(dtype)
        vae = AutoencoderKL(**VAE).to(dtype)
    scheduler = EulerDiscreteScheduler(steps_offset=1)
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler, "tokenizer": None, "text_encoder": None}
    if size == "sd21":
        none = {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(**parts, **none, requires_safety_checker=False)
    else:
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    defaults = Defaults(num_inference_steps=20, guidance_scale=5.0, width=512, height=512)
    name = str(dtype).removeprefix("torch.")
    return pipe, ModelCard(id=size, pipeline=type(pipe).__name__, dtype=name, parameters=[], defaults=defaults)


def call(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """The pipeline's arguments for the request, with random embeddings in place of its prompt."""
    generator = torch.Generator("cpu").manual_seed(request.seed or 0)

    def embedding(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(pipe.unet.device, pipe.unet.dtype)

    shape = (1, TOKENS, pipe.unet.config.cross_attention_dim)
    made = {"prompt_embeds": embedding(*shape), "negative_prompt_embeds": embedding(*shape)}
    if isinstance(pipe, StableDiffusionXLPipeline):
        made |= {"pooled_prompt_embeds": embedding(1, 1280), "negative_pooled_prompt_embeds": embedding(1, 1280)}
    return {
        **made,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": generator,
    }


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
