"""Tiny random models that read pictures, written as folders that transformers loads, and pictures for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image

from flowrl.contracts import Prompt
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language, load_processor
from flowrl.worlds.characters import tokenizer_of

SPECIAL = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|user|>",
    "<|assistant|>",
    "<image>",
)
IMAGE = SPECIAL.index("<|image_pad|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|user|>' if message.role == 'user' else '<|assistant|>' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """A token a character, and those that stand for media."""
    return tokenizer_of(SPECIAL, (), length=100_000)


def text_config(**more: Any) -> dict[str, Any]:
    """The sizes of a tiny decoder over this vocabulary."""
    return {
        "vocab_size": len(SPECIAL) + 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    } | more


def tower(**more: Any) -> dict[str, Any]:
    """The sizes of a tiny vision transformer."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return sizes | more


def llava() -> tuple[Any, Any]:
    """LLaVA: every picture is resized to 28 x 28, 16 placeholders."""
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**tower(), image_size=28, patch_size=7),
        text_config=tf.LlamaConfig(**text_config()),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    small = {"height": 28, "width": 28}
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(size=small, crop_size=small),
        tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return tf.LlavaForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: pictures of any size, positions of three numbers."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14}
    merged = {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
    config = tf.Qwen2_5_VLConfig(
        text_config=text_config(rope_parameters=rope),
        vision_config=sizes | merged | {"fullatt_block_indexes": [1], "window_size": 56},
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessor(size=size),
        tokenizer(),
        tf.Qwen2VLVideoProcessor(size=size),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {"llava": llava, "qwen2_5_vl": qwen2_5_vl}


def folder(path: Path, name: str, *, sharp: float = 3.0) -> Path:
    """A folder with a random model of that name and its processor, whose distributions are uneven."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    with torch.no_grad():
        for module in (model.model.language_model.norm,):
            module.weight.mul_(sharp)
    model.generation_config.eos_token_id = [3, *range(20, 100, 7)]
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def policy(path: Path, **options: Any) -> LanguagePolicy:
    """The model in a folder as a policy."""
    model, own = load_language(str(path), torch.float32)
    return LanguagePolicy(model, own, processor=load_processor(str(path)), **options)


def picture(path: Path, *, size: tuple[int, int] = (84, 56), seed: int = 0) -> str:
    """A file with a picture of noise, (width, height)."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (4, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    Image.fromarray(small).resize(size).save(path)
    return str(path)


def prompts(path: Path) -> list[Prompt]:
    """Prompts of different lengths with one, two and no picture, of different sizes."""
    first = picture(path / "first.png")
    second = picture(path / "second.png", size=(56, 112), seed=1)
    return [
        Prompt("one", "What is this?", (first,)),
        Prompt("two", "And which of these two is larger, <image> or <image>?", (second, first)),
        Prompt("none", "12+345"),
    ]
