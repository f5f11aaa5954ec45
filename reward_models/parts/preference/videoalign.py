"""The checkpoint folder of VideoReward (KwaiVGI/VideoAlign): its model_config.json and its weights.

model_config.json                       data_config, model_config, peft_lora_config, inference_config
checkpoint-11352/model.pth              all tensors, LoRA apart; or
checkpoint-11352/adapter_model.safetensors and non_lora_state_dict.pth, on top of the base model
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flowrl.untyped import JSON, Network
from reward_models.parts import checkpoints
from reward_models.parts.preference import qwen2vl

ASPECTS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{aspect}_reward|>" for aspect in ASPECTS)
LEAST_FRAMES, MOST_FRAMES, SPAN = 4, 768, 2  # of the public code, where frames are sampled by time


@dataclass(frozen=True)
class VideoAlignConfig:
    """The inference settings of model_config.json. mean, std: of VQ, MQ, TA; either fps or frames counts."""

    base: str
    fps: float
    frames: int | None
    most_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lora: Mapping[str, JSON]


def settings(folder: Path, what: str) -> VideoAlignConfig:
    """The settings of a checkpoint. Raises ValueError, in one line, if any is missing or not supported."""
    file = folder / "model_config.json"
    if not file.is_file():
        raise ValueError(f"{what}: {str(folder)!r} holds no model_config.json; give the folder of the whole checkpoint")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        data, model, lora = said["data_config"], said["model_config"], said["peft_lora_config"]
        asked = {"use_special_tokens": model["use_special_tokens"], "sample_type": data.get("sample_type", "uniform")}
        asked["prompt_template_type"] = data["prompt_template_type"]
        frames = None if data.get("num_frames") is None else int(data["num_frames"])
        numbers = float(data["fps"] if frames is None else 0), frames, int(data["max_frame_pixels"])
        base = str(model["model_name_or_path"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{what}: {str(file)!r} is not as VideoAlign writes it ({error!r}); download it anew"
        ) from error
    for name, only in (
        ("use_special_tokens", True),
        ("sample_type", "uniform"),
        ("prompt_template_type", "detailed_special"),
    ):
        if asked[name] != only:
            raise ValueError(f"{what}: {name} of model_config.json is {asked[name]!r}; accepted is {only!r}")
    mean, std = _statistics(said.get("inference_config"), what)
    return VideoAlignConfig(base, *numbers, mean, std, lora)


def _statistics(said: JSON, what: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    names = [f"{aspect}_{kind}" for kind in ("mean", "std") for aspect in ASPECTS]
    given = said if isinstance(said, Mapping) else {}
    absent = [n for n in names if not isinstance(given.get(n), int | float) or (n.endswith("std") and not given[n] > 0)]
    if absent:
        raise ValueError(
            f"{what}: inference_config of model_config.json gives no {', '.join(absent)}; without the checkpoint's own "
            "mean and std its scores have no scale"
        )
    values = [float(given[name]) for name in names]
    return tuple(values[:3]), tuple(values[3:])


def frames_of(total: int, video_fps: float, said: VideoAlignConfig, what: str) -> list[int]:
    """Which of `total` frames, shown at video_fps per second, the model sees: evenly spread, an even number."""
    if said.frames is None:
        most = min(MOST_FRAMES, total) // SPAN * SPAN
        number = round(min(max(total / video_fps * said.fps, LEAST_FRAMES), most) / SPAN) * SPAN
    else:
        number = min(round(said.frames / SPAN) * SPAN, total)
    if number < SPAN:
        raise ValueError(f"{what}: a video has {total} frames; accepted are {SPAN} or more")
    return torch.linspace(0, total - 1, number).round().long().tolist()


def load(
    folder: Path, step: int | None, base: str, said: VideoAlignConfig, dtype: torch.dtype, what: str
) -> qwen2vl.QwenReader:
    """The model of a checkpoint, LoRA merged, frozen. Raises ValueError, in one line, if files do not fit."""
    tensors = _tensors(_at(folder, step, what), what)
    head = {name.removeprefix("rm_head."): t for name, t in tensors.items() if name.startswith("rm_head.")}
    rest = {qwen2vl.backbone_name(n): t for n, t in tensors.items() if not n.startswith(("rm_head.", "lm_head."))}
    processor = qwen2vl.processor_of(base, TOKENS, what)
    backbone = _merge_lora(_base(base, rest, what), rest, said.lora, what).to(dtype)
    reader = qwen2vl.QwenReader(
        backbone, _head(head, backbone.config.text_config.hidden_size, what), processor, TOKENS, what
    )
    return reader.eval().requires_grad_(False)


def scores(answers: Tensor) -> Tensor:
    """VQ, MQ and TA, [3], from the head's outputs at their tokens, [3, outputs]."""
    return answers[:, 0] if answers.shape[1] == 1 else answers.diagonal()


def _at(folder: Path, step: int | None, what: str) -> Path:
    """The folder of the step, or of the last one; the folder itself if it holds the tensors."""
    if step is None and any((folder / name).is_file() for name in ("model.pth", "adapter_model.safetensors")):
        return folder
    steps = {int(match[1]): p for p in folder.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", p.name))}
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, sorted(steps))) or "none"
        raise ValueError(f"{what}: {str(folder)!r} holds no checkpoint-{'N' if step is None else step}; there: {there}")
    return steps[max(steps) if step is None else step]


def _tensors(folder: Path, what: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names of the model that LoRA was added to."""
    if (folder / "model.pth").is_file():
        files = ["model.pth"]
    else:
        files = ["non_lora_state_dict.pth", "adapter_model.safetensors"]
    tensors = {name: t for file in files for name, t in checkpoints.state_dict(folder / file, what).items()}
    return {name.removeprefix("base_model.model.").replace(".default.", "."): t for name, t in tensors.items()}


def _base(base: str, tensors: Mapping[str, Tensor], what: str) -> Network:
    """The base model, float32, with as many rows of its embedding as the checkpoint has."""
    from transformers import Qwen2VLModel

    qwen2vl.config_of(base, what)
    model: Network = checkpoints.load_pretrained(
        Qwen2VLModel.from_pretrained, base, f"{what}: base", dtype=torch.float32
    )
    if (words := tensors.get("language_model.embed_tokens.weight")) is not None:
        model.resize_token_embeddings(words.shape[0], mean_resizing=False)
    return model


def _merge_lora(model: Network, tensors: Mapping[str, Tensor], lora: Mapping[str, JSON], what: str) -> Network:
    """The model with these tensors, and with the LoRA among them merged into its weights."""
    from peft import LoraConfig, get_peft_model

    targets = sorted({name.partition(".lora_")[0] for name in tensors if ".lora_" in name})
    if not targets:
        return _filled(model, tensors, what)
    try:
        config = LoraConfig(
            r=lora["lora_r"],
            lora_alpha=lora["lora_alpha"],
            use_rslora=lora.get("use_rslora", False),
            target_modules=targets,
        )
        tuned: Network = get_peft_model(model, config)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{what}: the checkpoint's LoRA does not fit ({reason}); is the base another model?"
        ) from error
    named = {re.sub(r"(\.lora_[AB])\.", r"\1.default.", f"base_model.model.{name}"): t for name, t in tensors.items()}
    half = [name for target in targets for name in (f"{target}.lora_A.weight", f"{target}.lora_B.weight")]
    if absent := [name for name in half if name not in tensors]:
        raise ValueError(f"{what}: the checkpoint holds no {absent[0]}; download it anew")
    return _filled(tuned, named, what).merge_and_unload()


def _filled(model: Network, tensors: Mapping[str, Tensor], what: str) -> Network:
    checkpoints.fill(model, {**model.state_dict(), **tensors}, what)
    return model


def _head(tensors: Mapping[str, Tensor], width: int, what: str) -> nn.Linear:
    """The linear head without bias: one output, read at each token, or three, one for each token."""
    outputs = tensors["weight"].shape[0] if "weight" in tensors else 1
    if outputs not in (1, 3):
        raise ValueError(f"{what}: rm_head has {outputs} outputs; accepted is 1 or 3")
    head = nn.Linear(width, outputs, bias=False)
    checkpoints.fill(head, tensors, f"{what}: rm_head")
    return head
