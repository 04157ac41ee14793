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


def deep_compression() -> Any:
    """Sana's: halves the picture once."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def qwen_image() -> Any:
    levels = {"base_dim": 8, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    return diffusers.AutoencoderKLQwenImage(**levels, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
