"""BLIP as transformers has it, filled from tensors in the names of the public BLIP code.

Sizes are read off the tensors; only the numbers of heads leave no trace in them.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from flowrl.untyped import Config, Network
from reward_models.parts import checkpoints

_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


def vision_name(name: str) -> str:
    """What transformers calls a tensor of BLIP's visual encoder."""
    return checkpoints.renamed(name, _VISION)


def vision(tensors: Mapping[str, Tensor], heads: int, what: str) -> Network:
    """BlipVisionModel filled with the visual encoder's tensors, shaped as in BLIP. Raises ValueError if they do not
    fit; the same shape is required of each."""
    from transformers import BlipVisionConfig, BlipVisionModel

    pixels, places = _required(tensors, "patch_embed.proj.weight", what), _required(tensors, "pos_embed", what)
    patch, width = pixels.shape[-1], pixels.shape[0]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_required(tensors, "blocks.0.mlp.fc1.weight", what).shape[0],
        num_hidden_layers=_layers(tensors, r"blocks\.(\d+)\."),
        num_attention_heads=_divides(heads, width, "image_heads", what),
        image_size=patch * math.isqrt(places.shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,  # as the public code; transformers' own default is 1e-5
    )
    return _fill(BlipVisionModel, config, {vision_name(n): t for n, t in tensors.items()}, what)


def text(tensors: Mapping[str, Tensor], heads: int, image_width: int, what: str) -> Network:
    """BlipTextModel, with cross-attention, filled with the text encoder's tensors, each of the same shape.

    Raises ValueError as vision.
    """
    from transformers import BlipTextConfig, BlipTextModel

    words = _required(tensors, "embeddings.word_embeddings.weight", what)
    config = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=image_width,
        intermediate_size=_required(tensors, "encoder.layer.0.intermediate.dense.weight", what).shape[0],
        num_hidden_layers=_layers(tensors, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=_divides(heads, words.shape[1], "text_heads", what),
        max_position_embeddings=_required(tensors, "embeddings.position_embeddings.weight", what).shape[0],
        is_decoder=True,  # gives the layers their cross-attention; a call attends in both directions all the same
    )
    kept = {n: t for n, t in tensors.items() if n != "embeddings.position_ids"}
    return _fill(BlipTextModel, config, kept, what, add_pooling_layer=False)


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors, of any shape, whose names begin with the prefix, under names without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _fill(kind: type, config: Config, tensors: Mapping[str, Tensor], what: str, **options: object) -> Network:
    """The model of these tensors, float32; nothing is drawn at random first."""
    with torch.device("meta"):
        wanted = kind(config, **options).state_dict()
    fit = checkpoints.matching_tensors(wanted, tensors, what)
    return kind.from_pretrained(None, config=config, state_dict=fit, dtype=torch.float32, **options)


def _required(tensors: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{what}: the checkpoint holds no {name}; is it the file of another model?")
    return tensors[name]


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1)


def _divides(heads: int, width: int, name: str, what: str) -> int:
    if heads < 1 or width % heads:
        raise ValueError(f"{what}: {name}={heads} does not divide the width {width}; give the number of heads")
    return heads
