"""Tiny tokenizers of the kinds that text-to-image pipelines use, with the settings of the real ones."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTokenizerFast,
    GemmaTokenizer,
    GlmImageImageProcessor,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Tokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from handler.settings import BUILT_IN_MODEL

TEXT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment",
    "based on textual prompts or user prompts. Given a user prompt, generate an Enhanced prompt that provides detailed",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the",
    "system user assistant",
    "objects and background: a red fox, two owls at night, the sea, a green tree on a hill, snow, a house, one cat",
)
"""What the vocabularies are made of: words of prompts and of the instructions that some pipelines put before them."""

CHARACTERS = [chr(code) for code in range(33, 127)]
CHAT = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'][0]['text'] + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '[INST]' + message['content'][0]['text'] + '[/INST]' }}{% endif %}{% endfor %}"
)


@cache
def _pairs(byte_level: bool, first: tuple[str, ...], size: int = 800) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte pair encoding; ``first`` come first in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    alphabet = [*CHARACTERS, "▁"]
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def clip(longest: int = 77, **settings: Any) -> Any:
    """The built-in model's, as long as CLIP's."""
    return CLIPTokenizerFast.from_pretrained(BUILT_IN_MODEL / "tokenizer", model_max_length=longest, **settings)


def _pieces(*first: str) -> list[tuple[str, float]]:
    words = sorted({f"▁{word.strip(',.:')}" for line in TEXT for word in line.split()})
    special = [(token, 0.0) for token in first]
    return [*special, ("▁", -2.0), *((one, -6.0) for one in CHARACTERS), *((word, -4.0) for word in words)]


def t5() -> Any:
    return T5Tokenizer(vocab=_pieces("<pad>", "</s>", "<unk>"), extra_ids=0, model_max_length=512)


def xlm_roberta() -> Any:
    return XLMRobertaTokenizer(vocab=_pieces("<s>", "<pad>", "</s>", "<unk>"), model_max_length=512)


def chatglm() -> Any:
    """Kolors' own, whose vocabulary is sentencepiece's: a file, which is copied when the tokenizer is saved."""
    kept = TemporaryDirectory()
    folder = Path(kept.name)
    (folder / "text").write_text("\n".join(TEXT * 20))
    SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = ChatGLMTokenizer(str(folder / "tokenizer.model"))
    tokenizer.kept = kept
    return tokenizer


def bert() -> Any:
    words = sorted({word.strip(",.:").lower() for line in TEXT for word in line.split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{one}" for one in CHARACTERS), *words]
    return BertTokenizer(vocab={token: place for place, token in enumerate(dict.fromkeys(tokens))}, model_max_length=77)


def qwen2() -> Any:
    specials = ("<|endoftext|>", *CHAT, "<think>", "</think>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    vocab, merges = _pairs(byte_level=True, first=specials)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token=CHAT[1], chat_template=CHAT_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials[1:])})
    return tokenizer


def gemma() -> Any:
    """Sentences begin with <bos> and are padded on the left, as Gemma's own are."""
    bytes_ = tuple(f"<0x{byte:02X}>" for byte in range(256))
    vocab, merges = _pairs(byte_level=False, first=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *bytes_), size=900)
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
    _begins_with(tokenizer, "<bos>")
    return tokenizer


def llama3() -> Any:
    """As Llama 3.1's: bytes, <|begin_of_text|> at the beginning, no padding token of its own."""
    specials = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    return _fast(specials, bos_token=specials[0], eos_token=specials[1], chat_template=LLAMA_TEMPLATE)


def mistral() -> Any:
    """As Mistral Small 3's: padded on the left, messages between [INST] and [/INST]."""
    specials = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _fast(specials, **ends, padding_side="left", chat_template=MISTRAL_TEMPLATE)


def smol() -> Any:
    """As SmolLM 3's."""
    specials = ("<|begin_of_text|>", "<|end_of_text|>", *CHAT)
    return _fast(specials, eos_token=CHAT[1], pad_token=CHAT[1], padding_side="left", chat_template=CHAT_TEMPLATE)


def glm() -> Any:
    """As GLM 4's: padded on the left, two tokens at the beginning."""
    specials = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>")
    tokenizer = _fast(specials, eos_token=specials[0], pad_token=specials[0], padding_side="left")
    _begins_with(tokenizer, "[gMASK]", "<sop>")
    return tokenizer


def glm_image() -> Any:
    """A processor of words and pictures, which can do without torchvision."""
    ends = {"bos_token": "<sop>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    grid = {"image_token": "<|image|>", "grid_bos_token": "<|grid|>", "grid_eos_token": "<|/grid|>"}
    tokenizer = _fast((*ends.values(), *grid.values()), **ends, padding_side="left", extra_special_tokens=grid)
    return GlmImageProcessor(GlmImageImageProcessor(), tokenizer, chat_template=CHAT_TEMPLATE)


def byt5() -> Any:
    return ByT5Tokenizer()


class WordsAlone(ProcessorMixin):  # type: ignore[misc]
    """Stands for a processor of words and pictures, which needs torchvision."""

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text: Any, **settings: Any) -> Any:
        return super().__call__(text=[text] if isinstance(text, str) else text, **settings)


def words_alone(tokenizer: Any) -> Any:
    return WordsAlone(tokenizer, chat_template=tokenizer.chat_template)


def _fast(specials: tuple[str, ...], **settings: Any) -> Any:
    vocab, merges = _pairs(byte_level=True, first=specials)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(list(specials))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **settings)
    if tokenizer.bos_token:
        _begins_with(tokenizer, tokenizer.bos_token)
    return tokenizer


def _begins_with(tokenizer: Any, *first: str) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A"],
        pair=[*first, "$A", "$B"],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in first],
    )
