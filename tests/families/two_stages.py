"""Families with two denoisers, one after the other: a prior makes what the second one is told."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven
from tests.families.unets import CROSS, unet


def _prior() -> dict[str, Any]:
    """What makes an image's embedding of a prompt."""
    tokenizer = tokenizers.clip()
    text, vision = encoders.clip(tokenizer, projected=True), encoders.clip_vision()
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=encoders.WIDTH, num_layers=1
    )
    enliven(text, vision, prior)
    return {
        "prior_prior": prior,
        "prior_image_encoder": vision,
        "prior_text_encoder": text,
        "prior_tokenizer": tokenizer,
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        "prior_image_processor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    }


def kandinsky_22() -> Any:
    movq = autoencoders.vector_quantised()
    denoiser = unet(**CROSS, out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj")
    enliven(movq, denoiser)
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False)
    return diffusers.KandinskyV22CombinedPipeline(unet=denoiser, movq=movq, scheduler=scheduler, **_prior())


def kandinsky() -> Any:
    """The second stage hears the prompt as well."""
    tokenizer, movq = tokenizers.xlm_roberta(), autoencoders.vector_quantised()
    text = encoders.multilingual_clip(tokenizer)
    kind = {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
    denoiser = unet(**CROSS, out_channels=8, **kind)
    enliven(text, movq, denoiser)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return diffusers.KandinskyCombinedPipeline(
        text_encoder=text, tokenizer=tokenizer, unet=denoiser, movq=movq, scheduler=scheduler, **_prior()
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
    Family("StableUnCLIPPipeline", stable_unclip, (32, 32)),
    Family("KandinskyCombinedPipeline", kandinsky, (32, 32)),
)
