"""Families whose denoiser is a transformer that predicts a flow, with CLIP, T5 or Qwen as text encoders."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven

SMALL: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "joint_attention_dim": 32}


def stable_diffusion_3() -> Any:
    """Three text encoders; the width of the first two together is at most that of the third."""
    clips = tokenizers.clip(), tokenizers.clip(pad_token="!")
    third = tokenizers.t5()
    texts = [encoders.clip(each, projected=True) for each in clips] + [encoders.t5(third, d_model=2 * encoders.WIDTH)]
    denoiser = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        caption_projection_dim=32,
        pooled_projection_dim=2 * encoders.WIDTH,
        **{**SMALL, "joint_attention_dim": 2 * encoders.WIDTH},
    )
    vae = autoencoders.kl(shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False)
    enliven(denoiser, vae, *texts)
    return diffusers.StableDiffusion3Pipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        text_encoder_3=texts[2],
        tokenizer=clips[0],
        tokenizer_2=clips[1],
        tokenizer_3=third,
    )


def flux() -> Any:
    """Guidance is an argument of the transformer."""
    clip, t5 = tokenizers.clip(), tokenizers.t5()
    texts = encoders.clip(clip), encoders.t5(t5)
    size = {"in_channels": 16, "num_single_layers": 1, "num_attention_heads": 2, "pooled_projection_dim": 32}
    denoiser = diffusers.FluxTransformer2DModel(**SMALL, **size, guidance_embeds=True, axes_dims_rope=(4, 4, 8))
    vae = autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False)
    enliven(denoiser, vae, *texts)
    return diffusers.FluxPipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        tokenizer=clip,
        tokenizer_2=t5,
    )


def qwen_image() -> Any:
    """Guidance only where a negative prompt is given."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen2_5_vl(tokenizer), autoencoders.qwen_image()
    denoiser = diffusers.QwenImageTransformer2DModel(
        **SMALL, in_channels=16, out_channels=4, num_attention_heads=3, axes_dims_rope=(8, 4, 4)
    )
    enliven(denoiser, vae, text_encoder)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, base_shift=0.5, shift_terminal=0.02, time_shift_type="exponential"
    )
    return diffusers.QwenImagePipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
    )


def z_image() -> Any:
    """Prompts go through the tokenizer's chat template."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen3(tokenizer), autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    denoiser = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=encoders.WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    enliven(denoiser, vae, text_encoder)
    return diffusers.ZImagePipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


FAMILIES = (
    Family("StableDiffusion3Pipeline", stable_diffusion_3, (32, 32)),
    Family("FluxPipeline", flux, (32, 32)),
    Family("QwenImagePipeline", qwen_image, (32, 32), guidance="true_cfg_scale"),
    Family("ZImagePipeline", z_image, (32, 32)),
)
