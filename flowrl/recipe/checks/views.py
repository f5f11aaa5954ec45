"""Which views a recipe draws and scores under, and what does not go with them."""

import re
from collections.abc import Iterator, Sequence

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.keys.views import CHANGED, READS
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.models import reads_media
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own

# what does not go with a view, and why: where samples are drawn beside it, where every row is looked at once more, and
# where a loss looks at texts again
WHY_DRAWN = {
    "generation.tree": "rows of a tree share their first tokens, and so the pictures beside which they were drawn",
    "generation.again": "what it draws anew, once samples have scores, is drawn beside the pictures as they are",
    "generation.partial": "weights that did not draw the begin of a completion would score it beside clean pictures",
    "roles": "what is said beside a changed picture would be answered beside the picture as it is",
    "rollout.engine": "a server is given the files of the prompts",
    "train.budget": "the further samples that it gives a prompt are outside of the group that a view draws a part of",
    "train.source": "samples of files are not drawn",
    "advantage.credit": "statistics of optimal_token are kept of rows that are drawn all alike",
    "environment.agent": "an agent writes its own prompts, and those have no pictures",
}


WHY_SECOND = {
    "train.store": "stored samples are kept without the changed pictures",
    "train.source": "samples of files are looked at once",
    "environment.agent": WHY_DRAWN["environment.agent"],
}


WHY_PAIRED = dict.fromkeys(
    [*(place for place in WHY_DRAWN if place not in ("train.source", "advantage.credit")), "train.store"],
    "the loss looks at texts of files, which nothing draws",
)


OF_ALL = ("draws", "scored", "beside", "each", "required")


def scored_view(recipe: Recipe) -> str | None:
    """The name of the view that a second look is under; None without one."""
    perception = None if isinstance(recipe.objective, Own) else recipe.objective.perception
    return None if perception is None else perception.view


def drawing_view(recipe: Recipe, what: str) -> str | None:
    """The name of the view that has `what`, draws or beside; None without one."""
    return next((name for name, view in recipe.views.items() if getattr(view, what)), None)


def paired_view(recipe: Recipe) -> str | None:
    """The name of the view beside which a loss of texts looks at some of them again; None without one."""
    loss = None if isinstance(recipe.objective, Own) else recipe.objective.loss
    return None if loss is None else loss.view


def looks(recipe: Recipe) -> bool:
    """Whether samples are drawn, or looked at, under a view."""
    return any((scored_view(recipe), drawing_view(recipe, "draws"), drawing_view(recipe, "beside")))


def unshown(recipe: Recipe, shown: Sequence[set[str]]) -> str | None:
    """Why the views cannot be made of training prompts that show these kinds of media; None if they can."""
    for name, view in recipe.views.items():
        fitting = [bool(kinds & set(CHANGED[view.kind])) for kinds in shown]
        what = "a video" if view.kind == "shuffle_frames" else "a picture or a video"
        if not any(fitting):
            problem = f"no training prompt shows {what} that {view.kind!r} could change"
            return f"views.{name}: {problem}; give prompts that do, or remove the view"
        if view.required and not all(fitting):
            problem = f"training prompt {fitting.index(False) + 1} of {len(shown)} does not show {what}"
            return f"views.{name}: {problem}; set views.{name}.required=false to pass over such prompts"
    return None


def check_views(recipe: Recipe, generation: GenerationKeys) -> Iterator[RecipeError]:
    """Views that nothing uses, that cannot be made, or do not go with how completions are drawn."""
    yield from _named(recipe)
    if not recipe.views:
        return
    if reads_media(recipe.model) is False:
        problem = f"got {', '.join(recipe.views)}, but {recipe.model!r} reads text alone"
        yield RecipeError("views", problem, "remove views, or give a vision-language model")
    for name, view in recipe.views.items():
        place = f"views.{name}"
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            accepted = "letters, digits and _, beginning with a letter"
            yield RecipeError(place, f"got the name {name!r}, accepted: {accepted}", "rename it")
        yield from check_keys(place, view, view.kind, dict.fromkeys((*READS[view.kind], *OF_ALL), False))
        if view.draws >= recipe.train.group:
            problem = f"got {view.draws}, accepted: below train.group = {recipe.train.group}"
            yield RecipeError(f"{place}.draws", problem, "lower it, or raise train.group")
        if view.scored == "drawn" and not view.draws:
            problem = "got 'drawn', but nothing is drawn under the view"
            yield RecipeError(f"{place}.scored", problem, f"set {place}.draws, or {place}.scored=clean")
        if not view.draws and not view.beside and name not in (scored_view(recipe), paired_view(recipe)):
            remedy = f"set {place}.draws, {place}.beside or objective.perception.view={name}, or remove it"
            yield RecipeError(place, "nothing is drawn or looked at under it", remedy)
    for what in ("draws", "beside"):
        several = [name for name, view in recipe.views.items() if getattr(view, what)]
        if len(several) > 1:
            problem = f"given beside that of views.{several[0]}, but one view has {what}"
            yield RecipeError(f"views.{several[1]}.{what}", problem, f"set views.{several[1]}.{what}=0")
    yield from _clashes(recipe, generation)


def _named(recipe: Recipe) -> Iterator[RecipeError]:
    """Views that something asks for and that are not there, and samples beside a group that nothing reads."""
    for place, name in (("perception", scored_view(recipe)), ("loss", paired_view(recipe))):
        if name is not None and name not in recipe.views:
            problem = f"got {name!r}, accepted: a name in views ({', '.join(recipe.views) or 'none is there'})"
            yield RecipeError(f"objective.{place}.view", problem, f"set views.{name}")
    besides, compared = drawing_view(recipe, "beside"), [n for n, spec in recipe.rewards.items() if spec.contrast]
    if besides is None and compared:
        problem = "got a mapping, but no view draws samples beside a group that it could be compared with"
        yield RecipeError(f"rewards.{compared[0]}.contrast", problem, "set views.NAME.beside, or remove contrast")
    if besides is not None and not compared:
        remedy = f"set rewards.{next(iter(recipe.rewards))}.contrast={{}}, or views.{besides}.beside=0"
        yield RecipeError(f"views.{besides}.beside", "no reward is compared with the samples that it draws", remedy)


def _clashes(recipe: Recipe, generation: GenerationKeys) -> Iterator[RecipeError]:
    """Other ways to draw, or to look at, completions that do not go with what a view is for."""
    environment = recipe.environment
    given = {f"generation.{n}": getattr(generation, n) is not None for n in ("tree", "again", "partial")} | {
        "roles": recipe.roles is not None,
        "rollout.engine": recipe.rollout.engine is not None,
        "train.budget": recipe.train.budget is not None,
        "train.store": recipe.train.store is not None,
        "train.source": recipe.train.source != "rollouts",
        "advantage.credit": recipe.advantage.credit.kind == "optimal_token",
        "environment.agent": environment is not None and environment.agent is not None,
    }
    drawn = drawing_view(recipe, "draws") or drawing_view(recipe, "beside")
    uses = ((drawn, WHY_DRAWN), (scored_view(recipe), WHY_SECOND), (paired_view(recipe), WHY_PAIRED))
    for name, reasons in uses:
        place = next((place for place in reasons if given[place]), None)
        if name is not None and place is not None:
            yield RecipeError(f"views.{name}", f"given beside {place}, but {reasons[place]}", f"leave out {place}")
            return
    if scored_view(recipe) is not None and recipe.objective.loss is not None:
        problem = "got a mapping, but objective.loss stands in the place of the objective"
        yield RecipeError("objective.perception", problem, "set objective.perception=null")


def refuse_views(recipe: Recipe) -> Iterator[RecipeError]:
    """Views, and what reads them, where the model is no language model."""
    for place, given in (
        ("views", bool(recipe.views)),
        ("objective.perception", scored_view(recipe) is not None),
    ):
        if given:
            problem = "given, but views are of pictures that a language model reads"
            yield RecipeError(place, problem, f"remove {place}, or set generation")
    for name, spec in recipe.rewards.items():
        if spec.contrast is not None:
            problem = "got a mapping, but only views of a language model draw samples beside a group"
            yield RecipeError(f"rewards.{name}.contrast", problem, f"remove rewards.{name}.contrast")
