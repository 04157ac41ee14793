"""Families whose text encoder is a language model: Qwen or GLM."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven, sharpen

SMALL: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "joint_attention_dim": encoders.WIDTH}


def qwen_image() -> Any:
    """Guidance only where a negative prompt is given."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen2_5_vl(tokenizer), autoencoders.qwen_image()
    denoiser = diffusers.QwenImageTransformer2DModel(
        **SMALL, in_channels=16, out_channels=4, num_attention_heads=3, axes_dims_rope=(8, 4, 4)
    )
    enliven(denoiser, vae, text_encoder)
    sharpen(denoiser)
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


def flux_2_klein() -> Any:
    """Hears the 9th, 18th and 27th layer of its text encoder, which therefore has so many."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen3(tokenizer, whole=True, num_hidden_layers=28), autoencoders.flux_2()
    denoiser = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * encoders.WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    enliven(denoiser, vae, text_encoder)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.Flux2KleinPipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
    )


def hunyuan_image() -> Any:
    """Guidance is two components of the pipeline, not an argument; text in quotation marks goes to a second encoder."""
    tokenizer, letters = tokenizers.qwen2(), tokenizers.byt5()
    texts = encoders.qwen2_5_vl(tokenizer), encoders.t5(letters)
    denoiser = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=encoders.WIDTH,
        text_embed_2_dim=encoders.WIDTH,
        rope_axes_dim=(8, 8),
    )
    vae = autoencoders.hunyuan_image()
    enliven(denoiser, vae, *texts)
    sharpen(denoiser)
    guiders = diffusers.guiders
    return diffusers.HunyuanImagePipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=texts[0],
        tokenizer=tokenizer,
        text_encoder_2=texts[1],
        tokenizer_2=letters,
        guider=guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    )


def cogview_4() -> Any:
    tokenizer = tokenizers.glm()
    text_encoder, vae = encoders.glm(tokenizer), autoencoders.kl()
    denoiser = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=encoders.WIDTH,
        time_embed_dim=8,
        condition_dim=4,
    )
    enliven(denoiser, vae, text_encoder)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
    )


def ovis_image() -> Any:
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen3(tokenizer), autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    denoiser = diffusers.OvisImageTransformer2DModel(
        **SMALL, in_channels=16, out_channels=16, num_single_layers=1, num_attention_heads=2, axes_dims_rope=(4, 4, 8)
    )
    enliven(denoiser, vae, text_encoder)
    sharpen(denoiser)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.OvisImagePipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
    )


def krea_2() -> Any:
    """Hears several layers of its text encoder, which the pipeline's configuration names."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen3_vl(tokenizer), autoencoders.qwen_image()
    denoiser = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=encoders.WIDTH,
        num_text_layers=3,
        text_num_attention_heads=4,
        text_num_key_value_heads=4,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    )
    enliven(denoiser, vae, text_encoder)
    return diffusers.Krea2Pipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_select_layers=(1, 2, 3),
    )


FAMILIES = (
    Family("QwenImagePipeline", qwen_image, (32, 32), guidance="true_cfg_scale"),
    Family("ZImagePipeline", z_image, (32, 32)),
    Family("Flux2KleinPipeline", flux_2_klein, (32, 32)),
    Family("HunyuanImagePipeline", hunyuan_image, (32, 32), guidance=""),
    Family("CogView4Pipeline", cogview_4, (32, 32)),
    Family("OvisImagePipeline", ovis_image, (32, 32)),
    Family("Krea2Pipeline", krea_2, (32, 32)),
)
