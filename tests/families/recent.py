"""Further families whose denoiser is a transformer."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven, sharpen

WIDTH = encoders.WIDTH
SMALL: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "joint_attention_dim": WIDTH}
FLUX: dict[str, Any] = {"in_channels": 16, "num_single_layers": 1, "num_attention_heads": 2}


def _assembled(pipeline: Any, denoiser: Any, vae: Any, scheduler: Any, text: tuple[Any, Any], **others: Any) -> Any:
    """With one text encoder and its tokenizer."""
    enliven(denoiser, vae, text[0])
    sharpen(denoiser)
    return pipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text[0], tokenizer=text[1], **others
    )


def kandinsky_5() -> Any:
    """Draws at one of its own sizes; its latents are an eighth of the picture, whatever its autoencoder is.

    The tokenizer stands for a processor of words and pictures, which needs torchvision.
    """
    tokenizer, clip = tokenizers.qwen2(), tokenizers.clip()
    second = encoders.clip(clip)
    denoiser = diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=32,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(8, 4, 4),
    )
    enliven(second)
    vae = autoencoders.kl(4, layers_per_block=1, shift_factor=0.1159, scaling_factor=0.3611)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text = encoders.qwen2_5_vl(tokenizer), tokenizer
    others = {"text_encoder_2": second, "tokenizer_2": clip}
    return _assembled(diffusers.Kandinsky5T2IPipeline, denoiser, vae, scheduler, text, **others)


def longcat_image() -> Any:
    """Its own encoder first rewrites the prompt; the tokenizer stands for the processor, which needs torchvision."""
    tokenizer = tokenizers.qwen2()
    denoiser = diffusers.LongCatImageTransformer2DModel(
        **{**SMALL, **FLUX, "in_channels": 64}, pooled_projection_dim=WIDTH, axes_dims_rope=[4, 4, 8]
    )
    vae = autoencoders.kl(latent_channels=16, shift_factor=0.1159, scaling_factor=0.3611)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    text = encoders.qwen2_5_vl(tokenizer), tokenizer
    return _assembled(diffusers.LongCatImagePipeline, denoiser, vae, scheduler, text, text_processor=tokenizer)


def flux_2() -> Any:
    """Hears the 10th, 20th and 30th layer of its text encoder; guidance is an argument of the transformer."""
    tokenizer = tokenizers.mistral()
    denoiser = diffusers.Flux2Transformer2DModel(
        **{**SMALL, **FLUX, "joint_attention_dim": 3 * WIDTH}, axes_dims_rope=(4, 4, 4, 4)
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    text = encoders.mistral_3(tokenizer), tokenizer
    return _assembled(diffusers.Flux2Pipeline, denoiser, autoencoders.flux_2(), scheduler, text)


def flux_kontext() -> Any:
    """Draws without a picture to start from as well."""
    clip, tokenizer = tokenizers.clip(), tokenizers.t5()
    first = encoders.clip(clip)
    enliven(first)
    denoiser = diffusers.FluxTransformer2DModel(
        **SMALL, **FLUX, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8)
    )
    vae = autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    enliven(denoiser, vae)
    second = encoders.t5(tokenizer)
    enliven(second)
    return diffusers.FluxKontextPipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=scheduler,
        text_encoder=first,
        tokenizer=clip,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
    )


def bria_fibo() -> Any:
    """Every layer of the text encoder is heard by a layer of the transformer."""
    tokenizer = tokenizers.smol()
    denoiser = diffusers.BriaFiboTransformer2DModel(
        **{**SMALL, **FLUX, "in_channels": 4, "joint_attention_dim": 2 * WIDTH},
        text_encoder_dim=WIDTH,
        axes_dims_rope=[0, 8, 8],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text = encoders.smol_3(tokenizer), tokenizer
    return _assembled(diffusers.BriaFiboPipeline, denoiser, autoencoders.wan(), scheduler, text)


def cogview_3() -> Any:
    tokenizer = tokenizers.t5()
    denoiser = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=16,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=4.0,
    )
    text = encoders.t5(tokenizer), tokenizer
    return _assembled(diffusers.CogView3PlusPipeline, denoiser, autoencoders.kl(), scheduler, text)


def prx() -> Any:
    tokenizer = tokenizers.gemma()
    tokenizer.model_max_length = 256
    denoiser = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    text = encoders.t5_gemma(tokenizer), tokenizer
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = autoencoders.kl(4, shift_factor=0.1159, scaling_factor=0.3611)
    return _assembled(diffusers.PRXPipeline, denoiser, vae, scheduler, text, default_sample_size=256)


FAMILIES = (
    Family("Kandinsky5T2IPipeline", kandinsky_5, (64, 64)),
    Family("LongCatImagePipeline", longcat_image, (32, 32), extra={"enable_prompt_rewrite": False}),
    Family("Flux2Pipeline", flux_2, (32, 32)),
    Family("FluxKontextPipeline", flux_kontext, (32, 32), extra={"max_area": 1024, "_auto_resize": False}),
    Family("BriaFiboPipeline", bria_fibo, (32, 32)),
    Family("CogView3PlusPipeline", cogview_3, (32, 32)),
    Family("PRXPipeline", prx, (32, 32)),
)
