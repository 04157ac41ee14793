"""Families whose denoiser is a U-Net."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as ldm

from tests.families import autoencoders, encoders, tokenizers
from tests.families.family import Family, enliven

SIDE = 32


def unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": SIDE // 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
            "cross_attention_dim": encoders.WIDTH,
            **config,
        }
    )


def _clips() -> dict[str, Any]:
    """The two text encoders of SDXL; the second one's tokenizer pads with an exclamation mark."""
    first, second = tokenizers.clip(), tokenizers.clip(pad_token="!")
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": encoders.clip(first),
        "text_encoder_2": encoders.clip(second, projected=True),
    }


def stable_diffusion(pipeline: Any = diffusers.StableDiffusionPipeline) -> Any:
    tokenizer = tokenizers.clip()
    text_encoder, denoiser, vae = encoders.clip(tokenizer), unet(), autoencoders.kl()
    enliven(text_encoder, denoiser, vae)
    return pipeline(
        unet=denoiser,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_pag() -> Any:
    return stable_diffusion(diffusers.StableDiffusionPAGPipeline)


def latent_consistency() -> Any:
    """Guidance is an embedding of the denoiser."""
    tokenizer = tokenizers.clip()
    text_encoder, denoiser, vae = encoders.clip(tokenizer), unet(time_cond_proj_dim=32), autoencoders.kl()
    enliven(text_encoder, denoiser, vae)
    return diffusers.LatentConsistencyModelPipeline(
        unet=denoiser,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(pipeline: Any = diffusers.StableDiffusionXLPipeline) -> Any:
    texts, vae = _clips(), autoencoders.kl(scaling_factor=0.13025)
    denoiser = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + encoders.WIDTH,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=2 * encoders.WIDTH,
    )
    enliven(texts["text_encoder"], texts["text_encoder_2"], denoiser, vae)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return pipeline(unet=denoiser, vae=vae, scheduler=scheduler, **texts)


def kolors() -> Any:
    """Stable Diffusion XL's denoiser with one large language model in place of two CLIPs."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel  # which warns as it is read

    tokenizer = tokenizers.chatglm()
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=tokenizer.vocab_size + 16,
            hidden_size=encoders.WIDTH,
            ffn_hidden_size=2 * encoders.WIDTH,
            kv_channels=encoders.WIDTH // 4,
            num_attention_heads=4,
            multi_query_attention=True,
            multi_query_group_num=2,
            add_qkv_bias=True,
            seq_length=256,
            original_rope=True,
        )
    )
    denoiser = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + encoders.WIDTH,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )
    vae = autoencoders.kl(scaling_factor=0.13025)
    enliven(text_encoder, denoiser, vae)
    with torch.no_grad():
        for name, weights in text_encoder.named_parameters():
            if weights.ndim == 1:  # it leaves them as the memory was
                weights.fill_(float("norm" in name))
            elif "layers" in name:  # its last states are not normed: as large as these they drown all rounding
                weights.mul_(0.2)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return diffusers.KolorsPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=denoiser, scheduler=scheduler
    )


def sdxl_pag() -> Any:
    return sdxl(diffusers.StableDiffusionXLPAGPipeline)


def panorama() -> Any:
    return stable_diffusion(diffusers.StableDiffusionPanoramaPipeline)


def safe() -> Any:
    return stable_diffusion(diffusers.StableDiffusionPipelineSafe)


def semantic() -> Any:
    return stable_diffusion(diffusers.SemanticStableDiffusionPipeline)


CROSS: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": encoders.WIDTH,
    "attention_head_dim": 8,
}


def deepfloyd() -> Any:
    """Draws pixels, without an autoencoder."""
    tokenizer = tokenizers.t5()
    text_encoder = encoders.t5(tokenizer)
    denoiser = unet(
        **CROSS,
        in_channels=3,
        out_channels=6,
        sample_size=SIDE,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        act_fn="gelu",
        norm_num_groups=16,
    )
    enliven(denoiser, text_encoder)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )
    return diffusers.IFPipeline(
        unet=denoiser,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def latent_diffusion() -> Any:
    """Its latents are an eighth of the picture, whatever its autoencoder is."""
    tokenizer = tokenizers.bert()
    config = ldm.LDMBertConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        head_dim=8,
    )
    bert, denoiser, vae = ldm.LDMBertModel(config), unet(), autoencoders.kl(4)
    enliven(bert, denoiser, vae)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=vae, bert=bert, tokenizer=tokenizer, unet=denoiser, scheduler=scheduler
    )


def kandinsky_3() -> Any:
    tokenizer = tokenizers.t5()
    text_encoder, movq = encoders.t5(tokenizer), autoencoders.vector_quantised(4)
    denoiser = diffusers.Kandinsky3UNet(
        time_embedding_dim=16,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(16, 32),
        cross_attention_dim=16,
        encoder_hid_dim=encoders.WIDTH,
    )
    enliven(text_encoder, movq, denoiser)
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.02, beta_schedule="squaredcos_cap_v2", steps_offset=1, clip_sample=False
    )
    return diffusers.Kandinsky3Pipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, unet=denoiser, scheduler=scheduler, movq=movq
    )


def dream_lite(pipeline: Any = diffusers.DreamLitePipeline) -> Any:
    """With a language model as text encoder; the tokenizer stands for a processor, which needs torchvision."""
    tokenizer = tokenizers.qwen2()
    text_encoder = encoders.qwen3_vl(tokenizer, whole=True)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    denoiser = diffusers.DreamLiteUNetModel(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        sample_size=SIDE // 2,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=encoders.WIDTH,
    )
    enliven(text_encoder, vae, denoiser)
    return pipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=tokenizer,
        vae=vae,
        unet=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def dream_lite_mobile() -> Any:
    return dream_lite(diffusers.DreamLiteMobilePipeline)


FAMILIES = (
    Family("StableDiffusionPipeline", stable_diffusion, (32, 32)),
    Family("StableDiffusionXLPipeline", sdxl, (32, 32)),
    Family("LatentConsistencyModelPipeline", latent_consistency, (32, 32)),
    Family("StableDiffusionPAGPipeline", stable_diffusion_pag, (32, 32)),
    Family("StableDiffusionXLPAGPipeline", sdxl_pag, (32, 32)),
    Family("KolorsPipeline", kolors, (32, 32)),
    Family("IFPipeline", deepfloyd, (32, 32)),
    Family("LDMTextToImagePipeline", latent_diffusion, (64, 64)),
    Family("Kandinsky3Pipeline", kandinsky_3, (64, 64)),
    Family("StableDiffusionPanoramaPipeline", panorama, (32, 32)),
    Family("StableDiffusionPipelineSafe", safe, (32, 32)),
    Family("SemanticStableDiffusionPipeline", semantic, (32, 32)),
    Family("DreamLitePipeline", dream_lite, (32, 32)),
    Family("DreamLiteMobilePipeline", dream_lite_mobile, (32, 32)),
)
