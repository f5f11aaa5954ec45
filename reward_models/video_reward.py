"""VideoReward: visual quality, motion quality and text alignment of a video (VideoAlign; Liu et al. 2025, 2501.13918).

Qwen2-VL-2B with LoRA sees frames of the video, an instruction and the caption; a linear head is read at three special
tokens. Weights: the folder KwaiVGI/VideoReward (code MIT) on Qwen/Qwen2-VL-2B-Instruct (Apache-2.0). Each aspect is
standardised with mean and std from the checkpoint's own model_config.json, and `overall` is the sum of the three.

Beside what parts/qwen2vl.py says of positions: a checkpoint without mean and std is refused (the published code then
returns raw numbers that look like scores); a video is seen from its 8-bit frames, not from a lossy mp4; the head is
computed in float32; LoRA is merged in float32. A caption that spells out a control token stays words.
"""

import threading
import weakref
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from flowrl.contracts import Samples
from reward_models.parts import hub, inputs
from reward_models.parts.judge.instructions import VIDEO_REWARD
from reward_models.parts.model import Model
from reward_models.parts.preference import qwen2vl, videoalign

WHAT = "video_reward"


class _Judge:
    """The model of one checkpoint with one set of options, and its last scores, shared by the rewards that name it."""

    def __init__(
        self, reader: qwen2vl.QwenReader, said: videoalign.VideoAlignConfig, video_fps: float, least_pixels: int
    ):
        self.reader, self.said, self.video_fps, self.least_pixels = reader, said, video_fps, least_pixels
        self.lock = threading.Lock()
        self.last: tuple[tuple[bytes, list[bool], list[str]], Tensor] | None = None

    def scores(self, video: Tensor, captions: list[str]) -> Tensor:
        """VQ, MQ and TA, standardised, float32 [B, 3]; NaN where a pixel is not finite. The last scores are kept."""
        levels = inputs.as_uint8(video[:, self.chosen(video)])
        lost = inputs.is_unscorable(video)
        key = inputs.digest(levels), lost.tolist(), captions
        with self.lock:
            if self.last is not None and self.last[0] == key:
                return self.last[1]
            rows = [self.read(self._resize(clip), said) for clip, said in zip(levels, captions, strict=True)]
            result = torch.stack(rows) if rows else torch.zeros(0, 3)
            result = result.masked_fill(lost.to(result.device)[:, None], torch.nan)
            self.last = key, result
            return result

    def read(self, clip: Tensor, caption: str) -> Tensor:
        """VQ, MQ and TA of one video, frames [T, 3, H, W] in [0, 1] already chosen and resized; float32 [3]."""
        asked = VIDEO_REWARD.replace("{text_prompt}", self.reader.plain(caption))
        raw = videoalign.scores(self.reader("video", clip, asked))
        mean, std = (torch.tensor(s, dtype=torch.float32, device=raw.device) for s in (self.said.mean, self.said.std))
        return (raw - mean) / std

    def chosen(self, video: Tensor) -> list[int]:
        """Which frames of a video [B, T, ...] are scored."""
        return videoalign.frames_of(video.shape[1], self.video_fps, self.said, WHAT)

    def fitted_size(self, video: Tensor) -> tuple[int, int]:
        """The (height, width) that frames are resized to, of a video [B, T, 3, H, W]."""
        height, width = video.shape[-2:]
        return qwen2vl.fitted_size(height, width, self.reader.factor, self.least_pixels, self.said.most_pixels)

    def _resize(self, levels: Tensor) -> Tensor:
        size = list(self.fitted_size(levels))
        return transforms.resize(levels, size, InterpolationMode.BICUBIC, antialias=True).float() / 255


_judges: weakref.WeakValueDictionary[Hashable, _Judge] = weakref.WeakValueDictionary()


class video_reward(Model):  # noqa: N801 - the name recipes use
    """Human preference for a video (VideoReward, Qwen2-VL-2B): one aspect of it, about 0 +- 1, or their sum.

    aspect: VQ (visual quality), MQ (motion quality), TA (text alignment) or overall. model: the checkpoint's folder or
    a model of the hub; step: which of its checkpoints (null: the last). base: the model under the LoRA (null: as
    model_config.json says). video_fps: frames a second of the videos that are scored; the checkpoint's own fps says how
    many of them are seen. min_frame_pixels: smaller frames are enlarged. dtype: of the language model.

    Rewards of one recipe that differ in their aspect alone share one model and one reading of each video.
    """

    differentiable = True  # by `score`

    def __init__(
        self,
        *,
        aspect: str = "overall",
        model: str = "KwaiVGI/VideoReward",
        base: str | None = None,
        step: int | None = None,
        video_fps: float = 16.0,
        min_frame_pixels: int = 128 * 28 * 28,
        dtype: str = "bfloat16",
    ):
        if aspect not in (*videoalign.ASPECTS, "overall"):
            raise ValueError(f"{WHAT}: aspect={aspect!r}; accepted is {', '.join(videoalign.ASPECTS)} or overall")
        if not 0 < video_fps < float("inf"):
            raise ValueError(f"{WHAT}: video_fps={video_fps}; accepted is a positive number of frames a second")
        if min_frame_pixels < 1:
            raise ValueError(f"{WHAT}: min_frame_pixels={min_frame_pixels}; accepted is 1 or more")
        kind, folder = qwen2vl.dtype_of(dtype, WHAT), hub.folder_of(model, WHAT)
        key = (str(folder.resolve()), step, base, video_fps, min_frame_pixels, dtype)
        judge = _judges.get(key)
        if judge is None:
            said = videoalign.settings(folder, WHAT)
            reader = videoalign.load(folder, step, base or said.base, said, kind, WHAT)
            judge = _judges[key] = _Judge(reader, said, video_fps, min_frame_pixels)
        self.aspect, self.judge, self.reader = aspect, judge, judge.reader

    def __call__(self, samples: Samples) -> Tensor:
        """The aspect's score of each video, float32 [B]; NaN where a pixel is not finite."""
        video = inputs.clips(WHAT, samples)
        return self._of(self.judge.scores(video, [prompt.text for prompt in samples.prompts]))

    def score(self, video: Tensor, texts: Sequence[str]) -> Tensor:
        """The scores [B] of videos float [B, T, 3, H, W] in [0, 1], with gradient with respect to them.

        Pixels are within 1/256 of those that __call__ scores if nothing is resized, and within 2/256 if it is, since
        __call__ rounds to 8 bits before and after.
        """
        video = inputs.check_pixels(WHAT, video, 5)[:, self.judge.chosen(video)]
        size = self.judge.fitted_size(video)
        pairs = zip(video, texts, strict=True)
        rows = [self.judge.read(qwen2vl.resize_frames(clip, size), caption) for clip, caption in pairs]
        return self._of(torch.stack(rows)) if rows else video.flatten(1).sum(1).float()

    def _of(self, scores: Tensor) -> Tensor:
        return scores.sum(1) if self.aspect == "overall" else scores[:, videoalign.ASPECTS.index(self.aspect)].clone()
