"""The kinds of model that a recipe can train, and the one place that asks which it is.

A recipe chooses its kind once, by the section that only this kind reads; everybody else asks the kind for what differs:
`kind_of(recipe).planning.plan(recipe, 0)`. A further kind is a file of this room, which binds what it consists of, and
an entry in KINDS. kind.py says what a kind has to know.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl import names
from flowrl.kinds.denoising import Denoising
from flowrl.kinds.kind import Kind
from flowrl.kinds.language import Language
from flowrl.recipe.schema import Recipe

KINDS: tuple[Kind, ...] = (Denoising(), Language())  # the first is that of a recipe without a section of the others


def kind_of(recipe: Recipe | Mapping[str, Any]) -> Kind:
    """The kind of model that a recipe trains, or the values of one that is not checked yet."""
    given = recipe if isinstance(recipe, Mapping) else vars(recipe)
    return next((kind for kind in KINDS if kind.section and given.get(kind.section) is not None), KINDS[0])


def kind_of_model(model: str) -> Kind | None:
    """The kind of an embedded or local model, by its folder; None for a hub id, which tells it only once loaded."""
    folder = names.MODELS.get(model, Path(model).expanduser())
    return next((kind for kind in KINDS if kind.holds(folder)), None)
