"""Towers that transformers reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.parts.embedding.preprocess import Preprocess
from reward_models.parts.embedding.tower import Tower, loaded

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


class TransformersTower(Tower):
    """A tower that transformers reads. name and processor: a folder or a model of the hub."""

    def __init__(self, name: str, processor: str, texts: bool):
        from transformers import AutoImageProcessor, AutoTokenizer

        super().__init__()
        self.model = _model(name)
        projection = getattr(self.model, "visual_projection", None)
        self.width = self.model.config.vision_config.hidden_size if projection is None else projection.out_features
        place = _place(processor)
        read = loaded(processor, None, lambda: AutoImageProcessor.from_pretrained(place))
        self.preprocess = sizes(read, processor)
        self.tokenizer = loaded(processor, None, lambda: AutoTokenizer.from_pretrained(place)) if texts else None
        self.ready(texts)

    def image_features(self, pixels: Tensor) -> Tensor:
        """See Tower."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See Tower."""
        config = self.model.config.text_config
        # always the whole context: SigLIP reads its padding, and the longest text of a batch changes nothing
        how = {"padding": "max_length", "truncation": True, "max_length": config.max_position_embeddings}
        found = self.tokens(texts, config.vocab_size, return_tensors="pt", **how)
        return _pooled(self.model.get_text_features(**found.to(self.device)))


def _model(name: str) -> Any:
    """The model in float32. Raises ValueError where it is none of images and texts or lacks tensors."""
    from transformers import AutoModel

    options = {"dtype": torch.float32, "output_loading_info": True}
    model, info = loaded(name, None, lambda: AutoModel.from_pretrained(_place(name), **options))
    if not all(hasattr(model, half) for half in ("get_image_features", "get_text_features")):
        raise ValueError(f"{name!r} is a {type(model).__name__}; accepted are models like CLIP and SigLIP")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{name!r} lacks {len(missing)} tensors of its model ({missing[0]}); download it anew")
    return model


def sizes(processor: Any, name: str) -> Preprocess:
    """The preprocessing that an image processor of transformers describes. Raises ValueError, naming the model."""
    said = processor.to_dict()
    interpolation = INTERPOLATIONS.get(int(said["resample"]))
    if interpolation is None or not said.get("do_resize", True) or not said.get("do_normalize", True):
        raise ValueError(f"the image processor of {name!r} resizes in no way known here (bicubic, bilinear)")
    size, crop = said["size"], said.get("crop_size") if said.get("do_center_crop") else None
    side, mean, std = size.get("shortest_edge"), tuple(said["image_mean"]), tuple(said["image_std"])
    if side is None and crop is None:
        return Preprocess((size["height"], size["width"]), "squash", mean, std, interpolation)
    if side is None or crop is None:
        raise ValueError(f"the image processor of {name!r} makes pictures of {size} and {crop}; accepted is one size")
    return Preprocess((crop["height"], crop["width"]), "shortest", mean, std, interpolation, side, floor=True)


def _pooled(found: Any) -> Tensor:
    """The embedding: what transformers 5 wraps and transformers 4 returned as it is."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.exists() else name
