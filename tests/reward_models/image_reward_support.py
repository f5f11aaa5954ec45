"""A small checkpoint of ImageReward in the names and forms of the public file."""

import json
import math
from pathlib import Path
from typing import Any

import torch

WIDTH, WORDS, PATCH, SIZE = 16, 24, 4, 16
HEADS: dict[str, Any] = {"image_heads": 2, "text_heads": 3}
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefgh"),
]


def public_tensors(seed=0):
    """Random tensors with the names and forms of ImageReward.pt."""
    draw = torch.Generator().manual_seed(seed)

    def weight(*shape):
        return torch.randn(*shape, generator=draw) / math.sqrt(shape[-1])

    found = {}

    def linear(name, rows, columns):
        found[f"{name}.weight"], found[f"{name}.bias"] = weight(rows, columns), 0.1 * weight(rows)

    def norm(name, width):
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        found[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)

    seen, read = "blip.visual_encoder", "blip.text_encoder"
    # small, so that the epsilon of the norms counts
    found[f"{seen}.cls_token"] = weight(1, 1, WIDTH) / 30
    found[f"{seen}.pos_embed"] = weight(1, (SIZE // PATCH) ** 2 + 1, WIDTH) / 30
    found[f"{seen}.patch_embed.proj.weight"] = weight(WIDTH, 3, PATCH, PATCH) / 90
    found[f"{seen}.patch_embed.proj.bias"] = weight(WIDTH) / 30
    for layer in (f"{seen}.blocks.{i}" for i in range(2)):
        norm(f"{layer}.norm1", WIDTH), norm(f"{layer}.norm2", WIDTH)
        linear(f"{layer}.attn.qkv", 3 * WIDTH, WIDTH), linear(f"{layer}.attn.proj", WIDTH, WIDTH)
        linear(f"{layer}.mlp.fc1", 2 * WIDTH, WIDTH), linear(f"{layer}.mlp.fc2", WIDTH, 2 * WIDTH)
    norm(f"{seen}.norm", WIDTH)
    found[f"{read}.embeddings.position_ids"] = torch.arange(40)[None]
    found[f"{read}.embeddings.word_embeddings.weight"] = weight(len(VOCABULARY) + 2, WORDS) * 3
    found[f"{read}.embeddings.position_embeddings.weight"] = weight(40, WORDS)
    norm(f"{read}.embeddings.LayerNorm", WORDS)
    for layer in (f"{read}.encoder.layer.{i}" for i in range(2)):
        for part, source in (("attention", WORDS), ("crossattention", WIDTH)):
            linear(f"{layer}.{part}.self.query", WORDS, WORDS)
            linear(f"{layer}.{part}.self.key", WORDS, source), linear(f"{layer}.{part}.self.value", WORDS, source)
            linear(f"{layer}.{part}.output.dense", WORDS, WORDS), norm(f"{layer}.{part}.output.LayerNorm", WORDS)
        linear(f"{layer}.intermediate.dense", 32, WORDS), linear(f"{layer}.output.dense", WORDS, 32)
        norm(f"{layer}.output.LayerNorm", WORDS)
    linear("blip.vision_proj", 8, WIDTH), linear("blip.text_proj", 8, WORDS)
    for place, (inside, out) in zip((0, 2, 4, 6, 7), ((WORDS, 10), (10, 8), (8, 6), (6, 4), (4, 1)), strict=True):
        linear(f"mlp.layers.{place}", out, inside)
    return found


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the checkpoint and its tokenizer into the folder."""
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")
