"""Checkpoints of VideoReward on a tiny Qwen2-VL, in both public layouts, and the model that they stand for."""

import copy
import json
from typing import Any

import torch
from qwen2vl_support import WIDTH, chats, old_names, published_states, save
from safetensors.torch import save_file

from reward_models.parts.judge.instructions import VIDEO_REWARD
from reward_models.parts.preference import videoalign

CAPTIONS = ["a cat jumps", "two red {squares} pass above a circle, slowly, in the evening", "B"]
ASPECTS = ("VQ", "MQ", "TA")
RANK, ALPHA = 4, 12
STATISTICS = {"VQ_mean": 0.5, "VQ_std": 2.0, "MQ_mean": -1.0, "MQ_std": 0.5, "TA_mean": 0.25, "TA_std": 1.5}
ARGS: dict[str, Any] = {"video_fps": 4.0, "min_frame_pixels": 64, "dtype": "float32"}


def settings(base, **data):
    """A model_config.json with the sections and names that VideoAlign writes."""
    return {
        "data_config": {
            "meta_data": "train.csv",
            "data_dir": "videos",
            "max_frame_pixels": 384,
            "num_frames": None,
            "fps": 2.0,
            "eval_dim": list(ASPECTS),
            "prompt_template_type": "detailed_special",
            "sample_type": "uniform",
        }
        | data,
        "model_config": {
            "model_name_or_path": str(base),
            "output_dim": 1,
            "use_special_tokens": True,
            "reward_token": "special",
        },
        "peft_lora_config": {"lora_enable": True, "lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
        "inference_config": STATISTICS,
    }


class Checkpoint:
    """A base model, a checkpoint on it as an adapter and as one file, and the model that they stand for."""

    def __init__(self, folder):
        self.base, self.folder, self.whole = folder / "base", folder / "adapter", folder / "whole"
        base, self.processor = save(self.base, seed=1)
        self.processor.tokenizer.add_special_tokens({"additional_special_tokens": list(videoalign.TOKENS)})
        draw = torch.Generator().manual_seed(7)
        rows = len(self.processor.tokenizer)
        base.resize_token_embeddings(rows, mean_resizing=False)
        self.model = copy.deepcopy(base)
        weights = self.model.state_dict()
        linear = [n.removesuffix(".weight") for n in weights if "language_model" in n and n.endswith("_proj.weight")]
        self.lora, tuned = {}, {}
        for name in linear:
            out, inside = weights[f"{name}.weight"].shape
            a, b = torch.randn(RANK, inside, generator=draw) / 8, torch.randn(out, RANK, generator=draw) / 8
            self.lora |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
            weights[f"{name}.weight"] += ALPHA / RANK * b @ a  # by hand, into self.model
        for name in ("model.visual.merger.mlp.2.weight", "model.visual.blocks.1.norm1.bias"):
            weights[name] += torch.randn(weights[name].shape, generator=draw) / 4
            tuned[name] = weights[name]
        self.head = torch.randn(1, WIDTH, generator=draw)
        self._write_adapter(tuned | {"rm_head.weight": self.head})
        self._write_whole(base, tuned, set(linear))

    def _write_adapter(self, tuned):
        for step in (100, 20):  # the last step is that with the largest number, not the last name
            at = self.folder / f"checkpoint-{step}"
            at.mkdir(parents=True)
            scale = 1 if step == 100 else 0
            lora = {f"base_model.model.{n}.weight": scale * t for n, t in old_names(self.lora).items()}
            save_file(lora, at / "adapter_model.safetensors")
            torch.save(
                {f"base_model.model.{n}": t for n, t in old_names(tuned).items()}, at / "non_lora_state_dict.pth"
            )
        (self.folder / "model_config.json").write_text(json.dumps(settings(self.base)), encoding="utf-8")

    def _write_whole(self, base, tuned, linear):
        every = base.state_dict() | tuned | {"rm_head.weight": self.head}
        named = {}
        for name, tensor in every.items():
            owner, _, last = name.rpartition(".")
            named[f"{owner}.base_layer.{last}" if owner in linear else name] = tensor
        named |= {f"{n}.default.weight": t for n, t in self.lora.items()}
        at = self.whole / "checkpoint-7"
        at.mkdir(parents=True)
        torch.save({f"base_model.model.{n}": t for n, t in old_names(named).items()}, at / "model.pth")
        (self.whole / "model_config.json").write_text(json.dumps(settings(self.base)), encoding="utf-8")

    def raw(self, videos, captions):
        """What the head says at the three tokens, [B, 3], of a right-padded batch of uint8 videos."""
        texts = [VIDEO_REWARD.format(text_prompt=caption) for caption in captions]
        batch = self.processor(
            text=chats(self.processor, "video", texts),
            videos=list(videos),
            videos_kwargs={"cap_pixels_per_frame": False},
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        states = published_states(self.model, batch)
        ids = self.processor.tokenizer.convert_tokens_to_ids(list(videoalign.TOKENS))
        at = torch.stack([(batch["input_ids"] == i).int().argmax(1) for i in ids], 1)
        picked = torch.stack([states[i, places] for i, places in enumerate(at)])
        return torch.from_numpy(picked.numpy() @ self.head[0].numpy())

    def scores(self, videos, captions):
        """VQ, MQ and TA, standardised."""
        mean, std = (torch.tensor([STATISTICS[f"{a}_{k}"] for a in ASPECTS]) for k in ("mean", "std"))
        return (self.raw(videos, captions) - mean) / std
