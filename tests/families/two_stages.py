"""Families with two denoisers, one after the other: a prior makes what the second one is told."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven
from tests.families.unets import CROSS, unet


def kandinsky_22() -> Any:
    """Two denoisers: a prior turns the prompt into an image's embedding, the U-Net turns that into a picture."""
    tokenizer = tokenizers.clip()
    text, vision, movq = (
        encoders.clip(tokenizer, projected=True),
        encoders.clip_vision(),
        autoencoders.vector_quantised(),
    )
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=encoders.WIDTH, num_layers=1
    )
    denoiser = unet(**CROSS, out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj")
    enliven(text, vision, movq, prior, denoiser)
    return diffusers.KandinskyV22CombinedPipeline(
        unet=denoiser,
        movq=movq,
        scheduler=diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False),
        prior_prior=prior,
        prior_image_encoder=vision,
        prior_text_encoder=text,
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        prior_image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )


def _cascade_part(latents: int, **config: Any) -> Any:
    return diffusers.StableCascadeUNet(
        in_channels=latents,
        out_channels=latents,
        timestep_ratio_embedding_dim=16,
        conditioning_dim=32,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=encoders.WIDTH,
        **config,
    )


def stable_cascade() -> Any:
    """The prior's latents are about a forty-second of the picture, the decoder's a fourth."""
    tokenizer, prior_tokenizer = tokenizers.clip(), tokenizers.clip()
    texts = [encoders.clip(each, projected=True) for each in (tokenizer, prior_tokenizer)]
    prior = _cascade_part(
        16, clip_text_in_channels=encoders.WIDTH, clip_image_in_channels=encoders.WIDTH, switch_level=(False,)
    )
    decoder = _cascade_part(4, patch_size=2, effnet_in_channels=16, pixel_mapper_in_channels=3)
    vqgan = _paella()
    enliven(prior, decoder, vqgan, *texts)
    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=texts[0],
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan,
        prior_prior=prior,
        prior_text_encoder=texts[1],
        prior_tokenizer=prior_tokenizer,
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def _paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel(bottleneck_blocks=1, embed_dim=32, num_vq_embeddings=64)


def wuerstchen() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt, WuerstchenPrior

    tokenizer, prior_tokenizer = tokenizers.clip(), tokenizers.clip()
    texts = [encoders.clip(each) for each in (tokenizer, prior_tokenizer)]
    prior = WuerstchenPrior(c_in=16, c=32, c_cond=encoders.WIDTH, c_r=16, depth=2, nhead=2)
    decoder = WuerstchenDiffNeXt(
        c_cond=encoders.WIDTH,
        c_r=16,
        c_hidden=[16, 32],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=16,
        clip_embd=encoders.WIDTH,
    )
    vqgan = _paella()
    enliven(prior, decoder, vqgan, *texts)
    return diffusers.WuerstchenCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=texts[0],
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan,
        prior_tokenizer=prior_tokenizer,
        prior_text_encoder=texts[1],
        prior_prior=prior,
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def stable_unclip() -> Any:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    width = encoders.WIDTH
    tokenizer, prior_tokenizer = tokenizers.clip(), tokenizers.clip()
    text, prior_text = encoders.clip(tokenizer), encoders.clip(prior_tokenizer, projected=True)
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=width, num_layers=1)
    denoiser = unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * width)
    vae = autoencoders.kl()
    enliven(text, prior_text, prior, denoiser, vae)
    return diffusers.StableUnCLIPPipeline(
        prior_tokenizer=prior_tokenizer,
        prior_text_encoder=prior_text,
        prior=prior,
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=width),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=text,
        unet=denoiser,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        vae=vae,
    )


FAMILIES = (
    Family("KandinskyV22CombinedPipeline", kandinsky_22, (32, 32)),
    Family("StableCascadeCombinedPipeline", stable_cascade, (128, 128), guidance="prior_guidance_scale"),
    Family("WuerstchenCombinedPipeline", wuerstchen, (128, 128), guidance="prior_guidance_scale"),
    Family("StableUnCLIPPipeline", stable_unclip, (32, 32)),
)
