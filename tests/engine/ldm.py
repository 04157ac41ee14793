"""Writes a Stable Diffusion pipeline as the single file of the original code, the layout that most such files have.

Source: the names of CompVis' ``ldm.modules.diffusionmodules`` (``openaimodel.UNetModel``, ``model.Encoder`` and
``Decoder``), which diffusers' ``convert_ldm_unet_checkpoint`` and ``convert_ldm_vae_checkpoint`` read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(pipe: Any, file: Path) -> None:
    """The weights of a pipeline with the built-in layout of blocks: one U-Net, one autoencoder, one CLIP."""
    layers, vae_levels = pipe.unet.config.layers_per_block, len(pipe.vae.config.block_out_channels)
    weights = {}
    for name, one in pipe.unet.state_dict().items():
        weights["model.diffusion_model." + _of_unet(name, layers, pipe.unet)] = one
    for name, one in pipe.vae.state_dict().items():
        linear = re.search(r"to_[qkv]\.weight|to_out\.0\.weight", name)
        weights["first_stage_model." + _of_vae(name, vae_levels)] = one[..., None, None] if linear else one
    for name, one in pipe.text_encoder.state_dict().items():
        weights["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = one
    save_file({name: one.clone().contiguous() for name, one in weights.items()}, file)


def _of_unet(name: str, layers: int, unet: Any) -> str:
    for own, other in ENDS.items():
        if name.startswith(f"{own}."):
            return name.replace(own, other)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, at, rest = found.groups()
        return f"middle_block.{2 * int(at) + (kind == 'attentions')}.{_resnet(rest) if kind == 'resnets' else rest}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name)
    assert found, name
    way, level, kind, at, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.{rest.replace('conv', 'op')}"
    attends = "Attn" in (unet.config.up_block_types if way == "up" else unet.config.down_block_types)[level]
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * level + layers}.{2 if attends else 1}.{rest}"
    block = (
        f"input_blocks.{(layers + 1) * level + at + 1}"
        if way == "down"
        else f"output_blocks.{(layers + 1) * level + at}"
    )
    return f"{block}.0.{_resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def _resnet(rest: str) -> str:
    first, dot, last = rest.partition(".")
    return RESNET[first] + dot + last


def _of_vae(name: str, levels: int) -> str:
    name = re.sub(r"mid_block\.attentions\.0\.", "mid.attn_1.", name)
    for own, other in ATTENTION.items():
        name = name.replace(f"mid.attn_1.{own}.", f"mid.attn_1.{other}.")
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda at: f"mid.block_{int(at[1]) + 1}.", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)\.", r"down.\1.block.\2.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)\.", lambda at: f"up.{levels - 1 - int(at[1])}.block.{at[2]}.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda at: f"up.{levels - 1 - int(at[1])}.upsample.", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
