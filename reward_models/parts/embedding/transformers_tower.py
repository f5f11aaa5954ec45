"""Towers that transformers reads."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowrl.untyped import Nest, Network, Processor
from reward_models.parts.embedding.preprocess import Preprocess
from reward_models.parts.embedding.tower import Tower, load_or_explain

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
        read = load_or_explain(processor, None, lambda: AutoImageProcessor.from_pretrained(place))
        self.preprocess = sizes(read, processor)
        self.tokenizer = (
            load_or_explain(processor, None, lambda: AutoTokenizer.from_pretrained(place)) if texts else None
        )
        self.ready(texts)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, D] of pixels [B, 3, H, W]; see Tower."""
        return _pool(self.model.get_image_features(pixel_values=pixels))

    def patch_width(self) -> int:
        """C; see Tower."""
        if not hasattr(getattr(self.model, "vision_model", None), "post_layernorm"):
            raise ValueError(f"a {type(self.model).__name__} has no patches that are known; leave it out")
        return int(self.model.config.vision_config.hidden_size)

    def patch_features(self, pixels: Tensor) -> Tensor:
        """[B, C] of pixels [B, 3, H, W]; see Tower."""
        vision = self.model.vision_model
        states = vision(pixel_values=pixels).last_hidden_state
        if hasattr(vision.embeddings, "class_embedding"):  # CLIP's, whose last norm is for the class token alone
            states = vision.post_layernorm(states[:, 1:])
        return states.mean(1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts; see Tower."""
        config = self.model.config.text_config
        # always the whole context: SigLIP reads its padding, and the longest text of a batch changes nothing
        how = {"padding": "max_length", "truncation": True, "max_length": config.max_position_embeddings}
        tokens = self.tokens(texts, config.vocab_size, return_tensors="pt", **how)
        return _pool(self.model.get_text_features(**tokens.to(self.device)))


def _model(name: str) -> Network:
    """The model in float32. Raises ValueError if it does not embed images and texts, or lacks tensors."""
    from transformers import AutoModel

    options = {"dtype": torch.float32, "output_loading_info": True}
    model, info = load_or_explain(name, None, lambda: AutoModel.from_pretrained(_place(name), **options))
    if not all(hasattr(model, half) for half in ("get_image_features", "get_text_features")):
        raise ValueError(f"{name!r} is a {type(model).__name__}; accepted are models like CLIP and SigLIP")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{name!r} lacks {len(missing)} tensors of its model ({missing[0]}); download it anew")
    return model


def sizes(processor: Processor, name: str) -> Preprocess:
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


def _pool(output: Nest) -> Tensor:
    """The embedding, which transformers 5 wraps in an output and transformers 4 returns as it is."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.exists() else name
