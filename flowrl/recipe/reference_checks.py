"""Does what a recipe says of its reference fit the rest? Everything that can be known before a weight is loaded."""

from collections.abc import Iterator
from pathlib import Path

from flowrl import names
from flowrl.recipe.calls import check_free, check_values
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.lora import DRAWN
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def check_reference(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `reference` that cannot work, and what needs a reward where none counts."""
    reference = recipe.reference
    if (reference.path is not None) != (reference.use in ("lora", "model")):
        accepted = "null" if reference.path is not None else "a path"
        problem = f"got {show(reference.path)}, accepted with reference.use={reference.use}: {accepted}"
        yield RecipeError("reference.path", problem, "give a path with use: lora or use: model, and with them alone")
    elif reference != type(reference)():
        yield from _use(recipe)
    if not recipe.scores_train:
        yield from _without_rewards(recipe)


def _use(recipe: Recipe) -> Iterator[RecipeError]:
    reference, place = recipe.reference, "reference.use"
    if not isinstance(recipe.objective, Own) and not recipe.reads_reference:
        problem = f"got {reference.use!r}, but objective.kl is 0, so that nothing is measured from it"
        yield RecipeError(place, problem, "set objective.kl above 0, or remove reference")
    if reference.use == "average" and recipe.train.ema is None:
        problem = "got 'average', but no averaged weights are kept"
        yield RecipeError(place, problem, "set train.ema, such as train.ema=0.9")
    if reference.use == "lora" and recipe.full:
        problem = "got 'lora', but full: true moves the weights that those adapters belong to"
        yield RecipeError(place, problem, "train a lora, or give the reference as a model (use: model)")
    if reference.use == "lora" and (folder := Path(reference.path or "").expanduser()).is_file():
        yield RecipeError("reference.path", f"got {str(folder)!r}, a file", "give the folder that holds the adapters")
    if recipe.watch.kl_to_base is not None:
        problem = f"got {recipe.watch.kl_to_base:g}, but with `reference` a divergence is measured from another model"
        yield RecipeError("watch.kl_to_base", problem, "set watch.kl_to_base=null, or remove reference")
    if reference.pipeline is not None:
        yield from _call(recipe)


def _call(recipe: Recipe) -> Iterator[RecipeError]:
    reference = recipe.reference
    call = reference.pipeline or {}
    model = reference.path if reference.use == "model" and reference.path is not None else recipe.model
    for error in (*check_free(call), *check_values(call, model)):
        place = error.place.replace("pipeline", "reference.pipeline", 1)
        yield RecipeError(place, error.problem, error.remedy)


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
    """Raises RecipeError where adapters are not there, of the reference or to go on from: a plan does without."""
    reference, begun = recipe.reference, None if recipe.lora is None else recipe.lora.begun
    if begun is not None and not any(Path(begun).expanduser().glob("**/*.safetensors")):
        problem = f"got {show(begun)}, where no adapters are (*.safetensors); accepted: default, gaussian or a folder"
        raise RecipeError("lora.init", problem, f"give the folder of a run or of adapters{names.hint(begun, DRAWN)}")
    if reference.use == "lora" and not any(Path(reference.path or "").expanduser().glob("**/*.safetensors")):
        problem = f"got {show(reference.path)}, where no adapters are (*.safetensors)"
        raise RecipeError("reference.path", problem, "train the run that writes them first, or give their folder")


def resolved(recipe: Recipe) -> Recipe:
    """With reference.path and lora.init absolute where they are folders: the recipe means the same from everywhere."""
    if recipe.lora is not None and recipe.lora.begun is not None:
        begun = Path(recipe.lora.begun).expanduser()
        recipe = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"init": str(begun.resolve())})})
    path = recipe.reference.path
    if path is None or path in names.MODELS or not (folder := Path(path).expanduser()).is_dir():
        return recipe
    reference = recipe.reference.model_copy(update={"path": str(folder.resolve())})
    return recipe.model_copy(update={"reference": reference})
