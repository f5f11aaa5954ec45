"""How much memory the weights behind a recipe's rewards take, from names alone: nothing is imported or downloaded.

Published numbers of parameters are facts of the models' cards and configurations; a test builds the architectures on
meta and compares. A folder or file on this machine is measured. What is neither is told as not known, never as nothing.
"""

import json
import math
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowrl import names
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.signatures import NO_DEFAULT
from flowrl.untyped import JSON

# weights -> parameters as a reward loads them: "(images)" is the half of a CLIP that embeds pictures
PARAMETERS = {
    "openai/clip-vit-large-patch14": 427_616_513,
    "openai/clip-vit-large-patch14 (images)": 303_966_209,
    "openai/clip-vit-base-patch16": 149_620_737,
    "openai/clip-vit-base-patch16 (images)": 86_192_641,
    "openai/clip-vit-base-patch32 (images)": 87_849_217,
    "ViT-H-14": 986_109_441,
    "ViT-L-14": 427_616_513,
    "hf-hub:apple/DFN5B-CLIP-ViT-H-14": 986_109_441,
    "hf-hub:apple/DFN5B-CLIP-ViT-H-14-384": 986_714_881,
    "yuvalkirstain/PickScore_v1": 986_109_441,
    "google/siglip-so400m-patch14-384 (images)": 428_225_600,
    "facebook/dino-vits16": 21_813_504,
    "facebook/dino-vitb16": 86_389_248,
    "facebook/mask2former-swin-small-coco-instance": 68_741_083,
    "THUDM/ImageReward": 446_206_689,
    "MizzenAI/HPSv3": 7_750_065_714,
    "KwaiVGI/VideoReward": 2_208_987_136,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
}
READER = 31_749_562  # bytes of PP-OCRv6's detector, recogniser and direction files, which rapidocr ships
ARGUMENTS = ("model", "weights", "checkpoint", "detector", "dino", "dtype")  # they say which weights a reward loads
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
SERVED = ("server_judge", "server_text_judge", "radiology_reasoning", "unified_reward", "pairwise_judge", "remote")
_BILLIONS = re.compile(r"(?<![\d.a-z])(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Weights:
    """What stands behind a reward: where its weights come from, their bytes in memory (None: not known), and place:
    `device` (they are moved to the reward's), `cpu` (they stay there) or `server` (another process holds them)."""

    source: str
    size: int | None
    place: str = "device"


def weights_of(use: str, args: Mapping[str, JSON]) -> Weights | None:
    """The weights behind a reward of that name and arguments; None for a rule or statistic, which has none.

    A dotted path is a user's own reward: whatever it loads is not known.
    """
    if names.is_dotted(use):
        return Weights("your own", None)
    if use == "remote":
        return Weights("what its server loads", None, "server")
    if use == "ocr":
        return Weights("PP-OCRv6, which rapidocr ships", READER, "cpu")
    if not (defaults := weight_arguments(use)):
        return None
    given = defaults | {key: value for key, value in args.items() if key in defaults}
    parts = [part for part in _parts(use, given) if part[0] is not None]
    if not parts:
        return None
    sizes = [_bytes(model, file, WIDTHS[given.get("dtype", "float32")]) for model, file in parts]
    if use in SERVED:
        sizes = [_bytes(model, None, WIDTHS["bfloat16"]) for model, _ in parts]
    source = given["checkpoint"] if use == "hpsv2" else " and ".join(str(model) for model, _ in parts)
    known = None if None in sizes else sum(size for size in sizes if size is not None)
    return Weights(source.replace(" (images)", ""), known, "server" if use in SERVED else "device")


def weight_arguments(use: str) -> dict[str, JSON]:
    """The arguments of a reward that ships, read off its signature, that say which weights it loads: their defaults."""
    entry = names.rewards().get(use)
    parameters = () if entry is None else entry.signature.parameters
    return {p.name: None if p.default is NO_DEFAULT else p.default for p in parameters if p.name in ARGUMENTS}


def _parts(use: str, given: Mapping[str, JSON]) -> Iterable[tuple[str | None, str | None]]:
    """(what is loaded, a file that its weights are in where they are named apart) of each model of a reward."""
    model, weights = given.get("model"), given.get("weights")
    if use in ("aesthetic", "aesthetic_v25", "clip_i"):
        return [(f"{model} (images)" if f"{model} (images)" in PARAMETERS else model, weights)]
    if use == "hpsv2":
        return [(model, given["checkpoint"])]
    if use == "geneval":
        return [(given["detector"], None), (model, weights)]
    if use == "subject_harmonic":
        return [(model, weights), (given["dino"], None)]
    if use == "frame_consistency" and model and f"{model} (images)" in PARAMETERS:
        return [(f"{model} (images)", weights)]
    return [(model, weights)]


def _bytes(model: str | None, file: str | None, width: int) -> int | None:
    """Bytes of weights in memory: of the file or folder where it is here, else by what is published of the name."""
    for place in (file, model):
        if place and (path := _here(place)) is not None:
            return _measured(path, width)
    if model in PARAMETERS:
        return PARAMETERS[model] * width
    billions = _BILLIONS.findall(str(model).rpartition("/")[2])
    return round(float(billions[-1]) * 1e9) * width if billions else None


def _here(name: str) -> Path | None:
    """The path behind a name: a model that ships, or a file or folder of this machine."""
    shipped = names.WORLDS / "shapes" / "assets" / name
    path = shipped if "/" not in name and os.path.exists(shipped) else _at_home(name.removeprefix("local-dir:"))
    return path if os.path.exists(path) else None


def _measured(path: Path, width: int) -> int | None:
    """Bytes in memory of a checkpoint: elements of safetensors times width, files of other kinds as on disk."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    tensors = [_elements(f) for f in files if f.suffix == ".safetensors"]
    if tensors:
        return sum(tensors) * width
    return sum(f.stat().st_size for f in files if f.suffix in _WEIGHTS) or None


def _elements(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header; its size over 4 where that cannot be read."""
    with file.open("rb") as source:
        try:
            length = min(int.from_bytes(source.read(8), "little"), file.stat().st_size)
            header = json.loads(source.read(length))
            return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return file.stat().st_size // 4


def on_device(rewards: Mapping[str, RewardSpec], device: str | None) -> tuple[int, int]:
    """(bytes that stay on the run's device once a first batch was scored, bytes that are there while it is scored).

    Rewards on a device of their own or a server are not among them; those whose size is not known count as nothing.
    """
    there = {name: spec for name, spec in rewards.items() if spec.device in (None, device)}
    stay = _sum({name: spec for name, spec in there.items() if not spec.offload})
    return stay, _sum(there)


def absent(rewards: Mapping[str, RewardSpec]) -> dict[str, str]:
    """The files of weights that arguments of rewards name and that are not here, by their place in the recipe."""
    return {
        f"rewards.{name}.args.{key}": value
        for name, spec in rewards.items()
        for key, value in spec.args.items()
        if isinstance(value, str) and value.endswith((*_WEIGHTS, ".safetensors"))
        if not os.path.exists(_at_home(value))
    }


def _at_home(name: str) -> Path:
    """A path with ~ written out where it can be; os.path.exists tells of any text whether it names something."""
    return Path(os.path.expanduser(name))


def _sum(rewards: Mapping[str, RewardSpec]) -> int:
    """Bytes of rewards on their device; those of VideoReward that differ in their aspect alone share one model."""
    sizes: dict[str, int] = {}
    for name, spec in rewards.items():
        weights = weights_of(spec.use, spec.args)
        if weights is not None and weights.place == "device" and weights.size:
            rest = {key: value for key, value in spec.args.items() if key != "aspect"}
            sizes[f"video_reward {rest}" if spec.use == "video_reward" else name] = weights.size
    return sum(sizes.values())


def told(use: str, args: Mapping[str, JSON], device: str | None, duration_text: Callable[[float], str]) -> str:
    """What the plan says of a reward's weights: how much, of what, where; nothing for a rule."""
    weights = weights_of(use, args)
    if weights is None:
        return ""
    size = "of a size not known here" if weights.size is None else duration_text(weights.size)
    if weights.place == "server":
        urls = args.get("base_url", args.get("url", ""))
        return f"{size}, {weights.source}, on the server {' '.join([urls] if isinstance(urls, str) else urls)}"
    where = "on the CPU" if weights.place == "cpu" else f"on {device}" if device else ""
    return ", ".join(part for part in (size, weights.source, where) if part)
