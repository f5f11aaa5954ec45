"""Models that embed images and texts into one space (CLIP, SigLIP), by open_clip or by transformers.

`tower` reads either kind. Images and texts are preprocessed as the checkpoint says; embeddings have length 1, so that
their product is the cosine. Everything is float32, frozen and in eval mode; only images get gradients.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from reward_models.parts.preprocess import Mode, Preprocess

Loaded = TypeVar("Loaded")
OPEN_CLIP_CONFIG = "open_clip_config.json"
# what a model has for texts alone; open_clip names the first five of CLIP and the sixth of CustomTextCLIP
TEXT_HALF = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "text")
TEXT_HALF += ("text_model",)


class Tower(nn.Module):
    """A model that embeds images and texts. Made by `tower`."""

    preprocess: Preprocess
    model: nn.Module

    def image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1 of images float [B, 3, H, W] in [0, 1], with gradient to them.

        They are resized as floating point; a picture of 8 bits has the embedding of `image_pil`.
        """
        return F.normalize(self.image_features(self.preprocess.tensors(images.to(self.device))), dim=-1)

    def image_pil(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of length 1 of pictures of any sizes, preprocessed by Pillow as published."""
        return F.normalize(self.image_features(self.preprocess.pictures(pictures).to(self.device)), dim=-1)

    def text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of length 1 of texts, each cut to the model's context. Equal texts are embedded once."""
        unique = list(dict.fromkeys(texts))
        at = {text: row for row, text in enumerate(unique)}
        found = F.normalize(self.text_features(unique), dim=-1)
        return found[torch.tensor([at[text] for text in texts], device=found.device)]

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, D] of preprocessed pixels, of whatever length the model gives them."""
        raise NotImplementedError

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts, of whatever length the model gives them."""
        raise NotImplementedError

    def resizing(self, mode: Mode) -> "Tower":
        """This tower, with another way to bring pictures to its size."""
        self.preprocess = replace(self.preprocess, mode=mode, side=None)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        """The number D of entries of an embedding."""
        projection = getattr(self.model, "visual_projection", None)
        if projection is not None:
            return projection.out_features
        visual = getattr(self.model, "visual", None)
        return self.model.config.vision_config.hidden_size if visual is None else visual.output_dim  # pyright: ignore

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosine in the model's logits (100 or so for CLIP): already the exponential. Scalar."""
        return self.model.get_parameter("logit_scale").exp().reshape(())

    @property
    def logit_bias(self) -> Tensor:
        """What the model adds to its logits, scalar: not 0 for SigLIP alone."""
        bias = getattr(self.model, "logit_bias", None)
        return torch.zeros((), device=self.device) if bias is None else bias.reshape(())


def tower(model: str, weights: str | None = None, *, processor: str | None = None, texts: bool = True) -> Tower:
    """The tower of a checkpoint, on the CPU. Raises ValueError, in one line, for one that cannot be read.

    model: a folder, a model of the hub, or with `weights` (a tag or a file) an architecture of open_clip such as
    ViT-H-14. A folder with an open_clip_config.json and what begins with `hf-hub:` or `local-dir:` is read by
    open_clip, all else by transformers. processor: where transformers finds tokenizer and image sizes, if not with
    the model. texts=False leaves the half for texts out.
    """
    folder = Path(model.removeprefix("local-dir:")).expanduser()
    ours = model.startswith(("local-dir:", "hf-hub:")) or (folder / OPEN_CLIP_CONFIG).is_file()
    if weights is None and not ours:
        return TransformersTower(model, processor or model, texts)
    if processor is not None:
        raise ValueError(f"processor={processor!r}: open_clip's {model!r} has its own; leave it out")
    return OpenClipTower(f"local-dir:{folder}" if folder.is_dir() else model, weights, texts)


class OpenClipTower(Tower):
    """A tower that open_clip reads."""

    def __init__(self, name: str, weights: str | None, texts: bool):
        super().__init__()
        self.preprocess, self.model = _loaded(name, weights, lambda: _open_clip(name, weights))
        self.tokenizer = _loaded(name, weights, lambda: _tokenizer(name)) if texts else None
        _halve(self, texts)

    def image_features(self, pixels: Tensor) -> Tensor:
        """See Tower."""
        return self.model.encode_image(pixels)  # pyright: ignore[reportCallIssue]

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See Tower."""
        if self.tokenizer is None:
            raise ValueError("this model was loaded without its half for texts")
        ids = self.tokenizer(list(texts), context_length=self.model.context_length)
        vocabulary = getattr(self.model, "vocab_size", None) or getattr(self.model.text, "vocab_size", None)
        return self.model.encode_text(_within(ids, vocabulary).to(self.device))  # pyright: ignore[reportCallIssue]


class TransformersTower(Tower):
    """A tower that transformers reads."""

    def __init__(self, name: str, processor: str, texts: bool):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        super().__init__()
        read = AutoModel.from_pretrained
        options = {"dtype": torch.float32, "output_loading_info": True}
        self.model, info = _loaded(name, None, lambda: read(_place(name), **options))
        if not all(hasattr(self.model, half) for half in ("get_image_features", "get_text_features")):
            raise ValueError(
                f"{name!r} is a {type(self.model).__name__}; accepted are models of images and texts (CLIP)"
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{name!r} lacks {len(missing)} tensors of its model ({missing[0]}); download it anew")
        read_sizes = AutoImageProcessor.from_pretrained
        self.preprocess = _loaded(processor, None, lambda: _sizes(read_sizes(_place(processor)), processor))
        tokens = AutoTokenizer.from_pretrained
        self.tokenizer = _loaded(processor, None, lambda: tokens(_place(processor))) if texts else None
        _halve(self, texts)

    def image_features(self, pixels: Tensor) -> Tensor:
        """See Tower."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))  # pyright: ignore[reportCallIssue]

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """See Tower."""
        if self.tokenizer is None:
            raise ValueError("this model was loaded without its half for texts")
        config = self.model.config.text_config  # pyright: ignore[reportAttributeAccessIssue]
        length = config.max_position_embeddings
        # always the whole context: SigLIP reads its padding, and the longest text of a batch changes nothing
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        _within(found["input_ids"], config.vocab_size)
        return _pooled(self.model.get_text_features(**found.to(self.device)))  # pyright: ignore[reportCallIssue]


def _open_clip(name: str, weights: str | None) -> tuple[Preprocess, nn.Module]:
    """Preprocessing and model by open_clip; `weights` of a folder or of an architecture may be a file."""
    import open_clip

    file = Path(weights).expanduser() if weights else None
    if file is not None and not file.is_file() and (file.suffix or len(file.parts) > 1):
        raise FileNotFoundError(f"no file at {weights!r}")
    if file is not None and file.is_file():
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
        open_clip.load_checkpoint(model, str(file))
    else:
        tag = open_clip.get_pretrained_cfg(name, weights) if weights else {}
        quick = bool(tag.get("quick_gelu")) and not name.endswith("quickgelu")  # OpenAI's own weights
        model = open_clip.create_model(
            name, weights, require_pretrained=True, pretrained_text=False, force_quick_gelu=quick
        )
    said = model.visual.preprocess_cfg
    size = said["size"] if isinstance(said["size"], tuple | list) else (said["size"],) * 2
    if said["fill_color"]:
        raise ValueError(f"it pads with level {said['fill_color']}; known is padding with black")
    how = {"mode": said["resize_mode"], "interpolation": said["interpolation"]}
    return Preprocess(tuple(size), mean=tuple(said["mean"]), std=tuple(said["std"]), **how), model


def _tokenizer(name: str) -> Callable[..., Tensor]:
    """open_clip's tokenizer of a model; a folder's own where its config asks for it or its vocabulary is not CLIP's."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    if not name.startswith("local-dir:"):
        return open_clip.get_tokenizer(name)
    folder = Path(name.removeprefix("local-dir:"))
    said = json.loads((folder / OPEN_CLIP_CONFIG).read_text())["model_cfg"]["text_cfg"]
    if said.get("hf_tokenizer_name") or said.get("vocab_size", 49408) == 49408:
        return open_clip.get_tokenizer(name)
    options = {"tokenizer_mode": said.get("tokenizer_mode"), **said.get("tokenizer_kwargs", {})}
    return HFTokenizer(str(folder), context_length=said.get("context_length", 77), **options)


def _sizes(processor: object, name: str) -> Preprocess:
    """The preprocessing that an image processor of transformers describes."""
    said = processor.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = {2: "bilinear", 3: "bicubic"}
    common = {"mean": tuple(said["image_mean"]), "std": tuple(said["image_std"]), "floor": True}
    if int(said["resample"]) not in kinds or not said.get("do_resize", True) or not said.get("do_normalize", True):
        raise ValueError(f"the image processor of {name!r} resizes in no way known here (bicubic, bilinear)")
    common["interpolation"] = kinds[int(said["resample"])]
    size, crop = said["size"], said.get("crop_size") if said.get("do_center_crop") else None
    side = size.get("shortest_edge")
    if side is None:
        if crop is not None:
            raise ValueError(f"the image processor of {name!r} squashes and crops; accepted is one of the two")
        return Preprocess((size["height"], size["width"]), mode="squash", **common)
    if crop is None:
        raise ValueError(f"the image processor of {name!r} does not crop, so that its pictures have no common size")
    return Preprocess((crop["height"], crop["width"]), side=side, **common)


def _pooled(found: object) -> Tensor:
    """The embedding: what transformers 5 wraps and transformers 4 returned as it is."""
    return found if isinstance(found, Tensor) else found.pooler_output  # pyright: ignore[reportAttributeAccessIssue]


def _within(ids: Tensor, vocabulary: int | None) -> Tensor:
    if vocabulary is not None and ids.numel() and int(ids.max()) >= vocabulary:
        raise ValueError(
            f"the tokenizer gives token {int(ids.max())} to a model of {vocabulary}; it is another model's"
        )
    return ids


def _halve(tower: Tower, texts: bool) -> None:
    if not texts:
        for part in TEXT_HALF:
            if getattr(tower.model, part, None) is not None:
                setattr(tower.model, part, None)
    tower.eval().requires_grad_(False)


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path) if path.exists() else name


def _loaded(name: str, weights: str | None, load: Callable[[], Loaded]) -> Loaded:
    """What load returns; what it raises becomes a ValueError of one line that names the checkpoint."""
    try:
        return load()
    except Exception as error:
        which = f"model {name!r}" + (f" with weights {weights!r}" if weights else "")
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{which} cannot be loaded ({type(error).__name__}: {reason}); {_ADVICE}") from error


_ADVICE = "give a folder, a model of the hub, or an open_clip architecture with a tag or file as weights"
