"""Experiment trackers besides a run's own TensorBoard files, through accelerate's tracker classes.

None is imported, and no data leaves the machine, unless a recipe names it in `track.with`.
"""

import importlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl import names
from flowrl.names import UserError
from flowrl.recipe.changes import flatten
from flowrl.recipe.checks.trackers import TRACKERS
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Tracking:
    """The trackers of a run, by name; there may be none.

    A tracker that fails is dropped with a warning: it must not end the run.
    """

    def __init__(self, trackers: Mapping[str, Any] | None = None):
        self.trackers = dict(trackers or {})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of an iteration; those that are not finite are left out."""
        shown = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._each(lambda _, tracker: tracker.log(shown, step=step))

    def images(self, step: int, name: str, pictures: "Tensor") -> None:
        """Logs pictures float [N, 3, H, W] in [0, 1] under one name, in trackers that can show them."""
        if not self.trackers:
            return
        from flowrl.media.pictures import to_pil

        shown = [to_pil(picture) for picture in pictures]
        self._each(lambda kind, tracker: _show_pictures(kind, tracker, step, name, shown))

    def finish(self) -> None:
        """Flushes and ends the trackers' runs."""
        self._each(lambda _, tracker: tracker.finish())
        self.trackers.clear()

    def _each(self, do: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(name, tracker)
            except Exception as error:
                del self.trackers[name]
                warnings.warn(f"tracker {name!r} failed and is dropped: {_reason(error)}", stacklevel=3)


def start_trackers(recipe: Recipe, folder: Path) -> Tracking:
    """Starts the trackers of `track.with` for the run in `folder`, and logs the recipe to them.

    Raises UserError if one cannot start (not logged in, no server, unknown arguments).
    """
    tracking = Tracking()
    for name in recipe.track.wanted:
        try:
            tracking.trackers[name] = _start_tracker(name, recipe, folder)
        except Exception as error:
            tracking.finish()
            remedy = "set it up (log in, or its offline mode), or remove it from track.with"
            raise UserError(f"track.with: {name!r} could not be started ({_reason(error)}); {remedy}") from error
    return tracking


def _start_tracker(name: str, recipe: Recipe, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    PartialState()  # accelerate's trackers ask it for their process
    make: JSON = names.import_path(name) if names.is_dotted(name) else LOGGER_TYPE_TO_CLASS[name]
    project, args = recipe.track.project, dict(recipe.track.args.get(name, {}))
    run_name = recipe.track.name or folder.name
    if name == "aim":  # it takes the run's name where the others take the project's
        args.setdefault("experiment", project)
        project = run_name
    elif name in TRACKERS and (argument := TRACKERS[name].run_name):
        args.setdefault(argument, run_name)
    place = [str(folder)] if getattr(make, "requires_logging_directory", False) else []
    tracker = make(project, *place, **args)
    if not isinstance(tracker, GeneralTracker):
        raise TypeError(f"it is a {type(tracker).__name__}, accepted: a subclass of accelerate.tracking.GeneralTracker")
    tracker.start()
    if name == "comet_ml":
        tracker.tracker.set_name(run_name)  # pyright: ignore[reportAttributeAccessIssue]
    tracker.store_init_configuration(flat_config(recipe.model_dump()))
    return tracker


def flat_config(values: Mapping[str, JSON]) -> dict[str, JSON]:
    """A recipe as a flat mapping of dotted keys to plain values; lists and empty mappings as JSON."""
    return {key: json.dumps(v) if isinstance(v, list | Mapping) else v for key, v in flatten(values)}


def _show_pictures(kind: str, tracker: Any, step: int, name: str, pictures: "list[Image]") -> None:
    """Logs pictures in a tracker: through accelerate's two interfaces where there is one, else directly."""
    each = {f"{name}/{i:03d}": picture for i, picture in enumerate(pictures)}
    if kind in ("aim", "clearml"):
        tracker.log_images(each, step=step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: pictures}, step=step)
    elif kind == "mlflow":
        mlflow = importlib.import_module("mlflow")
        for key, picture in each.items():
            mlflow.log_image(picture, key=key, step=step, synchronous=True)
    elif kind == "comet_ml":
        for key, picture in each.items():
            tracker.tracker.log_image(picture, name=key, step=step)
    elif kind == "dvclive":
        for key, picture in each.items():
            tracker.tracker.log_image(f"{key}.png", picture)
    elif kind == "trackio":
        trackio = importlib.import_module("trackio")
        tracker.log({key: trackio.Image(picture) for key, picture in each.items()}, step=step)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
