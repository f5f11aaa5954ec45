"""Towers that open_clip reads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from flowrl.untyped import JSON, Network
from reward_models.parts.embedding.preprocess import Preprocess
from reward_models.parts.embedding.tower import Tower, load_or_explain

CONFIG = "open_clip_config.json"
ELSEWHERE = ("local-dir:", "hf-hub:")  # prefixes of open_clip's names that are not architectures


class OpenClipTower(Tower):
    """A tower that open_clip reads. name: `local-dir:FOLDER`, `hf-hub:OWNER/NAME` or an architecture."""

    def __init__(self, name: str, weights: str | None, texts: bool):
        super().__init__()
        self.model, self.width = load_or_explain(name, weights, lambda: _model(name, weights))
        self.preprocess = load_or_explain(name, weights, lambda: _sizes(self.model.visual.preprocess_cfg))
        self.tokenizer = load_or_explain(name, weights, lambda: _tokenizer(name)) if texts else None
        self.ready(texts)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, D] of pixels [B, 3, H, W]; see Tower."""
        return self.model.encode_image(pixels)

    def patch_width(self) -> int:
        """C; see Tower."""
        visual = self.model.visual
        if not hasattr(visual, "ln_post") or not hasattr(visual, "forward_intermediates"):
            raise ValueError(f"a {type(visual).__name__} has no patches; give a vision transformer, or leave it out")
        return int(visual.ln_post.normalized_shape[0])

    def patch_features(self, pixels: Tensor) -> Tensor:
        """[B, C] of pixels [B, 3, H, W]; see Tower."""
        how = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
        return self.model.visual.forward_intermediates(pixels, **how)["image_intermediates"][0].mean(1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts; see Tower."""
        ids = self.tokens(texts, self.model.vocab_size, context_length=self.model.context_length)
        return self.model.encode_text(ids.to(self.device))


def _model(name: str, weights: str | None) -> tuple[Network, int]:
    """The model and the size of its embeddings; `weights` of a folder or of an architecture may be a file."""
    import open_clip

    if not name.startswith(ELSEWHERE) and name not in open_clip.list_models():
        raise ValueError(f"open_clip has no architecture {name!r}; see open_clip.list_models()")
    config: JSON = open_clip.get_model_config(name)
    width = int(config["embed_dim"])
    file = Path(weights).expanduser() if weights else None
    if file is not None and not file.is_file() and (file.suffix or len(file.parts) > 1):
        raise FileNotFoundError(f"no file at {weights!r}")
    if file is None or not file.is_file():
        quick = _quick_gelu(name, weights) if weights else False
        model: Network = open_clip.create_model(
            name, weights, pretrained_text=False, require_pretrained=True, force_quick_gelu=quick
        )
        return model, width
    if not name.startswith(ELSEWHERE):
        return open_clip.create_model(name, str(file), pretrained_text=False, require_pretrained=True), width
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    open_clip.load_checkpoint(model, str(file))
    return model, width


def _quick_gelu(name: str, tag: str) -> bool:
    """Whether weights that open_clip can download want an activation that the architecture of that name lacks."""
    import open_clip

    if name.startswith(ELSEWHERE):
        raise ValueError(f"weights {tag!r} are no file; a folder's own are read without naming any")
    if tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise ValueError(f"open_clip has no weights {tag!r} of {name}, only {', '.join(tags) or 'none'}")
    wanted = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    config: JSON = open_clip.get_model_config(name)
    return bool(wanted) and not config.get("quick_gelu", False)


def _sizes(said: dict[str, JSON]) -> Preprocess:
    """The preprocessing that open_clip has read with the model."""
    if said["fill_color"]:
        raise ValueError(f"it pads with level {said['fill_color']}; known is padding with black")
    size = said["size"] if isinstance(said["size"], tuple | list) else (said["size"], said["size"])
    return Preprocess(
        (size[0], size[1]),
        mode=said["resize_mode"],
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        interpolation=said["interpolation"],
    )


def _tokenizer(name: str) -> Callable[..., Tensor]:
    """open_clip's tokenizer of a model; a folder's own if its config asks for it or its vocabulary is not CLIP's."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    if not name.startswith("local-dir:"):
        return open_clip.get_tokenizer(name)
    folder = Path(name.removeprefix("local-dir:"))
    said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if said.get("hf_tokenizer_name") or said.get("vocab_size", 49408) == 49408:
        return open_clip.get_tokenizer(name)
    options = {"tokenizer_mode": said.get("tokenizer_mode"), **said.get("tokenizer_kwargs", {})}
    return HFTokenizer(str(folder), context_length=said.get("context_length", 77), **options)
