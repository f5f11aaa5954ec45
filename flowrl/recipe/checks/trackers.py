"""The experiment trackers that a recipe can name, and what must be there for them. TensorBoard is always written."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from flowrl import names
from flowrl.recipe.errors import RecipeError, wrong_value
from flowrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Tracker:
    """A tracker of accelerate's: what it imports, what pip calls it, and which of its arguments names a run."""

    module: str
    package: str
    run_name: str | None


TRACKERS = {
    "wandb": Tracker("wandb", "wandb", "name"),
    "swanlab": Tracker("swanlab", "swanlab", "experiment_name"),
    "mlflow": Tracker("mlflow", "mlflow", "run_name"),
    "trackio": Tracker("trackio", "trackio", "name"),
    "comet_ml": Tracker("comet_ml", "comet_ml", None),
    "clearml": Tracker("clearml", "clearml", "task_name"),
    "dvclive": Tracker("dvclive", "dvclive", "exp_name"),
    "aim": Tracker("aim", "aim", None),
}


def check_trackers(recipe: Recipe) -> Iterator[RecipeError]:
    """What of `track` cannot work here: unknown names, packages that are not installed, arguments of no tracker."""
    track, wanted = recipe.track, recipe.track.wanted
    for name in wanted:
        if names.is_dotted(name):
            try:
                names.find(name, {}, "tracker")
            except names.UserError as error:
                yield RecipeError("track.with", str(error), "name another tracker")
        elif name == "tensorboard":
            yield RecipeError("track.with", "got 'tensorboard', which every run writes", "remove it")
        elif name not in TRACKERS:
            accepted = f"{', '.join(TRACKERS)}, or a dotted path"
            yield wrong_value("track.with", name, accepted, suggestion=names.closest(name, TRACKERS))
        elif importlib.util.find_spec(TRACKERS[name].module) is None:
            remedy = f"pip install {TRACKERS[name].package}, or remove it"
            yield RecipeError("track.with", f"got {name!r}, which is not installed", remedy)
    for name in track.args:
        if name not in wanted:
            meant = names.closest(name, wanted)
            remedy = f"did you mean {meant!r}?" if meant else f"add {name} to track.with, or remove it"
            yield RecipeError(f"track.args.{name}", "these are arguments of no tracker in track.with", remedy)
