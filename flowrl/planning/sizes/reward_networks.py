"""The networks behind rewards on the meta device, from published configs or those of a folder, and their inputs.

A reward's networks are those that it loads, each with the inputs of one sample: its frames at the network's own size,
its prompt as long as the network reads texts, or a chat. Heads of a few layers are left out.
"""

import json
import math
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from flowrl import names
from flowrl.known.language import LANGUAGE
from flowrl.planning.sizes.prompt_tokens import MARKS, WORDS
from flowrl.planning.sizes.rewards import weight_arguments
from flowrl.planning.sizes.seeing import AROUND, BOUNDS, picture_tensors
from flowrl.policies.loading import auto_class_of
from flowrl.untyped import JSON

QUESTION = 10  # words of vlm_judge's own question
INSTRUCTIONS = {"hpsv3": 378, "video_reward": 588}  # words of the published instructions
FITTED = 256 * 28 * 28  # pixels that HPSv3 brings a picture to
FPS = 2.0  # frames a second that VideoReward sees, of 16

ENDS = {"bos_token_id": 0, "eos_token_id": 2}  # with 2 a text ends at its largest number, which needs no values


@dataclass(frozen=True)
class Sample:
    """What a reward is shown: frames (1 of a picture) of height x width, and the words of a prompt."""

    frames: int
    height: int
    width: int
    words: int


@dataclass(frozen=True)
class Call:
    """A network on meta, and what calls it with the inputs of so many samples. several: how many samples go through it
    at once, None for all of a batch."""

    network: nn.Module
    run: Callable[[int], Any]
    several: int | None = None


def _clip(text: tuple[int, int, int], vision: tuple[int, int, int], patch: int, side: int, out: int) -> JSON:
    """text, vision: width, layers, heads."""
    return {
        "text_config": _sizes(*text) | ENDS,
        "vision_config": _sizes(*vision) | {"patch_size": patch, "image_size": side},
        "projection_dim": out,
    }


def _sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"intermediate_size": 4 * width}


_LARGE = _clip((768, 12, 12), (1024, 24, 16), 14, 224, 768)
_HUGE = _clip((1024, 24, 16), (1280, 32, 16), 14, 224, 1024)
CLIPS = {
    "openai/clip-vit-large-patch14": _LARGE,
    "ViT-L-14": _LARGE,
    "openai/clip-vit-base-patch16": _clip((512, 12, 8), (768, 12, 12), 16, 224, 512),
    "openai/clip-vit-base-patch32": _clip((512, 12, 8), (768, 12, 12), 32, 224, 512),
    "yuvalkirstain/PickScore_v1": _HUGE,
    "ViT-H-14": _HUGE,
    "hf-hub:apple/DFN5B-CLIP-ViT-H-14": _HUGE,
    "hf-hub:apple/DFN5B-CLIP-ViT-H-14-384": _clip((1024, 24, 16), (1280, 32, 16), 14, 378, 1024),
}
SIGLIPS = {
    "google/siglip-so400m-patch14-384": {
        "vision_config": _sizes(1152, 27, 16) | {"intermediate_size": 4304, "patch_size": 14, "image_size": 384}
    }
}
DINOS = {"facebook/dino-vits16": _sizes(384, 12, 6), "facebook/dino-vitb16": _sizes(768, 12, 12)}
BLIPS = {
    "THUDM/ImageReward": (
        _sizes(1024, 24, 16) | {"image_size": 224, "patch_size": 16},
        _sizes(768, 12, 12) | {"vocab_size": 30524, "encoder_hidden_size": 1024, "max_position_embeddings": 512},
    )
}
BLIP_TOKENS = 35
EMBEDDING = {"clip_score": True, "pick_score": True, "hpsv2": True, "aesthetic": False, "aesthetic_v25": False}
EMBEDDING |= {"clip_i": False, "frame_consistency": False, "subject_harmonic": True}  # whether texts are embedded too


def calls(use: str, args: Mapping[str, JSON], sample: Sample) -> list[Call] | None:
    """The networks that a reward calls for a sample; none for a rule, or where a server has them; None where they are
    not known here."""
    given = weight_arguments(use) | {key: value for key, value in args.items()}
    with torch.device("meta"):
        found = _calls(use, given, sample)
    return None if found is None or None in found else [one for one in found if one is not None]


def _calls(use: str, given: Mapping[str, JSON], sample: Sample) -> Sequence[Call | None] | None:
    frames = min(sample.frames, given.get("frames") or sample.frames)
    model = str(given.get("model"))
    if use in EMBEDDING:
        found = list(_embedding(model, given, frames, texts=EMBEDDING[use]))
        return [*found, _dino(str(given["dino"]), frames)] if use == "subject_harmonic" else found
    if use == "dino_similarity":
        return [_dino(model, frames)]
    if use == "image_reward":
        return _blip(model, frames)
    if use in ("vlm_judge", "hpsv3", "video_reward"):
        return [_reader(use, given, frames, sample)]
    return None


def _embedding(model: str, given: Mapping[str, JSON], frames: int, *, texts: bool) -> Iterator[Call | None]:
    """A CLIP's or SigLIP's half for pictures, and the one for texts."""
    config = _embedder(model)
    if config is None:
        yield None
        return
    vision = type(config).__name__.startswith("Siglip")
    eyes: Any = (
        tf.SiglipVisionModel(config.vision_config) if vision else tf.CLIPVisionModelWithProjection(_eyes(config))
    )
    side = config.vision_config.image_size
    yield _pictures(eyes, frames, side)
    if texts:
        words: Any = tf.CLIPTextModelWithProjection(_text(config))
        length = config.text_config.max_position_embeddings

        def read(rows: int) -> Any:
            return words(input_ids=torch.ones(rows, length, dtype=torch.int64, device="meta"))

        yield None if vision else Call(words.eval(), read)


def _eyes(config: Any) -> Any:
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def _text(config: Any) -> Any:
    config.text_config.projection_dim = config.projection_dim
    return config.text_config


def _embedder(model: str) -> Any:
    """The config of a CLIP or SigLIP by its name, its folder in either layout, or None."""
    if model in CLIPS:
        return tf.CLIPConfig(**CLIPS[model])
    if model in SIGLIPS:
        return tf.SiglipConfig(**SIGLIPS[model])
    folder = _folder(model)
    if folder is None:
        return None
    if (folder / "open_clip_config.json").is_file():
        told = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        return _of_open_clip(told)
    config = tf.AutoConfig.from_pretrained(folder)
    return config if config.model_type in ("clip", "siglip") else None


def _of_open_clip(told: Mapping[str, JSON]) -> Any:
    text, vision = told["text_cfg"], told["vision_cfg"]
    width = vision["width"]
    if not isinstance(vision["layers"], int) or not isinstance(vision["image_size"], int):
        return None
    eyes = _sizes(width, vision["layers"], width // vision.get("head_width", 64))
    eyes |= {"intermediate_size": int(width * vision.get("mlp_ratio", 4.0))}
    words = _sizes(text["width"], text["layers"], text["heads"])
    words |= {"intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0))}
    words |= {"vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"]} | ENDS
    return tf.CLIPConfig(
        text_config=words,
        vision_config=eyes | {"patch_size": vision["patch_size"], "image_size": vision["image_size"]},
        projection_dim=told["embed_dim"],
    )


def _dino(model: str, frames: int) -> Call | None:
    folder = _folder(model)
    config = tf.ViTConfig(**DINOS[model]) if model in DINOS else None
    if folder is not None and config is None:
        config = tf.AutoConfig.from_pretrained(folder)
    return None if not isinstance(config, tf.ViTConfig) else _pictures(tf.ViTModel(config), frames, config.image_size)


def _pictures(network: Any, frames: int, side: int) -> Call:
    def see(rows: int) -> Any:
        return network(pixel_values=torch.empty(rows * frames, 3, side, side, requires_grad=torch.is_grad_enabled()))

    return Call(network.eval(), see)


def _blip(model: str, frames: int) -> list[Call] | None:
    """ImageReward's two networks; None for another checkpoint than the published one."""
    if model not in BLIPS:
        return None
    vision, text = BLIPS[model]
    return blip(tf.BlipVisionConfig(**vision), tf.BlipTextConfig(**text, is_decoder=True), frames)


def blip(vision: Any, text: Any, frames: int) -> list[Call]:
    """A BLIP that reads a caption while it attends to a picture, on the meta device."""
    with torch.device("meta"):
        eyes: Any = tf.BlipVisionModel(vision).eval()
        words: Any = tf.BlipTextModel(text, add_pooling_layer=False).eval()
    places = (vision.image_size // vision.patch_size) ** 2 + 1

    def read(rows: int) -> Any:
        number = rows * frames
        ids = torch.ones(number, BLIP_TOKENS, dtype=torch.int64, device="meta")
        seen = torch.empty(number, places, vision.hidden_size, device="meta")
        return words(input_ids=ids, encoder_hidden_states=seen)

    return [_pictures(eyes, frames, vision.image_size), Call(words, read)]


def _reader(use: str, given: Mapping[str, JSON], frames: int, sample: Sample) -> Call | None:
    """A language model that sees, reading one chat."""
    base = {"hpsv3": "Qwen/Qwen2-VL-7B-Instruct", "video_reward": "Qwen/Qwen2-VL-2B-Instruct"}.get(use)
    name = base or str(given["model"])
    if name not in LANGUAGE or given.get("mode", "yes") != "yes" or not sample.height * sample.width:
        return None
    config = tf.AutoConfig.for_model(**LANGUAGE[name])
    tokens = _picture_tokens(use, frames, sample)
    length = tokens + math.ceil(WORDS * (sample.words + INSTRUCTIONS.get(use, QUESTION))) + MARKS
    auto = auto_class_of(config) or tf.AutoModelForCausalLM
    dtype = {"float32": torch.float32, "float16": torch.float16}.get(str(given.get("dtype")), torch.bfloat16)
    network: Any = auto.from_config(config, dtype=dtype).eval()
    vision = config.vision_config
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    return reader(network, length, picture_tensors(tokens - AROUND, patch, vision.spatial_merge_size))


def reader(network: Any, length: int, media: Mapping[str, Tensor]) -> Call:
    """A model that reads one chat of so many tokens, the media's among them, and says what comes next."""
    given = {n: t.to(network.dtype) if t.is_floating_point() else t for n, t in media.items()}

    def read(rows: int) -> Any:
        ids = torch.ones(1, length, dtype=torch.int64, device="meta")
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
        features = network.get_image_features(**given)
        places = torch.arange(length, device="meta").expand(3, 1, -1)
        positions = {"position_ids": places} if hasattr(network.config, "vision_start_token_id") else {}
        last = network(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **positions)
        return features, last

    return Call(network, read, several=1)


def _picture_tokens(use: str, frames: int, sample: Sample) -> int:
    """Tokens of a sample's frames in Qwen's models, a square of 28 pixels each, two frames of a video at once."""
    area = sample.height * sample.width
    if use == "hpsv3":
        area = FITTED
    if use == "video_reward":
        area, frames = max(area, 128 * 28 * 28), max(1, math.ceil(round(frames * FPS / 16) / 2))
    area = min(max(area, BOUNDS["min_pixels"]), BOUNDS["max_pixels"])
    return frames * (area // (28 * 28)) + AROUND


def _folder(model: str) -> Path | None:
    """The folder of a model that ships, or of a local one."""
    shipped = names.WORLDS / "shapes" / "assets" / model
    if "/" not in model and os.path.isdir(shipped):
        return shipped
    path = Path(os.path.expanduser(model.removeprefix("local-dir:")))
    return path if os.path.isdir(path) else None
