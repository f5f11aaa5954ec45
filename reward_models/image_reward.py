"""ImageReward: how much people would like a picture for a caption (Xu et al. 2023, arXiv 2304.05977).

BLIP-large: a text encoder reads the caption while it attends to the picture; an MLP without activations scores its
first token. Weights `ImageReward.pt` of THUDM/ImageReward, code Apache-2.0. Scores are standardised with the mean and
deviation of the published code, so they lie about 0 with deviation 1, mostly within -2.3 .. 2.

The published package pins timm 0.6 and fairscale; here the same tensors run in transformers' BLIP, with the layer-norm
epsilon (1e-6) and the 12 and 16 heads that the public model has and that transformers' defaults would not give.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from flowrl.contracts import Samples
from flowrl.untyped import Network, Tokenizer
from reward_models.parts import checkpoints, hub, inputs
from reward_models.parts.embedding import blip
from reward_models.parts.frames import by_frame, frame_count
from reward_models.parts.model import Model

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score, from the published code
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS = 35
WHAT = "image_reward"


class image_reward(Model):  # noqa: N801 - the name recipes use
    """Human preference for a picture, given its caption (ImageReward, BLIP); about 0 +- 1, higher is better.

    model: the file ImageReward.pt, its folder, or a model of the hub. tokenizer: BERT's uncased one. frames: how many
    frames of a video are scored, evenly spread (None: all); a video's score is their mean.
    """

    differentiable = True  # by `score`

    def __init__(
        self,
        *,
        model: str = "THUDM/ImageReward",
        tokenizer: str = "bert-base-uncased",
        frames: int | None = None,
        text_heads: int = 12,
        image_heads: int = 16,
    ):
        from transformers import BertTokenizer

        self.frames = frame_count(frames)
        tensors = checkpoints.state_dict(hub.file_of(model, "ImageReward.pt", WHAT), WHAT)
        self.vision: Network = blip.vision(blip.without_prefix(tensors, "blip.visual_encoder."), image_heads, WHAT)
        self.size = int(self.vision.config.image_size)
        width = int(self.vision.config.hidden_size)
        self.text: Network = blip.text(blip.without_prefix(tensors, "blip.text_encoder."), text_heads, width, WHAT)
        self.head = _head(blip.without_prefix(tensors, "mlp."), int(self.text.config.hidden_size))
        self.tokenizer: Tokenizer = checkpoints.load_pretrained(
            BertTokenizer.from_pretrained, tokenizer, f"{WHAT}: tokenizer"
        )
        # BLIP's two; no caption begins with them, but one that spells them out is read as the published code reads it
        self.tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        if len(self.tokenizer) != self.text.config.vocab_size:  # a folder without one gives an empty tokenizer
            raise ValueError(
                f"{WHAT}: tokenizer {tokenizer!r} has {len(self.tokenizer)} tokens with BLIP's two, the checkpoint "
                f"{self.text.config.vocab_size}; give bert-base-uncased"
            )
        self.freeze()

    def __call__(self, samples: Samples) -> Tensor:
        """The score of each picture, or the mean of a video's frames, float32 [B]; NaN where a pixel is not finite."""
        return by_frame(WHAT, samples, self.frames, self._score_pictures)

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """The scores [B] of images float [B, 3, H, W] in [0, 1], with gradient with respect to them.

        Pixels are within 1/256 of those that __call__ scores if nothing is resized, and within 2/256 if it is, since
        __call__ rounds to 8 bits before and after.
        """
        if not len(inputs.check_pixels(WHAT, images, 4)):
            return images.flatten(1).sum(1).float()
        resized = transforms.resize(images.float(), [self.size], InterpolationMode.BICUBIC, antialias=True)
        return self._scores(_normal(transforms.center_crop(resized, [self.size]).clamp(0, 1)), texts)

    def _score_pictures(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """The scores [N] of N Pillow pictures, equally many per text, preprocessed as in the published code."""
        each = [text for text in texts for _ in range(len(images) // len(texts))]
        pictures: list[Any] = list(images)  # torchvision takes them, but its hints know tensors alone
        resized: list[Any] = [transforms.resize(image, [self.size], InterpolationMode.BICUBIC) for image in pictures]
        cropped: list[Any] = [transforms.center_crop(image, [self.size]) for image in resized]
        return self._scores(torch.stack([_normal(transforms.to_tensor(image)) for image in cropped]), each)

    def _scores(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        read = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        seen = self.vision(pixels.to(self.device)).last_hidden_state
        hidden = self.text(
            read["input_ids"],
            attention_mask=read["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=self.device),
        ).last_hidden_state
        return (self.head(hidden[:, 0].float()).squeeze(1) - MEAN) / STD


def _head(tensors: dict[str, Tensor], width: int) -> nn.Module:
    """The MLP, float32: linear layers only (the published one has dropout between them, nothing else)."""
    rows = {name.split(".")[1]: t.shape for name, t in tensors.items() if name.endswith(".weight")}
    layers = {
        place: nn.Linear(shape[1], shape[0]) for place, shape in sorted(rows.items(), key=lambda pair: int(pair[0]))
    }
    checkpoints.fill(nn.ModuleDict({"layers": nn.ModuleDict(layers)}), tensors, WHAT)
    inside, out = [layer.in_features for layer in layers.values()], [layer.out_features for layer in layers.values()]
    if [width, *out] != [*inside, 1]:
        raise ValueError(
            f"{WHAT}: the checkpoint's mlp.layers do not lead from {width} numbers to one; is it ImageReward.pt?"
        )
    return nn.Sequential(*layers.values())


def _normal(pixels: Tensor) -> Tensor:
    return transforms.normalize(pixels, list(PIXEL_MEAN), list(PIXEL_STD))
