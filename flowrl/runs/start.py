"""One run, from a recipe to a folder with metrics, pictures and weights; begun anew or gone on with.

    load prompts and rewards --> load the pipeline, add adapters --> restore the newest whole checkpoint, if any
        --> evaluate --> iterations, with evaluations and checkpoints between --> evaluate --> save

Everything that a user can get wrong is looked at before the weights are loaded, in that order.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowrl.build import build_learner, build_policy, read_inputs, set_up
from flowrl.names import UserError
from flowrl.planning.costs import plan_for
from flowrl.recipe.load import dump
from flowrl.recipe.schema import Recipe
from flowrl.runs import resume as resuming
from flowrl.runs import tracking
from flowrl.runs.console import Console
from flowrl.runs.folder import RunFolder, fresh
from flowrl.runs.loop import Run
from flowrl.runs.stopping import Stopped, staying

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def run(recipe: Recipe, console: Console | None = None, *, resume: Path | None = None) -> dict[str, Any]:
    """Runs a recipe to its end; returns what summary.json says, with the folder under `folder`.

    resume: the folder of a run to go on with instead of beginning one. Raises UserError, in one line, for anything
    that the recipe or its files get wrong, and Stopped, with everything saved, after SIGINT or SIGTERM.
    """
    console = console or Console()
    set_up(recipe)
    inputs = read_inputs(recipe)
    folder = RunFolder(resume or fresh(Path(recipe.output or "runs/run")))
    with contextlib.closing(folder), _disk(folder.path), _told(folder), staying():
        point = resuming.find(folder.path, recipe) if resume else resuming.Point()
        for line in point.complaints:
            console.note(line)
        if point.summary is not None:
            console.note(f"{folder.path}: all is done, {point.iteration} iterations; {_more(recipe, point)}")
            return point.summary | {"folder": str(folder.path)}
        resuming.refuse_others(point, inputs.train, inputs.heldout)
        folder.tracking = tracking.start(recipe, folder.path)
        if point.checkpoint is None:
            folder.rewind({}, 0, [])
            _begin(folder, recipe, point)
        with console.working(f"loading {recipe.model}"):
            policy = build_policy(recipe)
            policy.prepare(inputs.train[0], plan_for(recipe, 0))
            learner = build_learner(recipe, policy)
        console.started(recipe, policy, folder.path)
        under_way = Run(recipe, inputs, policy, learner, folder, console)
        if point.checkpoint is not None:
            under_way.restore(point.checkpoint, changed=bool(point.changed))
            _begin(folder, recipe, point)  # not before it is known to go on
            console.resumed(point.iteration, recipe.train.iterations, point.changed)
        summary = under_way.train()
    return summary | {"folder": str(folder.path)}


@contextlib.contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    """Within, a run ends in some way, which its folder is told."""
    try:
        yield
    except BaseException as error:
        how = f"stopped by {error.name}" if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            folder.ended(how[:500])
        raise
    folder.ended("done")


def _more(recipe: Recipe, point: resuming.Point) -> str:
    """How to go on with a run that is over."""
    if back := (point.summary or {}).get("rolled_back"):
        ended = f"the alarm {back['alarm']} ended it with the weights of iteration {back['to']}"
        return f"{ended}; to go on from them, change the recipe, such as watch.on_hack=warn"
    return f"raise train.iterations{'' if recipe.train.seconds is None else ' or train.seconds'}"


def _begin(folder: RunFolder, recipe: Recipe, point: resuming.Point) -> None:
    folder.write("recipe.yaml", dump(recipe))
    folder.begun(point.iteration, point.changed)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Within, a disk that cannot be written is one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK and not str(error.filename or "").startswith(str(folder)):
            raise
        raise UserError(
            f"output: {folder} cannot be written ({error.strerror}); make room or give access, then go on with --resume"
        ) from error
