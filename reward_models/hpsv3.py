"""HPSv3: how much people would like a picture for a caption (Ma et al. 2025, arXiv 2508.03789).

Qwen2-VL-7B reads the picture, the caption and an instruction; a small head on the state of the token <|Reward|> gives
the mean and the spread of the preference, and the mean is the score. Weights `HPSv3.safetensors` of MizzenAI/HPSv3
(MIT) on the configuration and tokenizer of Qwen/Qwen2-VL-7B-Instruct (Apache-2.0). Scores of photographs lie about
0 .. 12; verl-omni trains with a tenth of them.

For positions see parts/preference/qwen2vl.py. The published inference code drops the whole instruction if special
tokens are off (`a + b if c else d`); here it is always there. A caption that spells out a control token stays text.
"""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.contracts import Samples
from reward_models.parts import checkpoints, hub, inputs
from reward_models.parts.judge.instructions import HPSV3
from reward_models.parts.model import Model
from reward_models.parts.preference import qwen2vl

WHAT = "hpsv3"
TOKEN = "<|Reward|>"


class hpsv3(Model):  # noqa: N801 - the name recipes use
    """Human preference for a picture, given its caption (HPSv3, Qwen2-VL-7B); about 0 .. 12, higher is better.

    model: the file HPSv3.safetensors, its folder, or a model of the hub. base: whose configuration and processor are
    used. min_pixels, max_pixels: the size that pictures are resized to. every: of a video, every n-th frame is scored;
    their mean is its score. dtype: of the language model; the head is float32.
    """

    differentiable = True  # by `score`

    def __init__(
        self,
        *,
        model: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        min_pixels: int = 256 * 28 * 28,
        max_pixels: int = 256 * 28 * 28,
        every: int = 4,
        dtype: str = "bfloat16",
    ):
        if not 1 <= min_pixels <= max_pixels:
            raise ValueError(
                f"{WHAT}: min_pixels={min_pixels}, max_pixels={max_pixels}; accepted is 1 <= min_pixels <= max_pixels"
            )
        if every < 1:
            raise ValueError(f"{WHAT}: every={every}; accepted is 1 (each frame) or more")
        self.pixels, self.every = (min_pixels, max_pixels), every
        kind = qwen2vl.dtype_of(dtype, WHAT)
        file = hub.file_of(model, "HPSv3.safetensors", WHAT)
        processor, config = qwen2vl.processor_of(base, [TOKEN], WHAT), qwen2vl.config_of(base, WHAT)
        tensors = checkpoints.state_dict(file, WHAT)
        head = {name.removeprefix("rm_head."): t for name, t in tensors.items() if name.startswith("rm_head.")}
        rest = {qwen2vl.backbone_name(n): t for n, t in tensors.items() if not n.startswith(("rm_head.", "lm_head."))}
        backbone = qwen2vl.backbone(config, rest, kind, WHAT)
        self.reader = qwen2vl.QwenReader(
            backbone, _head(head, config.text_config.hidden_size), processor, [TOKEN], WHAT
        )
        self.freeze()

    def __call__(self, samples: Samples) -> Tensor:
        """The score of each picture, or the mean of a video's frames, float32 [B]; NaN where a pixel is not finite."""
        video = inputs.frames(WHAT, samples)[:, :: self.every]
        scores = [
            torch.stack([self._read(self._prepare(image), prompt.text) for image in inputs.as_pil(frames)]).mean()
            for frames, prompt in zip(video, samples.prompts, strict=True)
        ]
        if not scores:
            return torch.zeros(0)
        return torch.stack(scores).masked_fill(inputs.is_unscorable(video).to(scores[0].device), torch.nan)

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """The scores [B] of images float [B, 3, H, W] in [0, 1], with gradient with respect to them.

        Pixels are within 1/256 of those that __call__ scores if nothing is resized, and within 2/256 if it is, since
        __call__ rounds to 8 bits before and after.
        """
        inputs.check_pixels(WHAT, images, 4)
        pictures = [qwen2vl.resize_frames(image[None], self._fitted_size(*image.shape[-2:])) for image in images]
        scores = [self._read(picture, text) for picture, text in zip(pictures, texts, strict=True)]
        return torch.stack(scores) if scores else images.flatten(1).sum(1).float()

    def _read(self, picture: Tensor, caption: str) -> Tensor:
        """The mean of the preference, float32 []."""
        asked = HPSV3.replace("{text_prompt}", self.reader.plain(caption))
        return self.reader("image", picture, asked)[0, 0]

    def _prepare(self, image: Image.Image) -> Tensor:
        return qwen2vl.resize_by_pillow(image, self._fitted_size(image.height, image.width))

    def _fitted_size(self, height: int, width: int) -> tuple[int, int]:
        return qwen2vl.fitted_size(height, width, self.reader.factor, *self.pixels)


def _head(tensors: Mapping[str, Tensor], width: int) -> nn.Module:
    """The published head, width-1024-16-2 with ReLU, filled; the two numbers are mean and spread."""
    hidden, last = nn.Linear(width, 1024), nn.Linear(16, 2)
    head = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), last)
    checkpoints.fill(head, tensors, f"{WHAT}: rm_head")
    return head
