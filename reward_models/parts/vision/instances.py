"""Mask2Former as a detector of instances: the objects in a picture with confidence, box and mask.

The post-processing is that of mmdet and Detectron2: the (query, class) pairs of greatest probability, as many as there
are queries; masks resized as logits, to the input and then to the picture, and cut at 0; score = probability * mean of
the mask's own probabilities. transformers' post_process_instance_segmentation scores the same way, but resizes every
mask through 384 x 384 and then by nearest neighbours, whatever the picture is; so it is not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from reward_models.parts import checkpoints

# Classes of COCO that checkpoints spell differently -> GenEval's names.
ALIASES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}


@dataclass(frozen=True)
class Instance:
    """An object: class number, score in [0, 1], box (x1, y1, x2, y2) in whole pixels, x2 and y2 exclusive, and mask.

    mask is bool [H, W] on the CPU, of the picture's size.
    """

    label: int
    score: float
    box: tuple[int, int, int, int]
    mask: Tensor


class Detector(nn.Module):
    """Mask2Former with its image processor, on the CPU. Raises ValueError, in one line, for any other checkpoint.

    resize: (shortest, longest) side of the input in pixels, proportions kept; None: what the checkpoint says.
    labels are the names of its classes as GenEval writes them.
    """

    def __init__(self, name: str, resize: Sequence[int] | None, what: str):
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        super().__init__()
        self.size = None if resize is None else _edges(resize, what)
        read = Mask2FormerForUniversalSegmentation.from_pretrained
        loaded = checkpoints.load_pretrained(read, name, what, dtype=torch.float32, output_loading_info=True)
        self.model, info = loaded  # pyright: ignore[reportGeneralTypeIssues]
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{what}: {name!r} lacks {len(missing)} tensors ({missing[0]}); accepted is Mask2Former for instances"
            )
        self.processor = checkpoints.load_pretrained(AutoImageProcessor.from_pretrained, name, what)
        self.labels = names(self.model.config.id2label)

    def forward(self, picture: Image.Image, threshold: float) -> list[Instance]:
        """The instances of a picture that score above the threshold, most confident first."""
        options = {} if self.size is None else {"size": self.size}
        pixels = self.processor(images=[picture], return_tensors="pt", **options)["pixel_values"]
        outputs = self.model(pixel_values=pixels.to(self.model.device))
        masks = F.interpolate(outputs.masks_queries_logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        return instances(outputs.class_queries_logits[0], masks[0], (picture.height, picture.width), threshold)


def names(id2label: Mapping[int, str]) -> list[str]:
    """The class names by number, as GenEval writes them."""
    return [ALIASES.get(name := str(id2label[i]).lower().strip(), name) for i in sorted(id2label)]


@torch.no_grad()
def instances(classes: Tensor, masks: Tensor, size: tuple[int, int], threshold: float) -> list[Instance]:
    """The instances of one picture (height, width) that score above the threshold, most confident first.

    classes: logits [Q, C + 1], the last one for "no object". masks: logits [Q, h, w].
    """
    probability = classes.float().softmax(-1)[:, :-1]
    number, kinds = probability.shape
    best, at = probability.flatten().topk(number)
    detected = []
    for sure, place in zip(best.tolist(), at.tolist(), strict=True):
        if sure <= threshold:  # a mask's own score is at most 1: it cannot lift this one
            break
        query, label = divmod(place, kinds)
        logits = F.interpolate(masks[query].float()[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        mask = logits > 0
        score = sure * float((logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6))
        if score > threshold:
            detected.append(Instance(label, score, box(mask), mask.cpu()))
    return sorted(detected, key=lambda one: -one.score)


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around the True of a mask [H, W] that has one; x2 and y2 are exclusive."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut(picture: Image.Image, instance: Instance, background: str) -> Image.Image:
    """The box of an instance, with everything but the instance itself painted over."""
    blank = Image.new("RGB", picture.size, background)
    own = Image.composite(picture, blank, Image.fromarray(instance.mask.numpy()))
    return own.crop(instance.box)


def _edges(resize: Sequence[int], what: str) -> dict[str, int]:
    whole = [side for side in resize if isinstance(side, int) and not isinstance(side, bool)]
    if len(whole) != 2 or len(resize) != 2 or not 1 <= whole[0] <= whole[1]:
        raise ValueError(f"{what}: resize={list(resize)}; accepted is [shortest, longest] side in pixels, or null")
    return {"shortest_edge": whole[0], "longest_edge": whole[1]}
