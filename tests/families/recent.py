"""Further families whose denoiser is a transformer."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

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


def bria_fibo() -> Any:
    """Every layer of the text encoder is heard by a layer of the transformer."""
    tokenizer = tokenizers.smol()
    denoiser = diffusers.BriaFiboTransformer2DModel(
        **{**SMALL, **FLUX, "in_channels": 4, "joint_attention_dim": 16},
        text_encoder_dim=8,
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


def ernie_image() -> Any:
    """Without the model that makes prompts longer."""
    tokenizer = tokenizers.mistral()
    denoiser = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
    )
    text = encoders.mistral_3(tokenizer, whole=False), tokenizer
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _assembled(diffusers.ErnieImagePipeline, denoiser, autoencoders.flux_2(), scheduler, text)


def nucleus() -> Any:
    """Hears the eighth layer from the end; the tokenizer stands for a processor, which needs torchvision."""
    tokenizer = tokenizers.qwen2()
    denoiser = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    text_encoder, vae = encoders.qwen3_vl(tokenizer, whole=True, num_hidden_layers=9), autoencoders.qwen_image()
    enliven(denoiser, text_encoder, vae)
    return diffusers.NucleusMoEImagePipeline(
        transformer=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text_encoder,
        processor=tokenizer,
    )


def amused() -> Any:
    """Picks the codes of a picture's tokens, a few more at each step, and decodes them."""
    tokenizer = tokenizers.clip()
    text_encoder = encoders.clip(tokenizer, projected=True)
    denoiser = diffusers.UVit2DModel(
        hidden_size=32,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=33,
        codebook_size=32,
        in_channels=32,
        block_out_channels=32,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        sample_size=16,
    )
    vqvae = diffusers.VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=32,
        layers_per_block=2,
        norm_num_groups=8,
        num_vq_embeddings=32,
        vq_embed_dim=32,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    enliven(denoiser, text_encoder, vqvae)
    return diffusers.AmusedPipeline(
        vqvae=vqvae,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=denoiser,
        scheduler=diffusers.AmusedScheduler(mask_token_id=32),
    )


def ideogram_4() -> Any:
    """Two transformers, with and without the prompt; the stock call fixes the guidance of each of 48 steps."""
    tokenizer = tokenizers.qwen2()
    text_encoder, vae = encoders.qwen3_vl(tokenizer, num_hidden_layers=36), autoencoders.flux_2()
    denoisers = [
        diffusers.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * WIDTH,
            mrope_section=(4, 2, 2),
        )
        for _ in range(2)
    ]
    enliven(text_encoder, vae, *denoisers)
    return diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoisers[0],
        unconditional_transformer=denoisers[1],
    )


def z_image_omni() -> Any:
    """Draws without pictures to look at as well."""
    tokenizer = tokenizers.qwen2()
    denoiser = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        siglip_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    eyes = encoders.siglip_2()
    enliven(eyes)
    vae = autoencoders.kl(shift_factor=0.1159, scaling_factor=0.3611)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text = encoders.qwen3(tokenizer), tokenizer
    others = {"siglip": eyes, "siglip_processor": transformers.Siglip2ImageProcessor()}
    return _assembled(diffusers.ZImageOmniPipeline, denoiser, vae, scheduler, text, **others)


FAMILIES = (
    Family("Kandinsky5T2IPipeline", kandinsky_5, (64, 64)),
    Family("LongCatImagePipeline", longcat_image, (32, 32), extra={"enable_prompt_rewrite": False}),
    Family("Flux2Pipeline", flux_2, (32, 32)),
    Family("BriaFiboPipeline", bria_fibo, (64, 64)),
    Family("CogView3PlusPipeline", cogview_3, (32, 32)),
    Family("ErnieImagePipeline", ernie_image, (32, 32)),
    Family("NucleusMoEImagePipeline", nucleus, (32, 32)),
    Family("AmusedPipeline", amused, (32, 32)),
    Family("Ideogram4Pipeline", ideogram_4, (64, 64), extra={"guidance_scale": 7.0, "guidance_schedule": None}),
    Family("ZImageOmniPipeline", z_image_omni, (32, 32)),
)
