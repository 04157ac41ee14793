"""Families whose denoiser is a U-Net."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven

SIDE = 32


def unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": SIDE // 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
            "cross_attention_dim": encoders.WIDTH,
            **config,
        }
    )


def _clips() -> dict[str, Any]:
    """The two text encoders of SDXL; the second one's tokenizer pads with an exclamation mark."""
    first, second = tokenizers.clip(), tokenizers.clip(pad_token="!")
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": encoders.clip(first),
        "text_encoder_2": encoders.clip(second, projected=True),
    }


def stable_diffusion(pipeline: Any = diffusers.StableDiffusionPipeline) -> Any:
    tokenizer = tokenizers.clip()
    text_encoder, denoiser, vae = encoders.clip(tokenizer), unet(), autoencoders.kl()
    enliven(text_encoder, denoiser, vae)
    return pipeline(
        unet=denoiser,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_pag() -> Any:
    return stable_diffusion(diffusers.StableDiffusionPAGPipeline)


def latent_consistency() -> Any:
    """Guidance is an embedding of the denoiser."""
    tokenizer = tokenizers.clip()
    text_encoder, denoiser, vae = encoders.clip(tokenizer), unet(time_cond_proj_dim=32), autoencoders.kl()
    enliven(text_encoder, denoiser, vae)
    return diffusers.LatentConsistencyModelPipeline(
        unet=denoiser,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(pipeline: Any = diffusers.StableDiffusionXLPipeline) -> Any:
    texts, vae = _clips(), autoencoders.kl(scaling_factor=0.13025)
    denoiser = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + encoders.WIDTH,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=2 * encoders.WIDTH,
    )
    enliven(texts["text_encoder"], texts["text_encoder_2"], denoiser, vae)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return pipeline(unet=denoiser, vae=vae, scheduler=scheduler, **texts)


def sdxl_pag() -> Any:
    return sdxl(diffusers.StableDiffusionXLPAGPipeline)


FAMILIES = (
    Family("StableDiffusionPipeline", stable_diffusion, (32, 32)),
    Family("StableDiffusionXLPipeline", sdxl, (32, 32)),
    Family("LatentConsistencyModelPipeline", latent_consistency, (32, 32)),
    Family("StableDiffusionPAGPipeline", stable_diffusion_pag, (32, 32)),
    Family("StableDiffusionXLPAGPipeline", sdxl_pag, (32, 32)),
)
