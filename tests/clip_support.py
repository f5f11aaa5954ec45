"""Tiny CLIP and SigLIP checkpoints in the real file formats: open_clip folders and files, transformers folders."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl import names
from flowrl.contracts import Prompt, Samples

WORDS = ("red", "blue", "green", "circle", "square", "a", "of", "photo", "two", "left")
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXTS = ["a red circle", "two blue square", "a photo of a green circle left of a red square", "a red circle"]
TEXT = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}


def tokenizer(folder: Path) -> int:
    """Writes a CLIPTokenizer of ten words and the letters into the folder; its number of tokens."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    tokens = letters + [c + "</w>" for c in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12).save_pretrained(str(folder))
    return len(vocab)


def open_clip_config(vocabulary: int, **preprocess: Any) -> dict:
    """What open_clip_config.json says of the tiny model."""
    text = {**TEXT, "vocab_size": vocabulary, "hf_tokenizer_name": "own"}
    return {
        "model_cfg": {"embed_dim": 24, "vision_cfg": dict(VISION), "text_cfg": text},
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], **preprocess},
    }


def open_clip_folder(folder: Path, seed: int = 0, **preprocess: Any) -> Path:
    """A folder as open_clip's push_to_hub fills it: config, safetensors, tokenizer."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(tokenizer(folder), **preprocess)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = open_clip.CLIP(**{**config["model_cfg"]})
    for value in model.parameters():
        if value.ndim > 1:
            value.data.mul_(2)  # so that pictures and texts move the embeddings well above rounding
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def transformers_folder(folder: Path, seed: int = 0, vocabulary: int | None = None) -> Path:
    """A folder as CLIPModel and CLIPProcessor save themselves."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    count = tokenizer(folder)
    hidden = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**hidden, "vocab_size": vocabulary or count, "max_position_embeddings": 12}
    text |= {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    vision = {**hidden, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    _spread(model)
    model.save_pretrained(str(folder))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sizes).save_pretrained(str(folder))
    return folder


def siglip_folder(folder: Path, seed: int = 0) -> Path:
    """A folder as SiglipModel and its processor save themselves."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    count = tokenizer(folder)
    hidden = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**hidden, "vocab_size": count, "max_position_embeddings": 12, "projection_size": 32}
    text |= {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    torch.manual_seed(seed)
    config = SiglipConfig(text_config=text, vision_config={**hidden, "image_size": 32, "patch_size": 8})
    model = SiglipModel(config)
    _spread(model)
    model.save_pretrained(str(folder))
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(str(folder))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip folder."""
    return load_file(folder / "open_clip_model.safetensors")


def head(prefix: str, width: int, places: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of an aesthetic head: linear layers width-1024-128-64-16-1 at these places of a Sequential."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (width, 1024, 128, 64, 16, 1)
    found: dict[str, torch.Tensor] = {}
    for place, before, after in zip(places, sizes, sizes[1:], strict=False):
        found[f"{prefix}.{place}.weight"] = torch.randn(after, before, generator=generator) * before**-0.5
        found[f"{prefix}.{place}.bias"] = torch.randn(after, generator=generator)
    return found


def _spread(model: torch.nn.Module) -> None:
    """Larger weights than fresh ones, so that pictures and texts move the embeddings well above rounding."""
    for name, value in model.named_parameters():
        if value.ndim > 1 and "position" not in name:
            value.data.normal_(0, value.shape[-1] ** -0.5)


class Made:
    """Checkpoints of every reward, and the arguments that name them."""

    def __init__(self, root: Path):
        self.open_clip = open_clip_folder(root / "open_clip")
        self.transformers = transformers_folder(root / "transformers")
        self.siglip = siglip_folder(root / "siglip")
        self.hps, self.head, self.head25 = root / "HPS_v2.1_compressed.pt", root / "linearMSE.pth", root / "v2_5.pth"
        trained = open_clip_folder(root / "trained", seed=7)
        torch.save({"state_dict": tensors(trained)}, self.hps)
        torch.save(head("layers", 24, (0, 2, 4, 6, 7)), self.head)
        torch.save(head("scoring_head", 32, (0, 2, 4, 6, 8)), self.head25)
        self.args = {
            "clip_score": {"model": str(self.transformers)},
            "pick_score": {"model": str(self.transformers)},
            "hpsv2": {"model": str(self.open_clip), "checkpoint": str(self.hps)},
            "aesthetic": {"model": str(self.transformers), "head": str(self.head)},
            "aesthetic_v25": {"model": str(self.siglip), "head": str(self.head25)},
        }

    def reward(self, name: str, **args):
        return names.load(name, names.rewards())(**self.args[name] | args)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return levels / 255


def asked(images: Tensor, texts=TEXTS) -> Samples:
    prompts = [Prompt(str(i), text) for i, text in enumerate(texts)]
    shape = {"images": images} if images.ndim == 4 else {"video": images}
    return Samples(prompts, torch.zeros(len(prompts), dtype=torch.int64), **shape)
