"""Configs of vision-language models on the hub, and how many tokens the pictures of prompts take."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import AutoConfig, PretrainedConfig, Qwen2VLImageProcessor

from flowrl.contracts import Prompt
from flowrl.media.files import media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.media import placeholder_ids
from flowrl.policies.loading import load_processor
from flowrl.untyped import JSON

AROUND = 2  # tokens that begin and end a picture
BOUNDS = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}  # of the processors of these models
_TOWER = {"depth": 32, "num_heads": 16, "intermediate_size": 3420, "hidden_size": 1280}


def _qwen(kind: str, widths: tuple[int, int], layers: int, heads: tuple[int, int], vocabulary: int) -> dict[str, Any]:
    """A config of Qwen2-VL or Qwen2.5-VL; widths: hidden and intermediate; heads: of queries, and of keys."""
    tied = vocabulary == 151936
    text = {"hidden_size": widths[0], "intermediate_size": widths[1], "num_hidden_layers": layers}
    text |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "vocab_size": vocabulary}
    newer = kind == "qwen2_5_vl"
    vision = _TOWER | {"out_hidden_size": widths[0]} if newer else {"hidden_size": widths[0]}
    name = "Qwen2_5_VLForConditionalGeneration" if newer else "Qwen2VLForConditionalGeneration"
    text |= {"tie_word_embeddings": tied, "max_position_embeddings": 128000 if newer else 32768}
    return {"model_type": kind, "tie_word_embeddings": tied, "text_config": text, "vision_config": vision} | {
        "architectures": [name]
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen("qwen2_vl", (1536, 8960), 28, (12, 2), 151936),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen("qwen2_vl", (3584, 18944), 28, (28, 4), 152064),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen("qwen2_5_vl", (2048, 11008), 36, (16, 2), 151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen("qwen2_5_vl", (3584, 18944), 28, (28, 4), 152064),
}


def config_of(model: str) -> PretrainedConfig | None:
    """The config of a model on the hub that is known here."""
    return AutoConfig.for_model(**CONFIGS[model]) if model in CONFIGS else None


def media_tokens(model: str, arguments: Mapping[str, JSON], prompts: Sequence[Prompt]) -> int | None:
    """The most tokens that the pictures of one prompt take, 0 where none has any; None where that is not known.

    arguments: of the processor. A local model's own is asked about the prompt with the largest files; of the models
    above the sizes of the pictures are enough, which are brought to a multiple of 28 pixels between two bounds.
    """
    with_media = [prompt for prompt in prompts if prompt.media]
    if not with_media:
        return 0
    if model in CONFIGS:
        bounds: dict[str, Any] = BOUNDS | {name: arguments[name] for name in BOUNDS if name in arguments}
        processor = Qwen2VLImageProcessor(**bounds)
        sums = [_patches(processor, prompt) for prompt in with_media]
        return None if None in sums else max(n for n in sums if n is not None)
    try:
        processor = load_processor(model, arguments)
        largest = max(with_media, key=_pixels)
        encode = Encoder(processor.tokenizer, processor=processor, barred=placeholder_ids(processor))
        ids, shown = encode.row(largest)
    except (PolicyError, AttributeError):
        return None
    return sum(token in encode.barred for token in ids) + AROUND * len(largest.media) if shown else None


def _patches(processor: Any, prompt: Prompt) -> int | None:
    """Tokens of a prompt's pictures, four patches of 14 pixels each; None where it has other media."""
    total = 0
    for path in prompt.media:
        if media_kind(path) != "image":
            return None
        with Image.open(path) as picture:
            width, height = picture.size
        total += processor.get_number_of_image_patches(height, width, {}) // 4 + AROUND
    return total


def _pixels(prompt: Prompt) -> int:
    total = 0
    for path in prompt.media:
        if media_kind(path) == "image":
            with Image.open(path) as picture:
                total += picture.size[0] * picture.size[1]
    return total
