"""Tiny text encoders and offline tokenizers, all of them real transformers classes with seeded random weights."""

from __future__ import annotations

import functools
import json
import string
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from .base import randomize

WIDTH = 16
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    + ["<|video_pad|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
)  # fmt: skip
# Words of the prompt templates: the pipelines drop a fixed number of leading tokens, which is right only where a
# template word is about one token. Everything else is spelled in bytes.
CORPUS = [
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background:\nuser\nassistant\n",
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.",
    "Describe the video by detailing the following aspects: 1. The main content and theme of the video.2. The color, "
    "shape, size, texture, quantity, text, and spatial relationships of the objects.3. Actions, events, behaviors "
    "temporal relationships, physical movement changes of the objects.4. background environment, light, style and "
    "atmosphere.5. camera angles, movements, and transitions used in the video:",
    "You are a promt engineer. Describe the image by detailing Describe the video in detail. Describe the camera "
    "how the camera moves or shakes, describe the zoom and view angle, whether it follows the objects. Describe the "
    "location of the video, main characters or objects and their action. Describe the dynamism of the video and "
    "presented actions. Name the visual style of the video: whether it is a professional footage, user generated "
    "content, some kind of animation, video game or screen content. Describe the visual effects, postprocessing and "
    "transitions if they are presented in the video. Pay attention to the order of key actions shown in the scene.",
]


@functools.cache
def _bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE in which every template word is one token."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def qwen_tokenizer(**kwargs: Any) -> tf.Qwen2Tokenizer:
    """Byte-level BPE with the Qwen control tokens and a short chat template."""
    vocab, merges = _bpe()
    tokenizer = tf.Qwen2Tokenizer(
        vocab=dict(vocab), merges=merges, chat_template=CHAT, model_max_length=1024, padding_side="right", **kwargs
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    return tokenizer


def clip_tokenizer() -> tf.CLIPTokenizer:
    """CLIPTokenizer without merges: one token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return tf.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=48)


def t5_tokenizer(**kwargs: Any) -> tf.T5TokenizerFast:
    """Unigram tokenizer with one piece per printable character."""
    letters = string.ascii_letters + string.digits + string.punctuation
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -2.0) for c in letters)]
    return tf.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=128, **kwargs)


def gemma_tokenizer(**kwargs: Any) -> tf.GemmaTokenizer:
    """GemmaTokenizer without merges: one token per printable character."""
    letters = string.ascii_letters + string.digits + string.punctuation
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *letters]
    return tf.GemmaTokenizer(
        vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=128, padding_side="right", **kwargs
    )


def clip_text(projection: bool = False, width: int = WIDTH, seed: int = 21) -> tf.PreTrainedModel:
    """CLIPTextModel or CLIPTextModelWithProjection for clip_tokenizer."""
    config = tf.CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return randomize((tf.CLIPTextModelWithProjection if projection else tf.CLIPTextModel)(config), seed)


def t5_text(umt5: bool = False, width: int = WIDTH, seed: int = 22) -> tf.PreTrainedModel:
    """T5EncoderModel (or UMT5EncoderModel) for t5_tokenizer."""
    config = (tf.UMT5Config if umt5 else tf.T5Config)(
        vocab_size=128, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2, is_gated_act=True
    )
    return randomize((tf.UMT5EncoderModel if umt5 else tf.T5EncoderModel)(config), seed)


def _decoder(config_class: Any, vocab_size: int, **kwargs: Any) -> Any:
    """A tiny config of any LLaMA-shaped decoder."""
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config_class(**(shape | kwargs))


def byte_vocab_size() -> int:
    """Number of ids of qwen_tokenizer, control tokens included."""
    return len(_bpe()[0]) + len(SPECIALS)


def qwen3(causal: bool = False, seed: int = 23) -> tf.PreTrainedModel:
    """Qwen3Model or Qwen3ForCausalLM."""
    config = _decoder(tf.Qwen3Config, byte_vocab_size())
    return randomize((tf.Qwen3ForCausalLM if causal else tf.Qwen3Model)(config), seed)


def llama(causal: bool = False, seed: int = 24, **kwargs: Any) -> tf.PreTrainedModel:
    """LlamaModel or LlamaForCausalLM over the byte-level tokenizer."""
    config = _decoder(tf.LlamaConfig, byte_vocab_size(), **kwargs)
    return randomize((tf.LlamaForCausalLM if causal else tf.LlamaModel)(config), seed)


def gemma2(seed: int = 25) -> tf.PreTrainedModel:
    """Gemma2Model for gemma_tokenizer."""
    return randomize(tf.Gemma2Model(_decoder(tf.Gemma2Config, 128, query_pre_attn_scalar=8)), seed)


def glm(seed: int = 26) -> tf.PreTrainedModel:
    """GlmModel over the byte-level tokenizer."""
    return randomize(tf.GlmModel(_decoder(tf.GlmConfig, byte_vocab_size())), seed)


def qwen25_vl(seed: int = 27) -> tf.PreTrainedModel:
    """Qwen2_5_VLForConditionalGeneration with a one-layer vision tower."""
    ids = dict(zip(SPECIALS, range(len(_bpe()[0]), byte_vocab_size()), strict=True))
    text = {
        "vocab_size": byte_vocab_size(),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [0],
    }
    config = tf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return randomize(tf.Qwen2_5_VLForConditionalGeneration(config), seed)


def gemma3(seed: int = 28) -> tf.PreTrainedModel:
    """Gemma3ForConditionalGeneration with two text layers and a tiny vision tower."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2}
    text = shape | {"vocab_size": 128, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
    vision = shape | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    config = tf.Gemma3Config(
        text_config=text | {"query_pre_attn_scalar": 8, "sliding_window": 64},
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=120,
        eoi_token_index=121,
        image_token_index=122,
    )
    return randomize(tf.Gemma3ForConditionalGeneration(config), seed)


def qwen_vl_processor() -> tf.Qwen2VLProcessor:
    """Qwen2VLProcessor around qwen_tokenizer and a Qwen2-VL image processor with small limits."""
    images = tf.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=84 * 84)
    videos = tf.Qwen2VLVideoProcessor(min_pixels=56 * 56, max_pixels=84 * 84)
    return tf.Qwen2VLProcessor(
        image_processor=images, tokenizer=qwen_tokenizer(), video_processor=videos, chat_template=CHAT
    )


def byt5_text(seed: int = 29) -> tf.PreTrainedModel:
    """T5EncoderModel with the vocabulary of ByT5Tokenizer."""
    config = tf.T5Config(vocab_size=384, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=2)
    return randomize(tf.T5EncoderModel(config), seed)


def mistral3(seed: int = 30) -> tf.PreTrainedModel:
    """Mistral3ForConditionalGeneration over the byte-level tokenizer."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "head_dim": 8}
    text = shape | {"vocab_size": byte_vocab_size(), "num_hidden_layers": 3, "num_key_value_heads": 1}
    vision = shape | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = tf.Mistral3Config(
        text_config=text | {"model_type": "mistral"},
        vision_config=vision | {"model_type": "pixtral"},
        image_token_index=byte_vocab_size() - 1,
    )
    return randomize(tf.Mistral3ForConditionalGeneration(config), seed)
