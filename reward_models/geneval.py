"""GenEval: does the picture have the objects that the prompt asks for, in number, colour and place (arXiv 2310.11513)?

A detector finds objects, CLIP names their colours, and the rules of `parts/vision/geneval_rules.py` compare them with
the prompt's meta, a line of GenEval's evaluation_metadata.jsonl: tag, include, exclude. As published: detections above
0.3 (0.9 for the tag "counting"), at most 16 per class, no suppression of overlaps; place by box centres beyond 0.1 of
the extents; colours by open_clip ViT-L-14 (openai) on crops whose background is painted #999. Pictures have 8 bits, as
their PNG files would. It has no gradient.

Scale: 0 or 1 for `official` (the benchmark's accuracy) and `strict` (exact counts), 0 to 1 for `partial`. With
`compatible`, `strict` and `partial` are the rewards of yifan123/reward-server (Flow-GRPO) with their faults, where
partial has no lower bound. The defaults have none of those faults: geneval_rules says which they are.

Difference from the benchmark: it detects by mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco; this is Meta's own
checkpoint of that architecture and schedule in transformers' format. The weights are others, so expect numbers near
the published ones, not those. Its input is resized to 800 / 1333 as by mmdet, but to multiples of 32 instead of padded
to them (the same for square pictures). Licences: the hub calls that of the detector "other", Meta's repository is MIT;
CLIP is MIT.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flowrl.contracts import Samples
from reward_models.parts import inputs
from reward_models.parts.embedding import clip as towers
from reward_models.parts.model import Model
from reward_models.parts.vision import geneval_rules as rules
from reward_models.parts.vision import instances

Mode = Literal["partial", "strict", "official"]
RULES: dict[tuple[str, bool], Callable[[rules.Objects, rules.Task, float], float]] = {
    ("partial", False): rules.partial,
    ("strict", False): rules.strict,
    ("official", False): rules.official,
    ("partial", True): rules.partial_compatible,
    ("strict", True): rules.strict_compatible,
    ("official", True): rules.official,
}
BACKGROUND = "#999"
PHRASES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


class geneval(Model):  # noqa: N801
    """Share of the requested objects, counts, colours and places that a picture shows, float32 [B]."""

    def __init__(
        self,
        *,
        mode: Mode = "partial",
        compatible: bool = False,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        model: str = "ViT-L-14",
        weights: str | None = "openai",
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        position_threshold: float = rules.POSITION_THRESHOLD,
        resize: Sequence[int] | None = (800, 1333),
    ):
        if (mode, compatible) not in RULES:
            raise ValueError(f"geneval: mode={mode!r}, compatible={compatible!r}; accepted are {_MODES}, true or false")
        for name, value in {"threshold": threshold, "counting_threshold": counting_threshold}.items():
            if not 0 < value < 1:
                raise ValueError(f"geneval: {name}={value}; accepted is a score between 0 and 1, published 0.3 and 0.9")
        if max_objects < 1 or position_threshold < 0:
            said = f"max_objects={max_objects}, position_threshold={position_threshold}"
            raise ValueError(f"geneval: {said}; accepted is at least 1 object and a threshold from 0")
        self.rule = RULES[mode, compatible]
        self.thresholds = threshold, counting_threshold
        self.max_objects, self.position_threshold = max_objects, position_threshold
        self.detector = instances.Detector(detector, resize, "geneval: detector")
        self.tower = towers.tower(model, weights)
        self._colours: dict[str, Tensor] = {}
        self.freeze()

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """The score of each picture, float32 [B]; NaN where a pixel is not finite. Raises ValueError for a prompt
        without a task."""
        images = inputs.pictures("geneval", samples)
        tasks = [self._task(prompt.meta, prompt.text) for prompt in samples.prompts]
        lost = inputs.is_unscorable(images).tolist()
        # One picture at a time: a threshold must not depend on how a batch rounds, and masks are large.
        scores = [
            math.nan if out else self.rule(self.objects(picture, task), task, self.position_threshold)
            for picture, task, out in zip(inputs.as_pil(images), tasks, lost, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32)

    @torch.no_grad()
    def objects(self, picture: Image.Image, task: rules.Task) -> dict[str, list[rules.Detection]]:
        """The picture's objects of the classes of a task, most confident first, with colours if it asks for them."""
        kept: dict[str, list[instances.Instance]] = defaultdict(list)
        for one in self.detector(picture, self.thresholds[task.counting]):
            kind = self.detector.labels[one.label]
            if kind in task.kinds() and len(kept[kind]) < self.max_objects:
                kept[kind].append(one)
        by_class = {}
        for kind, ones in kept.items():
            colours = self.colours(picture, ones, kind) if kind in task.coloured() else [None] * len(ones)
            by_class[kind] = [rules.Detection(one.box, one.score, c) for one, c in zip(ones, colours, strict=True)]
        return by_class

    @torch.no_grad()
    def colours(self, picture: Image.Image, ones: Sequence[instances.Instance], kind: str) -> list[str]:
        """The colour of each instance: the one of the ten whose phrases are nearest to it."""
        if kind not in self._colours:
            phrases = [phrase.format(colour, kind) for colour in rules.COLOURS for phrase in PHRASES]
            each = self.tower.text(phrases).unflatten(0, (len(rules.COLOURS), len(PHRASES)))
            self._colours[kind] = F.normalize(each.mean(1), dim=-1).cpu()
        # One crop at a time, for the same reason as pictures.
        seen = torch.cat([self.tower.image_pil([instances.cut(picture, one, BACKGROUND)]) for one in ones]).cpu()
        return [rules.COLOURS[i] for i in (seen @ self._colours[kind].T).argmax(1).tolist()]

    def _task(self, meta: dict, text: str) -> rules.Task:
        task = rules.task(meta, text)
        for kind in sorted(task.kinds() - set(self.detector.labels)):
            near = get_close_matches(kind, self.detector.labels, n=1)
            more = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(self.detector.labels))
            raise ValueError(f"prompt {text!r} asks for {kind!r}; the detector knows {known}{more}")
        return task


_MODES = ", ".join(dict.fromkeys(mode for mode, _ in RULES))
