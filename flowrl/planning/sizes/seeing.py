"""How many tokens the pictures of prompts take."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from flowrl.contracts import Prompt
from flowrl.known.language import LANGUAGE
from flowrl.media.files import media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.media.processing import placeholder_ids
from flowrl.policies.loading import load_processor
from flowrl.untyped import JSON

AROUND = 2  # tokens that begin and end a picture
SQUARE = 28 * 28  # pixels of a token
BOUNDS = {"min_pixels": 4 * SQUARE, "max_pixels": 16384 * SQUARE}  # of the processors of these models
CONFIGS = tuple(name for name, config in LANGUAGE.items() if "vision_config" in config)


def media_tensors(model: str, arguments: Mapping[str, JSON], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the model's processor makes of the pictures of the prompt with the largest, by argument: numbers as shapes
    on meta, sizes as they are. Nothing where none has any, or that is not known.

    Of the models above, all of a prompt's count as one picture.
    """
    if model in CONFIGS:
        tokens, vision = media_tokens(model, arguments, prompts) or 0, LANGUAGE[model]["vision_config"]
        sizes = {"patch_size": 14, "temporal_patch_size": 2, "in_channels": 3, "spatial_merge_size": 2} | vision
        patch = sizes["in_channels"] * sizes["temporal_patch_size"] * sizes["patch_size"] ** 2
        return picture_tensors(tokens - AROUND, patch, sizes["spatial_merge_size"]) if tokens > AROUND else {}
    with_media = [prompt for prompt in prompts if prompt.media]
    if not with_media:
        return {}
    try:
        processor = load_processor(model, arguments)
        encode = Encoder(processor.tokenizer, processor=processor, barred=placeholder_ids(processor))
        _, shown = encode.row(max(with_media, key=_pixels))
    except (PolicyError, AttributeError):
        return {}
    found: dict[str, list[Tensor]] = {}
    for piece in () if shown is None else shown.pieces:
        for name, value in piece.tensors.items():
            found.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in found.items()}
    return {name: value.to("meta") if value.is_floating_point() else value for name, value in joined.items()}


def picture_tensors(tokens: int, patch: int, merged: int) -> dict[str, Tensor]:
    """What a processor of Qwen's makes of one picture of so many tokens, near a square: patches of `patch` numbers,
    merged x merged of them a token."""
    high = max(n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0)
    grid = torch.tensor([[1, high * merged, tokens // high * merged]], device="cpu")
    return {"pixel_values": torch.empty(tokens * merged**2, patch, device="meta"), "image_grid_thw": grid}


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
