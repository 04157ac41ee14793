"""Tiny text encoders, each beside the tokenizer whose words it knows."""

from __future__ import annotations

from typing import Any

import transformers

WIDTH = 32
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_hidden_layers": 3}
SIZE: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 64, **HEADS}


def clip(tokenizer: Any, projected: bool = False, **config: Any) -> Any:
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = {"vocab_size": len(tokenizer), "projection_dim": WIDTH, "max_position_embeddings": 77}
    return kind(transformers.CLIPTextConfig(**SIZE, **ends, **{**size, **config}))


def t5(tokenizer: Any, **config: Any) -> Any:
    size = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), **{**size, **config}))


def umt5(tokenizer: Any, **config: Any) -> Any:
    size = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(tokenizer), **{**size, **config}))


def gemma2(tokenizer: Any) -> Any:
    config = transformers.Gemma2Config(**SIZE, head_dim=8, num_key_value_heads=2, vocab_size=len(tokenizer))
    return transformers.Gemma2Model(config)


def gemma(tokenizer: Any) -> Any:
    config = transformers.GemmaConfig(**SIZE, head_dim=8, num_key_value_heads=2, vocab_size=len(tokenizer))
    return transformers.GemmaModel(config)


def qwen3(tokenizer: Any, whole: bool = False, **config: Any) -> Any:
    kind = transformers.Qwen3ForCausalLM if whole else transformers.Qwen3Model
    size = {**SIZE, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer), **config}
    return kind(transformers.Qwen3Config(**size))


def qwen2_5_vl(tokenizer: Any) -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000000.0}
    text = {**SIZE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def llama(tokenizer: Any, **config: Any) -> Any:
    size = {**SIZE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), **config}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))


def qwen3_vl(tokenizer: Any, whole: bool = False, **config: Any) -> Any:
    """Without the head that writes words if not ``whole``."""
    kind = transformers.Qwen3VLForConditionalGeneration if whole else transformers.Qwen3VLModel
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5000000.0}
    text = {**SIZE, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope}
    text |= config
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return kind(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))


def glm(tokenizer: Any) -> Any:
    size = {**SIZE, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    return transformers.GlmModel(transformers.GlmConfig(**size, pad_token_id=tokenizer.pad_token_id))


def glm_image(tokenizer: Any) -> Any:
    """Writes the tokens of a picture, of 32 that there are, and never an end."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {**SIZE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope}
    text |= {"num_hidden_layers": 1}  # for the hundreds of tokens that it writes one after the other
    ends = {"vision_vocab_size": 32, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "image_size": 32}
    codes = {"embed_dim": 16, "num_embeddings": 32, "latent_channels": 16}
    config = transformers.GlmImageConfig(
        text_config=text | ends,
        vision_config=vision,
        vq_config=codes,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=30,
        image_end_token_id=31,
    )
    return transformers.GlmImageForConditionalGeneration(config)


def bert(tokenizer: Any) -> Any:
    return transformers.BertModel(transformers.BertConfig(**SIZE, vocab_size=len(tokenizer)))


def clip_vision() -> Any:
    size = {**SIZE, "image_size": 32, "patch_size": 8, "projection_dim": WIDTH}
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**size))


def mistral_3(tokenizer: Any, whole: bool = True) -> Any:
    """With eyes, as Flux 2's; as Ernie's if not ``whole``."""
    kind = transformers.Mistral3ForConditionalGeneration if whole else transformers.Mistral3Model
    layers = 31 if whole else 3
    text = {**SIZE, "num_hidden_layers": layers, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    vision = {**SIZE, "num_hidden_layers": 1, "head_dim": 8, "image_size": 32, "patch_size": 8, "model_type": "pixtral"}
    config = transformers.Mistral3Config(text_config={**text, "model_type": "mistral"}, vision_config=vision)
    return kind(config)


def smol_3(tokenizer: Any) -> Any:
    """Thin, for Bria's pipeline knows the number of the first token: the vocabulary is as large as the real one's."""
    size = {**SIZE, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    words = {"vocab_size": 128256, "pad_token_id": tokenizer.pad_token_id}
    return transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**size, **words))


def t5_gemma(tokenizer: Any) -> Any:
    """PRX's, whose weights are an encoder's and whose configuration, as it is published, that of the whole model."""
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    size = {**SIZE, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    whole = transformers.T5GemmaConfig(encoder=size, decoder=size, vocab_size=len(tokenizer))
    encoder = T5GemmaEncoder(whole.encoder)

    def save(folder: str, **settings: Any) -> None:
        T5GemmaEncoder.save_pretrained(encoder, folder, **settings)
        whole.save_pretrained(folder)

    encoder.save_pretrained = save
    return encoder


def multilingual_clip(tokenizer: Any) -> Any:
    """Kandinsky 2.1's."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    size = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 514, "pad_token_id": 1}
    return MultilingualCLIP(MCLIPConfig(numDims=WIDTH, transformerDimensions=WIDTH, **size))


def siglip_2() -> Any:
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIZE, num_patches=16))
