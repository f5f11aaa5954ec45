"""A rubric: the aspects that a judge rates, the question about them, and how its JSON becomes a reward."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowrl.untyped import JSON
from reward_models.parts.judge import judging

ASPECTS = {
    "match": "how exactly the picture shows what the caption asks for: objects, their number, colours and places",
    "quality": "how sound the picture is: no broken shapes, noise, or smears",
}


@dataclass(frozen=True)
class Rubric:
    """Aspects with their meanings, and the scale of their numbers. The reward is their mean, scaled to [0, 1]."""

    aspects: Mapping[str, str]
    scale: tuple[float, float]

    def question(self, caption: str) -> str:
        """The question to the judge, with the caption quoted as data."""
        low, high = self.scale
        rated = "\n".join(f"- {name}: {meaning}" for name, meaning in self.aspects.items())
        form = json.dumps(dict.fromkeys(self.aspects, "number"))
        return (
            f"Rate the picture (or the frames of one video, in their order) with a number from {low:g}, the worst, to "
            f'{high:g}, the best, for each of\n{rated}\nThe caption it was made for is "{judging.quote(caption)}".\n'
            f"Answer with one JSON object of this form and with nothing else: {form}"
        )

    def schema(self) -> dict[str, JSON]:
        """The form of the answer, for servers with structured output."""
        low, high = self.scale
        number = {"type": "number", "minimum": low, "maximum": high}
        form = {
            "type": "object",
            "properties": dict.fromkeys(self.aspects, number),
            "required": list(self.aspects),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "rubric", "schema": form}}

    def score(self, text: str | None) -> float:
        """The reward in an answer, NaN if it is not exactly what was asked for."""
        if text is None:
            return math.nan
        return judging.rubric_score(judging.rubric(text, list(self.aspects), self.scale), self.scale)


def check_rubric(reward: str, aspects: Mapping[str, str] | None, scale: Sequence[float]) -> Rubric:
    """The rubric of these aspects. Raises ValueError, naming the reward, if they or the scale are not valid."""
    aspects = ASPECTS if aspects is None else aspects
    if not isinstance(aspects, Mapping) or not aspects or not all(isinstance(v, str) for v in aspects.values()):
        raise ValueError(f"{reward}: rubric={aspects!r}; accepted is a mapping of aspects to their meanings")
    numbers = isinstance(scale, Sequence) and all(isinstance(x, int | float) for x in scale)
    if not numbers or len(scale) != 2 or not -math.inf < scale[0] < scale[1] < math.inf:
        raise ValueError(f"{reward}: scale={scale!r}; accepted is [worst, best], two rising numbers such as [1, 5]")
    return Rubric(aspects, (float(scale[0]), float(scale[1])))
