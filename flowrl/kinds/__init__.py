"""The kinds of model that a recipe can train, and the only place that tells them apart.

A recipe chooses its kind once; all other code asks the kind for what differs: `kind_of(recipe).planning.plan(recipe,
0)`. A further kind is a class in a file of this room and an entry in KINDS; kind.py documents the interface.
"""

from collections.abc import Mapping

from flowrl.kinds.denoising import Denoising
from flowrl.kinds.kind import Kind
from flowrl.kinds.language import Language
from flowrl.known.places import config_place
from flowrl.recipe.models import gguf_file
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

KINDS: tuple[Kind, ...] = (Language(), Denoising())  # the first that claims a recipe is its kind; the last claims all


def kind_of(recipe: Recipe | Mapping[str, JSON]) -> Kind:
    """The kind of model that a recipe trains, or the values of one that is not checked yet."""
    given = recipe if isinstance(recipe, Mapping) else vars(recipe)
    return next(kind for kind in KINDS if kind.claims(given))


def kinds_of_model(model: str) -> list[Kind]:
    """The kinds that a model can be of, by its configs; none for a hub id whose configs are not known here."""
    folder = gguf_file(model) or config_place(model)
    return [kind for kind in KINDS if kind.holds(folder)]
