"""Does what a recipe says of its reference fit the rest? Everything that can be known before a weight is loaded."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from flowrl import names
from flowrl.recipe.calls import check_free, check_values
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.lora import DRAWN
from flowrl.recipe.keys.reference import ReferenceKeys, place_of
from flowrl.recipe.models import missing_package
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def check_reference(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `reference` that cannot work, and what needs a reward where none counts."""
    references = recipe.references
    for number, one in enumerate(references):
        place = partial(place_of, recipe.reference, number)
        if (one.path is not None) != (one.use in ("lora", "model")):
            accepted = "null" if one.path is not None else "a path"
            problem = f"got {show(one.path)}, accepted with {place('use')}={one.use}: {accepted}"
            remedy = "give a path with use: lora or use: model, and with them alone"
            yield RecipeError(place("path"), problem, remedy)
        elif references != [ReferenceKeys()]:
            yield from _use(recipe, one, place)
        if one.when == {}:
            remedy = f"name a key of the prompts' meta, or remove {place('when')}"
            yield RecipeError(place("when"), "got no key", remedy)
        if one.when is None and number + 1 < len(references):
            problem = "got null, which takes all prompts, so that none is left to the references after it"
            yield RecipeError(place("when"), problem, "give it a `when`, or move it to the end")
    if not isinstance(recipe.objective, Own) and references != [ReferenceKeys()] and not recipe.reads_reference:
        problem = f"got {references[0].use!r}, but objective.kl is 0, so that nothing is measured from it"
        remedy = "set objective.kl above 0, or remove reference"
        yield RecipeError(place_of(recipe.reference, 0, "use"), problem, remedy)
    if recipe.watch.kl_to_base is not None and references != [ReferenceKeys()]:
        problem = f"got {recipe.watch.kl_to_base:g}, but with `reference` a divergence is measured from another model"
        yield RecipeError("watch.kl_to_base", problem, "set watch.kl_to_base=null, or remove reference")
    if not recipe.scores_train:
        yield from _without_rewards(recipe)


def _use(recipe: Recipe, reference: ReferenceKeys, place: Callable[[str], str]) -> Iterator[RecipeError]:
    if reference.use == "average" and recipe.train.ema is None:
        problem = "got 'average', but no averaged weights are kept"
        yield RecipeError(place("use"), problem, "set train.ema, such as train.ema=0.9")
    if reference.use == "lora" and recipe.full:
        problem = "got 'lora', but full: true moves the weights that those adapters belong to"
        yield RecipeError(place("use"), problem, "train a lora, or give the reference as a model (use: model)")
    if reference.use == "lora" and (folder := Path(reference.path or "").expanduser()).is_file():
        yield RecipeError(place("path"), f"got {str(folder)!r}, a file", "give the folder that holds the adapters")
    if reference.steps > 1 and not isinstance(recipe.objective, Own) and recipe.objective.loss is not None:
        problem = f"got {reference.steps}, but objective.loss looks at samples that are noised, not at steps"
        yield RecipeError(place("steps"), problem, f"set {place('steps')}=1")
    if reference.pipeline is not None:
        yield from _call(recipe, reference, place)


def _call(recipe: Recipe, reference: ReferenceKeys, place: Callable[[str], str]) -> Iterator[RecipeError]:
    call = reference.pipeline or {}
    model = reference.path if reference.use == "model" and reference.path is not None else recipe.model
    for error in (*check_free(call), *check_values(call, model)):
        yield RecipeError(error.place.replace("pipeline", place("pipeline"), 1), error.problem, error.remedy)


def _without_rewards(recipe: Recipe) -> Iterator[RecipeError]:
    """What is decided by rewards or advantages, where samples of training have none."""
    train = recipe.train
    if not isinstance(recipe.objective, Own) and recipe.objective.loss is not None:
        problem = f"got {show(recipe.objective.loss.kind)}, but every reward is a witness (weight 0)"
        yield RecipeError("objective.loss", problem, "set objective.loss=null, or give one reward a non-zero weight")
    for name, value, off in (
        ("refill", train.refill, 0),
        ("keep", train.keep, None),
        ("drop_silent", train.drop_silent, False),
    ):
        if value != off:
            problem = f"got {show(value)}, which goes by advantages, but every reward is a witness (weight 0)"
            yield RecipeError(f"train.{name}", problem, f"set train.{name}={'null' if off is None else show(off)}")


def check_files(recipe: Recipe) -> None:
    """Raises RecipeError where adapters are not there, of the reference or to go on from, or a package that holds the
    model: a plan does without."""
    if problem := missing_package(recipe.model):
        raise RecipeError("model", *problem)
    begun = None if recipe.lora is None else recipe.lora.begun
    if begun is not None and not any(Path(begun).expanduser().glob("**/*.safetensors")):
        problem = f"got {show(begun)}, where no adapters are (*.safetensors); accepted: default, gaussian or a folder"
        raise RecipeError("lora.init", problem, f"give the folder of a run or of adapters{names.hint(begun, DRAWN)}")
    for number, one in enumerate(recipe.references):
        if one.use == "lora" and not any(Path(one.path or "").expanduser().glob("**/*.safetensors")):
            problem = f"got {show(one.path)}, where no adapters are (*.safetensors); accepted: their folder"
            remedy = "train the run that writes them first, or give another"
            raise RecipeError(place_of(recipe.reference, number, "path"), problem, remedy)


def resolved(recipe: Recipe) -> Recipe:
    """With reference.path and lora.init absolute where they are folders: the recipe means the same from everywhere."""
    if recipe.lora is not None and recipe.lora.begun is not None:
        begun = Path(recipe.lora.begun).expanduser()
        recipe = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"init": str(begun.resolve())})})
    found = [_absolute(one) for one in recipe.references]
    if found == recipe.references:
        return recipe
    return recipe.model_copy(update={"reference": found if isinstance(recipe.reference, list) else found[0]})


def _absolute(reference: ReferenceKeys) -> ReferenceKeys:
    path = reference.path
    if path is None or path in names.MODELS or not (folder := Path(path).expanduser()).is_dir():
        return reference
    return reference.model_copy(update={"path": str(folder.resolve())})
