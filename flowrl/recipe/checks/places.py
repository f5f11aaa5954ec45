"""Texts of a recipe that name files and folders: could any file have that name?

What none can have is refused before a file is looked for: asking the system about it raises in place of saying no.
"""

import os.path
from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.reference import place_of
from flowrl.recipe.schema import Recipe

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes; NAME_MAX and PATH_MAX of Linux, the first also of macOS and NTFS


def check_places(recipe: Recipe) -> Iterator[RecipeError]:
    """An error for every model, prompt source, cache and output that can be the name of nothing."""
    named = {
        "model": recipe.model,
        "prompts.train": recipe.prompts.train,
        "prompts.heldout": recipe.prompts.heldout,
        "output": recipe.output,
        "lora.init": None if recipe.lora is None else recipe.lora.begun,
        "sampler.guide.path": None if recipe.sampler.guide is None else recipe.sampler.guide.path,
        **{place_of(recipe.reference, number, "path"): one.path for number, one in enumerate(recipe.references)},
        **{f"rewards.{name}.cache": spec.cache for name, spec in recipe.rewards.items()},
    }
    for place, text in named.items():
        if isinstance(text, str) and (problem := fault(text)):
            yield RecipeError(place, f"got {show(text)}, {problem}", f"change {place}")


def fault(text: str) -> str | None:
    """Why a text is the path of nothing, None where it could be one's."""
    try:
        parts = [len(part.encode()) for part in text.split("/")]
    except UnicodeEncodeError:
        return "which is no text that a file can be named by"
    if not text or "\0" in text:
        return "accepted: a path, which is not empty and holds no NUL character"
    if max(parts) > LONGEST_NAME or sum(parts) + len(parts) > LONGEST_PATH:
        return f"accepted: a path whose names have at most {LONGEST_NAME} bytes, and {LONGEST_PATH} in all"
    if text.startswith("~") and os.path.expanduser(text).startswith("~"):
        return "but there is no such user; accepted: ~ for your own folder"
    return None
