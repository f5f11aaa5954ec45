"""A model that embeds images and texts into one space, whichever library it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.untyped import Nest, Network, Tokenizer
from reward_models.parts.embedding.preprocess import Mode, Preprocess

LoadedT = TypeVar("LoadedT")
ADVICE = "give a folder, a model of the hub, or an open_clip architecture with a tag or file as weights"
# what a model has for texts alone: of open_clip's CLIP, of its CustomTextCLIP, of transformers
TEXT_HALF = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")
TEXT_HALF += ("text", "text_model")


class Tower(nn.Module):
    """A model that embeds images and texts. Made by `tower`."""

    preprocess: Preprocess
    model: Network  # a module of a library: whatever it offers
    width: int  # D, the number of entries of an embedding
    tokenizer: Tokenizer = None
    patches: bool = False  # whether a picture is embedded as the mean of its patches

    def image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1 of images float [B, 3, H, W] in [0, 1], with gradient to them.

        They are resized as floating point: if no resize is needed, 8-bit pictures have the embeddings of `image_pil`;
        else see preprocess.py.
        """
        return self._embed(self.preprocess.tensors(images.to(self.device, self.dtype)))

    def image_pil(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of length 1 of pictures of any sizes, preprocessed by Pillow as published."""
        return self._embed(self.preprocess.pictures(pictures).to(self.device, self.dtype))

    def text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of length 1 of texts, each cut to the model's context. Equal texts are embedded once."""
        if not texts:
            return torch.zeros(0, self.width, device=self.device, dtype=self.dtype)
        unique = list(dict.fromkeys(texts))
        at = {text: row for row, text in enumerate(unique)}
        embeddings = F.normalize(self.text_features(unique), dim=-1)
        return embeddings[torch.tensor([at[text] for text in texts], device=embeddings.device)]

    def _embed(self, pixels: Tensor) -> Tensor:
        if not len(pixels):
            return pixels.new_zeros(0, self.width)
        return F.normalize(self.patch_features(pixels) if self.patches else self.image_features(pixels), dim=-1)

    def by_patches(self) -> "Tower":
        """This tower, with pictures embedded as the mean over their patches of what the last layer says of each.

        What is compared with texts tells what is there; how large it is and where, the patches tell better. Raises
        ValueError for a model without patches.
        """
        self.width, self.patches = self.patch_width(), True
        return self

    def patch_width(self) -> int:
        """C, the entries of a patch. Raises ValueError for a model without patches."""
        raise NotImplementedError

    def patch_features(self, pixels: Tensor) -> Tensor:
        """[B, C] of preprocessed pixels: the last layer's normalised states of the patches, averaged."""
        raise NotImplementedError

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, D], not normalised, of preprocessed pixels."""
        raise NotImplementedError

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D], not normalised, of texts."""
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
    def dtype(self) -> torch.dtype:
        """The dtype of the weights: float32, unless the tower was cast."""
        return next(self.model.parameters()).dtype

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosine in the model's logits (100 or so for CLIP): already the exponential. Scalar."""
        return self.model.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> Tensor:
        """What the model adds to its logits, scalar: non-zero for SigLIP only."""
        bias = getattr(self.model, "logit_bias", None)
        return torch.zeros((), device=self.device) if bias is None else bias.reshape(())

    def ready(self, texts: bool) -> None:
        """Freezes the tower and, unless texts are wanted, drops the half for texts."""
        for part in () if texts else TEXT_HALF:
            if getattr(self.model, part, None) is not None:
                setattr(self.model, part, None)
        self.eval().requires_grad_(False)

    def tokens(self, texts: Sequence[str], vocabulary: int, **options: object) -> Nest:
        """The tokenizer's output. Raises ValueError if it is another model's, or if there is no half for texts."""
        if self.tokenizer is None:
            raise ValueError("this model was loaded without its half for texts")
        tokens = self.tokenizer(list(texts), **options)
        ids = tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
        if int(ids.max()) >= vocabulary:
            raise ValueError(f"the tokenizer gives token {int(ids.max())} of {vocabulary}; it is another model's")
        return tokens


def load_or_explain(name: str, weights: str | None, load: Callable[[], LoadedT]) -> LoadedT:
    """The result of load; whatever it raises becomes a ValueError of one line that names the checkpoint."""
    try:
        return load()
    except Exception as error:
        which = f"model {name!r}" + (f" with weights {weights!r}" if weights else "")
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{which} cannot be loaded ({type(error).__name__}: {reason}); {ADVICE}") from error
