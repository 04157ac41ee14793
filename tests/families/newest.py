"""Families that diffusers has only lately, most of them with a language model for an ear."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.families import autoencoders, encoders, language_models, tokenizers
from tests.families.family import Family, enliven
from tests.families.parts import Parts

WIDTH = encoders.WIDTH


def _assembled(pipeline: Any, denoiser: Any, text_encoder: Any, **others: Any) -> Any:
    """With random weights in all of its networks, and a scheduler of flow matching unless it brings its own."""
    enliven(denoiser, text_encoder, *(part for part in (others.get("vae"),) if part is not None))
    parts = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **others}
    return pipeline(transformer=denoiser, text_encoder=text_encoder, **parts)


def glm_image() -> Any:
    """A language model writes the picture's tokens first, as many as there are in 256 pixels a side at least."""
    letters, processor = tokenizers.byt5(), tokenizers.glm_image()
    writer = encoders.glm_image(processor.tokenizer)
    enliven(writer)
    torch.nn.init.normal_(writer.lm_head.weight, std=0.5)  # sure of its tokens, or the prompt would change none of them
    denoiser = diffusers.GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=32,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return _assembled(
        diffusers.GlmImagePipeline,
        denoiser,
        encoders.t5(letters),
        vae=autoencoders.kl(levels=4, layers_per_block=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        tokenizer=letters,
        processor=processor,
        vision_language_encoder=writer,
        scheduler=scheduler,
    )


def qwen_image_2_1() -> Any:
    """Keeps what its transformer made of the prompt at the first step for all later ones."""
    tokenizer = tokenizers.qwen2()
    denoiser = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return _assembled(
        diffusers.QwenImage21Pipeline,
        denoiser,
        encoders.qwen3_vl(tokenizer, whole=True),
        vae=autoencoders.qwen_image_2_1(),
        processor=tokenizers.words_alone(tokenizer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _prx(**config: Any) -> Any:
    size: dict[str, Any] = {"context_in_dim": WIDTH, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]}
    return diffusers.PRXTransformer2DModel(**size, **config)


def prx() -> Any:
    """Draws at one of its own sizes, the smallest of which has 256 pixels a side."""
    tokenizer = tokenizers.gemma()
    tokenizer.model_max_length = 64
    return _assembled(
        diffusers.PRXPipeline,
        _prx(in_channels=4),
        encoders.t5_gemma(tokenizer),
        vae=autoencoders.kl(levels=4, layers_per_block=1, shift_factor=0.1159, scaling_factor=0.3611),
        tokenizer=tokenizer,
        default_sample_size=256,
    )


def prx_pixel() -> Any:
    """Draws pixels, without an autoencoder; its own sizes have about 1024 a side."""
    tokenizer = tokenizers.qwen2()
    return _assembled(
        diffusers.PRXPixelPipeline,
        _prx(in_channels=3, patch_size=32, bottleneck_size=16, resolution_embeds=True),
        encoders.qwen3_vl(tokenizer).language_model,
        tokenizer=tokenizer,
        prompt_max_tokens=32,
    )


def bria_fibo_2() -> Any:
    """Hears eighteen layers of its text encoder, three at a time."""
    tokenizer = tokenizers.qwen2()
    denoiser = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * WIDTH,
        injection_layer_ids=(1, 2, 3, 4, 5),
        min_num_gist_tokens=16,
        max_num_gist_tokens=32,
        axes_dims=(4, 6, 6),
        axes_lens=(64, 64, 64),
    )
    return _assembled(
        diffusers.BriaFibo2Pipeline,
        denoiser,
        encoders.qwen3_vl(tokenizer, whole=True, num_hidden_layers=36),
        vae=autoencoders.flux_2(),
        processor=tokenizers.words_alone(tokenizer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def flux_2_klein_kv() -> Any:
    """As Flux 2 Klein, but for what it keeps of pictures to edit."""
    return diffusers.Flux2KleinKVPipeline(**language_models.flux_2_klein().components)


def cosmos_2() -> Any:
    """Its pipeline makes itself a checker of prompts and pictures, of a package of its own."""
    tokenizer = tokenizers.t5()
    denoiser = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )
    return Parts(
        diffusers.Cosmos2TextToImagePipeline,
        transformer=denoiser,
        vae=autoencoders.wan(),
        text_encoder=encoders.t5(tokenizer),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    )


def omni_gen() -> Any:
    """Its transformer reads the prompt itself; for pictures beside it the pipeline needs torchvision."""
    tokenizer = tokenizers.llama3()
    denoiser = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        num_layers=2,
        pad_token_id=0,
        vocab_size=len(tokenizer),
        rope_scaling={"long_factor": [1] * 4, "short_factor": [1] * 4},
    )
    return Parts(
        diffusers.OmniGenPipeline,
        transformer=denoiser,
        vae=autoencoders.kl(),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )


FAMILIES = (
    Family("QwenImage21Pipeline", qwen_image_2_1, (64, 64), guidance="true_cfg_scale"),
    Family("PRXPipeline", prx, (64, 64)),
    Family("PRXPixelPipeline", prx_pixel, (64, 64)),
    Family("BriaFibo2Pipeline", bria_fibo_2, (32, 32)),
    Family("Flux2KleinKVPipeline", flux_2_klein_kv, (64, 64)),
    Family("GlmImagePipeline", glm_image, (64, 64)),
    Family("Cosmos2TextToImagePipeline", cosmos_2, (64, 64)),
    Family("OmniGenPipeline", omni_gen, (64, 64)),
)
