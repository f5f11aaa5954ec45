"""Whether terms beside an objective, and a store of samples, go with the rest of a recipe."""

from collections.abc import Iterator
from pathlib import Path

from flowrl.kinds import kind_of
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.schema import Recipe


def check_terms(recipe: Recipe) -> Iterator[RecipeError]:
    """Terms beside an objective that cannot be there. Those of tokens: check_token_objective."""
    objective = recipe.objective
    for name in ("right", "expert", "pairs"):
        if getattr(objective, name, None) is None:
            continue
        given = getattr(objective, name)
        place, off = f"objective.{name}", f"set objective.{name}=null"
        if not kind_of(recipe).texts:
            yield RecipeError(place, "got a mapping, a likelihood of tokens, but here are denoising steps", off)
        elif objective.loss is not None:
            yield RecipeError(place, "got a mapping, but objective.loss stands in the place of the objective", off)
        elif name != "right" and (given.source is None or not Path(given.source).expanduser().is_file()):
            problem = "missing" if given.source is None else f"got {show(given.source)}, where no file is"
            columns = "prompt and completion" if name == "expert" else "prompt, chosen and rejected"
            yield RecipeError(f"{place}.source", problem, f"give a .jsonl file with {columns}")
        elif name == "right" and not recipe.scores_train:
            yield RecipeError(place, "got a mapping, but no reward is computed here that could say what is right", off)


def check_drawn_anew(recipe: Recipe) -> Iterator[RecipeError]:
    """Samples that are drawn anew from what was drawn, and more prompts than are trained, where neither can be."""
    train, objective = recipe.train, recipe.objective
    clashes = {
        "objective.loss": getattr(objective, "loss", None) is not None,
        "sampler.tree": recipe.sampler.tree is not None,
        "train.source": train.source != "rollouts",
        "train.store": train.store is not None,
    }
    if train.resample is not None and (place := next((name for name, clash in clashes.items() if clash), None)):
        problem = f"got a mapping, but rows that count more than once do not go with {place} as it is"
        yield RecipeError("train.resample", problem, f"set train.resample=null, or change {place}")
    clashes = {
        "the model, whose walks are planned for so many prompts": not kind_of(recipe).texts,
        "train.refill": bool(train.refill),
        "train.budget": train.budget is not None,
        "train.source": train.source != "rollouts",
        "train.store": train.store is not None,
    }
    if train.expand is not None and (place := next((name for name, clash in clashes.items() if clash), None)):
        problem = f"got a mapping, but further prompts are not drawn beside {place}"
        yield RecipeError("train.expand", problem, f"set train.expand=null, or change {place}")


def check_store(recipe: Recipe) -> Iterator[RecipeError]:
    """A store of samples where there is nothing that it could hold."""
    if recipe.train.store is None:
        return
    clashes = {
        "the model": not kind_of(recipe).texts,
        "train.refill": bool(recipe.train.refill),
        "train.budget": recipe.train.budget is not None,
        "train.source": recipe.train.source != "rollouts",
        "objective.loss": recipe.objective.loss is not None,
        "objective.correction": recipe.objective.correction is not None,
        "advantage.credit": recipe.advantage.credit.kind != "broadcast",
        "objective.entropy_share": recipe.objective.entropy_share is not None,
    }
    if place := next((place for place, clash in clashes.items() if clash), None):
        problem = (
            f"got a mapping, but the store holds completions as one rollout drew them, and not with {place} as it is"
        )
        yield RecipeError("train.store", problem, f"set train.store=null, or change {place}")
