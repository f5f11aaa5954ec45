"""Tiny checkpoints, random but in the real file formats: Mask2Former, ViT, DINOv2, and CLIP as open_clip keeps it."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

# some as the hub's checkpoints spell them, some as GenEval does
CLASSES = ("cat", "dog", "motorbike", "mouse", "cup", "tvmonitor")


def mask2former(folder: Path, *, seed: int = 0) -> Path:
    """A detector of CLASSES whose random head is sure of what it says, so that thresholds let something through."""
    torch.manual_seed(seed)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    sizes |= {"dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    labels = dict(enumerate(CLASSES))
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=12,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
        **sizes,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.normal_(std=0.7)
        model.model.transformer_module.queries_features.weight.normal_(std=3)
        model.model.transformer_module.decoder.mask_predictor.mask_embedder.layers[-1].layers[0].weight.mul_(20)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, size_divisor=32).save_pretrained(folder)
    return folder


def vit(folder: Path, *, seed: int = 0) -> Path:
    """A ViT in the format of facebook/dino-vits16."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8, initializer_range=0.2)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def dinov2(folder: Path, *, seed: int = 0) -> Path:
    """A DINOv2 in the format of facebook/dinov2-base: resized to 36, cropped to 28."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=7, initializer_range=0.2)).save_pretrained(folder)
    how = {"size": {"shortest_edge": 36}, "crop_size": {"height": 28, "width": 28}}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    BitImageProcessor(**how, resample=3, image_mean=mean, image_std=std).save_pretrained(folder)
    return folder


def clip(folder: Path, *, seed: int = 0, spread: float = 1.5) -> Path:
    """A CLIP as `hf-hub:` models of open_clip are stored, with CLIP's own tokenizer.

    spread: factor of its fresh weights; the larger, the more embeddings differ.
    """
    torch.manual_seed(seed)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.model.CLIP(
        config["embed_dim"],
        open_clip.model.CLIPVisionCfg(**config["vision_cfg"]),
        open_clip.model.CLIPTextCfg(**config["text_cfg"]),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread if parameter.ndim > 1 else 1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    said = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    return folder
