"""Families that diffusers keeps for those who still have their weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven
from tests.families.parts import Parts

WIDTH = encoders.WIDTH


def vq_diffusion() -> Any:
    """Picks the codes of a picture of one size, anew at each step."""
    tokenizer, vqvae = tokenizers.clip(), autoencoders.vector_quantised()
    text_encoder = encoders.clip(tokenizer)
    codes = vqvae.config.num_vq_embeddings
    denoiser = diffusers.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=WIDTH,
        sample_size=16,
        num_vector_embeds=codes + 1,
        num_embeds_ada_norm=100,
        norm_type="ada_norm",
    )
    enliven(denoiser, text_encoder, vqvae)
    return diffusers.VQDiffusionPipeline(
        vqvae=vqvae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoiser,
        scheduler=diffusers.VQDiffusionScheduler(codes + 1),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(learnable=False),
    )


def uni_diffuser() -> Any:
    """Draws of words, writes of pictures, or both; here it is told words."""
    tokenizer, vae = tokenizers.clip(), autoencoders.kl()
    text_encoder, eyes = encoders.clip(tokenizer), encoders.clip_vision()
    letters = diffusers.UniDiffuserTextDecoder(
        prefix_length=77,
        prefix_inner_dim=WIDTH,
        prefix_hidden_dim=16,
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=1,
        n_head=2,
    )
    denoiser = diffusers.UniDiffuserModel(
        text_dim=16,
        clip_img_dim=WIDTH,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=1000,
    )
    enliven(denoiser, text_encoder, eyes, letters, vae)
    head = letters.transformer.lm_head  # the same tensor as the words': safetensors would refuse two names for it
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return diffusers.UniDiffuserPipeline(
        vae=vae,
        text_encoder=text_encoder,
        image_encoder=eyes,
        clip_image_processor=transformers.CLIPImageProcessor(size=32, crop_size=32),
        clip_tokenizer=tokenizer,
        text_decoder=letters,
        text_tokenizer=tokenizers.clip(),
        unet=denoiser,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


FAMILIES = (
    Family("VQDiffusionPipeline", vq_diffusion, (32, 32)),
    Family("UniDiffuserPipeline", uni_diffuser, (32, 32)),
    *(
        Family(kind.__name__, partial(Parts, kind), (64, 64))
        for kind in (
            diffusers.StableCascadeCombinedPipeline,
            diffusers.UnCLIPPipeline,
            diffusers.VersatileDiffusionTextToImagePipeline,
            diffusers.WuerstchenCombinedPipeline,
        )
    ),
)
