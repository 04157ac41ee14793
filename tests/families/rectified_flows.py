"""Families whose denoiser is a transformer that predicts a flow, with CLIP and T5 as text encoders."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven

SMALL: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "joint_attention_dim": 32}


def stable_diffusion_3(pipeline: Any = diffusers.StableDiffusion3Pipeline) -> Any:
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
    return pipeline(
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


def flux(pipeline: Any = diffusers.FluxPipeline) -> Any:
    """Guidance is an argument of the transformer."""
    clip, t5 = tokenizers.clip(), tokenizers.t5()
    texts = encoders.clip(clip), encoders.t5(t5)
    size = {"in_channels": 16, "num_single_layers": 1, "num_attention_heads": 2, "pooled_projection_dim": 32}
    denoiser = diffusers.FluxTransformer2DModel(**SMALL, **size, guidance_embeds=True, axes_dims_rope=(4, 4, 8))
    vae = autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False)
    enliven(denoiser, vae, *texts)
    return pipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        tokenizer=clip,
        tokenizer_2=t5,
    )


def aura_flow() -> Any:
    tokenizer = tokenizers.t5()
    denoiser = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=encoders.WIDTH,
        pos_embed_max_size=256,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    text_encoder, vae = encoders.umt5(tokenizer), autoencoders.kl(scaling_factor=0.13025)
    enliven(denoiser, vae, text_encoder)
    return diffusers.AuraFlowPipeline(
        transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
    )


def _with_t5(pipeline: Any, denoiser: Any, scheduler: Any) -> Any:
    tokenizer = tokenizers.t5()
    text_encoder, vae = encoders.t5(tokenizer), autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    enliven(denoiser, vae, text_encoder)
    return pipeline(transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)


def chroma() -> Any:
    denoiser = diffusers.ChromaTransformer2DModel(
        **SMALL,
        in_channels=16,
        num_single_layers=1,
        num_attention_heads=2,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return _with_t5(diffusers.ChromaPipeline, denoiser, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


def bria() -> Any:
    denoiser = diffusers.BriaTransformer2DModel(
        **SMALL, in_channels=16, num_single_layers=1, num_attention_heads=2, axes_dims_rope=[0, 8, 8]
    )
    return _with_t5(diffusers.BriaPipeline, denoiser, diffusers.FlowMatchEulerDiscreteScheduler())


def hidream() -> Any:
    """Four text encoders; every layer of the fourth is heard."""
    kinds = tokenizers.clip(248), tokenizers.clip(248), tokenizers.t5(), tokenizers.llama3()
    texts = [encoders.clip(kind, projected=True, max_position_embeddings=248) for kind in kinds[:2]]
    texts += [encoders.t5(kinds[2]), encoders.llama(kinds[3])]
    denoiser = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[encoders.WIDTH, encoders.WIDTH],
        text_emb_dim=2 * encoders.WIDTH,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    vae = autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    enliven(denoiser, vae, *texts)
    numbers = "", "_2", "_3", "_4"
    return diffusers.HiDreamImagePipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **{f"tokenizer{number}": kind for number, kind in zip(numbers, kinds, strict=True)},
        **{f"text_encoder{number}": text for number, text in zip(numbers, texts, strict=True)},
    )


def stable_diffusion_3_pag() -> Any:
    return stable_diffusion_3(diffusers.StableDiffusion3PAGPipeline)


FAMILIES = (
    Family("StableDiffusion3Pipeline", stable_diffusion_3, (32, 32)),
    Family("FluxPipeline", flux, (32, 32)),
    Family("AuraFlowPipeline", aura_flow, (32, 32)),
    Family("ChromaPipeline", chroma, (32, 32)),
    Family("HiDreamImagePipeline", hidream, (32, 32)),
    Family("BriaPipeline", bria, (32, 32)),
    Family("StableDiffusion3PAGPipeline", stable_diffusion_3_pag, (32, 32)),
)
