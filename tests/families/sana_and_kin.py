"""Families whose denoiser is a diffusion transformer with T5 or Gemma as text encoder."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven


def _gemma(pipeline: Any, denoiser: Any, vae: Any, scheduler: Any, encoder: Any = encoders.gemma2) -> Any:
    tokenizer = tokenizers.gemma()
    text_encoder = encoder(tokenizer)
    enliven(denoiser, vae, text_encoder)
    return pipeline(transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)


def _sana(sample_size: int = 16, **config: Any) -> Any:
    return diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=encoders.WIDTH,
        sample_size=sample_size,
        **config,
    )


def sana() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _gemma(diffusers.SanaPipeline, _sana(), autoencoders.deep_compression(), scheduler)


def sana_sprint() -> Any:
    denoiser = _sana(32, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    scheduler = diffusers.SCMScheduler()
    return _gemma(diffusers.SanaSprintPipeline, denoiser, autoencoders.deep_compression(), scheduler)


def lumina_2() -> Any:
    """Its latents are an eighth of the picture, whatever its autoencoder is."""
    denoiser = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 128, 128),
        cap_feat_dim=encoders.WIDTH,
    )
    vae = autoencoders.kl(4, shift_factor=0.1159, scaling_factor=0.3611)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)
    return _gemma(diffusers.Lumina2Pipeline, denoiser, vae, scheduler)


def pixart(pipeline: Any = diffusers.PixArtSigmaPipeline) -> Any:
    tokenizer = tokenizers.t5()
    text_encoder, vae = encoders.t5(tokenizer), autoencoders.kl(4, scaling_factor=0.13025)
    denoiser = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=encoders.WIDTH,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    enliven(denoiser, vae, text_encoder)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")
    return pipeline(transformer=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)


def pixart_alpha() -> Any:
    return pixart(diffusers.PixArtAlphaPipeline)


def lumina() -> Any:
    denoiser = diffusers.LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=encoders.WIDTH,
    )
    vae, scheduler = autoencoders.kl(4, scaling_factor=0.13025), diffusers.FlowMatchEulerDiscreteScheduler()
    return _gemma(diffusers.LuminaPipeline, denoiser, vae, scheduler, encoders.gemma)


def sana_pag() -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _gemma(diffusers.SanaPAGPipeline, _sana(), autoencoders.deep_compression(), scheduler)


def pixart_pag() -> Any:
    return pixart(diffusers.PixArtSigmaPAGPipeline)


def hunyuan_dit(pipeline: Any = diffusers.HunyuanDiTPipeline) -> Any:
    """Draws at one of its own sizes, of about 1,024 pixels a side."""
    first, second = tokenizers.bert(), tokenizers.t5()
    texts = encoders.bert(first), encoders.t5(second)
    denoiser = diffusers.HunyuanDiT2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        hidden_size=24,
        cross_attention_dim=encoders.WIDTH,
        cross_attention_dim_t5=encoders.WIDTH,
        pooled_projection_dim=16,
    )
    vae = autoencoders.kl(4, layers_per_block=1, scaling_factor=0.13025)
    enliven(denoiser, vae, *texts)
    return pipeline(
        transformer=denoiser,
        vae=vae,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.018,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        text_encoder=texts[0],
        tokenizer=first,
        text_encoder_2=texts[1],
        tokenizer_2=second,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def hunyuan_dit_pag() -> Any:
    return hunyuan_dit(diffusers.HunyuanDiTPAGPipeline)


FAMILIES = (
    Family("SanaPipeline", sana, (32, 32)),
    Family("PixArtSigmaPipeline", pixart, (32, 32)),
    Family("Lumina2Pipeline", lumina_2, (32, 32)),
    Family("SanaSprintPipeline", sana_sprint, (32, 32), steps=2, fixed_steps=True),
    Family("PixArtAlphaPipeline", pixart_alpha, (32, 32)),
    Family("LuminaPipeline", lumina, (32, 32)),
    Family("HunyuanDiTPipeline", hunyuan_dit, (32, 32)),
    Family("SanaPAGPipeline", sana_pag, (32, 32)),
    Family("PixArtSigmaPAGPipeline", pixart_pag, (32, 32)),
    Family("HunyuanDiTPAGPipeline", hunyuan_dit_pag, (32, 32)),
)
