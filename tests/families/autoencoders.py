"""Tiny autoencoders."""

from __future__ import annotations

from typing import Any

import diffusers


def kl(levels: int = 2, **config: Any) -> Any:
    """Halves the picture ``levels - 1`` times."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * (levels - 1) + (16,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        sample_size=32,
        **{"latent_channels": 4, **config},
    )


def deep_compression(levels: int = 6) -> Any:
    """Sana's: halves the picture ``levels - 1`` times."""
    kinds, scales = ("ResBlock",) * (levels - 1) + ("EfficientViTBlock",), ((),) * (levels - 1) + ((5,),)
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def qwen_image() -> Any:
    levels = {"base_dim": 8, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    return diffusers.AutoencoderKLQwenImage(**levels, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def flux_2() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
    )


def hunyuan_image() -> Any:
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.75289,
    )


def vector_quantised(levels: int = 2) -> Any:
    """Kandinsky's."""
    return diffusers.VQModel(
        block_out_channels=[32] * (levels - 1) + [64],
        down_block_types=["DownEncoderBlock2D"] * (levels - 1) + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def wan() -> Any:
    """Makes a sixteenth of a picture, which is a video of one frame to it."""
    levels = {"base_dim": 8, "dim_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False] * 4}
    return diffusers.AutoencoderKLWan(**levels, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def qwen_image_2_1() -> Any:
    """Makes a sixteenth of a picture, of four channels."""
    levels = {"base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1}
    return diffusers.AutoencoderKLQwenImage21(**levels, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
