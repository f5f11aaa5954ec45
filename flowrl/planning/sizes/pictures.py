"""How large the pictures are that prompts come with."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flowrl.contracts import Prompt
from flowrl.media.files import media_kind


def picture_sizes(prompts: Sequence[Prompt]) -> dict[str, list[list[int]]]:
    """By argument of the pipeline, the width and height of each picture of the prompt that has the largest."""
    found: dict[str, list[list[int]]] = {}
    for prompt in prompts:
        given = {"image": list(prompt.media), **{n: v if isinstance(v, list) else [v] for n, v in prompt.call.items()}}
        for name, files in given.items():
            sizes_of = [one for one in map(_picture_size, files) if one is not None]
            if sizes_of and sum(map(math.prod, sizes_of)) > sum(map(math.prod, found.get(name, []))):
                found[name] = sizes_of
    return found


def _picture_size(file: object) -> list[int] | None:
    """Width and height of a picture; None for what is none."""
    if not isinstance(file, str | Path) or media_kind(str(file)) != "image":
        return None
    with Image.open(file) as picture:
        return list(picture.size)
