"""Looking closer: parts of a picture of the prompt, or of a part seen before, at the size that the file has.

What a model sees of a large picture is made small; these give it pixels that it has not seen. A part of a part is cut
from the picture of the prompt, not from what was shown of it.
"""

from flowrl.contracts import Context, ModelsFault, Shown
from flowrl.environments.tools.parts.pictures import Region, cut, region_of, remember, resized, widened

UNITS = {"pixels": None, "relative": 1.0, "thousandths": 1000.0}
QUADRANTS = {"top-left": (0, 0), "top-right": (1, 0), "bottom-left": (0, 1), "bottom-right": (1, 1)}


class zoom:
    """A rectangle of a picture, enlarged (DeepEyes, arXiv:2505.14362; Mini-o3, arXiv:2509.07969)."""

    def __init__(
        self,
        *,
        unit: str = "pixels",
        factor: float = 1.0,
        least: int = 28,
        most: int | None = 1003520,
        ratio: float = 100.0,
        pictures: str = "all",
    ):
        """How boxes are written, and which are taken.

        unit: pixels of the picture as it was given, relative (0 to 1) or thousandths of its sides. factor: by how much
        what was cut is enlarged. least: pixels of a side, to which a smaller box is widened. most: pixels of what is
        shown, at most (null: any number). ratio: of the sides of a box, at most. pictures: which
        it may be of, `all` of the conversation, or those of the `prompt` only.
        """
        if unit not in UNITS or pictures not in ("all", "prompt"):
            raise ValueError(
                f"unit={unit!r}, pictures={pictures!r}; accepted: unit {', '.join(UNITS)}; pictures all, prompt"
            )
        if factor <= 0 or least < 1 or ratio < 1 or (most is not None and most < 1):
            got = f"factor={factor}, least={least}, most={most}, ratio={ratio}"
            raise ValueError(f"{got}; accepted: a factor above 0, the others from 1")
        self.unit, self.factor, self.least, self.most, self.ratio, self.pictures = (
            unit,
            factor,
            least,
            most,
            ratio,
            pictures,
        )

    def __call__(self, bbox_2d: list[float], context: Context, picture: int = 1) -> Shown:
        """Zoom in on a rectangle of a picture, to see its details.

        Args:
            bbox_2d: The rectangle as [left, top, right, bottom].
            picture: The number of the picture, from 1, in the order in which you have seen them.
        """
        if len(bbox_2d) != 4:
            raise ModelsFault(f"bbox_2d has {len(bbox_2d)} numbers; accepted: [left, top, right, bottom]")
        last = len(context.prompt.media) if self.pictures == "prompt" else len(context.pictures)
        if picture > last:
            raise ModelsFault(f"there is no picture {picture} to zoom in on; accepted: 1 to {last}")
        region = region_of(context, picture)
        box = self._box(bbox_2d, region)
        part = Region(region.source, widened(box, region.box, self.least))
        shown = resized(cut(context, part), self.factor, self.most)
        number = len(context.pictures) + 1
        remember(context, part)
        return Shown(f"Picture {number} is the part {bbox_2d} of picture {picture}.", (shown,))

    def _box(self, bbox: list[float], region: Region) -> tuple[float, float, float, float]:
        """The box in pixels of the source. Raises ModelsFault where it is none, or lies outside."""
        left, top, right, bottom = region.box
        width, height = right - left, bottom - top
        whole = UNITS[self.unit]
        over = (width, height) if whole is None else (whole, whole)
        x1, y1, x2, y2 = bbox
        if not (0 <= x1 < x2 and 0 <= y1 < y2) or x1 >= over[0] or y1 >= over[1]:
            limits = f"0 <= left < right <= {over[0]:g} and 0 <= top < bottom <= {over[1]:g}"
            raise ModelsFault(f"bbox_2d={bbox} is no rectangle of the picture; accepted: {limits}")
        scale = (1.0, 1.0) if whole is None else (width / whole, height / whole)
        box = (x1 * scale[0], y1 * scale[1], min(x2 * scale[0], width), min(y2 * scale[1], height))
        sides = (box[2] - box[0], box[3] - box[1])
        if max(sides) > self.ratio * min(sides):
            raise ModelsFault(f"bbox_2d={bbox} is too narrow; accepted: sides of a ratio up to {self.ratio:g}")
        return (left + box[0], top + box[1], left + box[2], top + box[3])


class quadrant:
    """One quarter of the picture that was seen last; a second call zooms in further."""

    def __init__(self, *, levels: int = 2, side: int | None = None):
        """levels: how often a picture is quartered. side: pixels of the longer side of what is shown (null: as cut)."""
        if levels < 1 or (side is not None and side < 1):
            raise ValueError(f"levels={levels}, side={side}; accepted: numbers from 1")
        self.levels, self.side = levels, side

    def __call__(self, quadrant: str, context: Context) -> Shown:
        """Look closer at a quarter of the picture that you saw last.

        Args:
            quadrant: The quarter. (choices: ["top-left", "top-right", "bottom-left", "bottom-right"])
        """
        if quadrant not in QUADRANTS:
            raise ModelsFault(f"quadrant={quadrant!r}; accepted: {', '.join(QUADRANTS)}")
        depth: int = context.state.get("zoom.depth", 0)
        if depth >= self.levels:
            raise ModelsFault(f"the picture cannot be looked at closer than {self.levels} times")
        region = region_of(context, len(context.pictures))
        left, top, right, bottom = region.box
        across, down = QUADRANTS[quadrant]
        width, height = (right - left) / 2, (bottom - top) / 2
        x, y = left + across * width, top + down * height
        part = Region(region.source, (x, y, x + width, y + height))
        image = cut(context, part)
        shown = image if self.side is None else resized(image, self.side / max(image.size), None)
        context.state["zoom.depth"] = depth + 1
        remember(context, part)
        return Shown("", (shown,))
