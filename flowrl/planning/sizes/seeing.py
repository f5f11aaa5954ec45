"""How many tokens the pictures of prompts take."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import Qwen2VLImageProcessor

from flowrl.contracts import Prompt
from flowrl.known.language import LANGUAGE
from flowrl.media.files import media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.media import placeholder_ids
from flowrl.policies.loading import load_processor
from flowrl.untyped import JSON

AROUND = 2  # tokens that begin and end a picture
SQUARE = 28 * 28  # pixels of a token
BOUNDS = {"min_pixels": 4 * SQUARE, "max_pixels": 16384 * SQUARE}  # of the processors of these models
CONFIGS = tuple(name for name, config in LANGUAGE.items() if "vision_config" in config)


def media_tokens(model: str, arguments: Mapping[str, JSON], prompts: Sequence[Prompt]) -> int | None:
    """The most tokens that the pictures of one prompt take, 0 where none has any; None where that is not known.

    arguments: of the processor. Without prompts at hand, of the models above, each is taken to have one picture of
    max_pixels, where that is given. A local model's own is asked about the prompt with the largest files; of the models
    above the sizes of the pictures are enough, which are brought to a multiple of 28 pixels between two bounds.
    """
    if not prompts and model in CONFIGS and (most := arguments.get("max_pixels")):
        return most // SQUARE + AROUND
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
