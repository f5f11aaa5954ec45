"""One run, from a recipe to a folder with metrics, pictures and weights; new or resumed.

    load prompts and rewards --> load the pipeline, add adapters --> restore the newest intact checkpoint, if any
        --> evaluate --> iterations, with evaluations and checkpoints between --> evaluate --> save

Everything that a user can get wrong is checked before the weights are loaded, in that order.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from flowrl.build import add_reference, build_policy, read_inputs, set_up
from flowrl.contracts import ALONE, Ranks
from flowrl.core.ranks import agreed, led
from flowrl.engines.remote import check_engine
from flowrl.learners import build_critic, build_learner, build_values
from flowrl.names import UserError
from flowrl.planning.costs import plan_for
from flowrl.policies.language.proving import telling
from flowrl.recipe.checks.parallel import check_ranks
from flowrl.recipe.checks.reference import check_files
from flowrl.recipe.load import dump
from flowrl.recipe.schema import Recipe
from flowrl.runs import resume as resuming
from flowrl.runs import tracking
from flowrl.runs.console import Console
from flowrl.runs.folder import RunFolder, unused_folder
from flowrl.runs.loop import Run
from flowrl.runs.shares import shared_out, sharing_of
from flowrl.runs.stopping import Stopped, refuse_exit
from flowrl.runs.together import Follower, quiet_console
from flowrl.untyped import JSON

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def run(
    recipe: Recipe, console: Console | None = None, *, resume: Path | None = None, ranks: Ranks = ALONE
) -> dict[str, JSON]:
    """Runs a recipe to its end; returns the contents of summary.json, with the folder under `folder`.

    resume: the folder of a run to resume instead of starting a new one. ranks: those that run it together, each of
    which calls this. Raises UserError, in one line, for any mistake
    in the recipe or its files, and Stopped, with everything saved, after SIGINT or SIGTERM.
    """
    console = console or (Console() if ranks.rank == 0 else quiet_console())
    set_up(recipe)
    if (error := next(check_ranks(recipe, ranks.size), None)) is not None:
        raise error
    check_files(recipe)
    inputs = read_inputs(recipe)
    if ranks.size > 1:
        inputs.scorer.judge.join(ranks.gather, loud=ranks.rank == 0)
    place = resume or Path(led(lambda: str(unused_folder(Path(recipe.output or "runs/run"))), ranks))
    folder = RunFolder(place) if ranks.rank == 0 else Follower(place)
    with contextlib.closing(folder), _disk_errors(folder.path), _record_end(folder), refuse_exit():
        point = resuming.find_resume_point(folder.path, recipe) if resume else resuming.ResumePoint()
        agreed(None, ranks)  # nothing in the folder changes before all have read it
        for line in point.complaints:
            console.note(line)
        if point.summary is not None:
            console.note(f"{folder.path}: all {point.iteration} iterations are done; {_how_to_continue(recipe, point)}")
            return point.summary | {"folder": str(folder.path)}
        resuming.refuse_other_prompts(point, resuming.all_prompts(inputs.train, inputs.by_phase), inputs.heldout)
        if ranks.rank == 0:
            folder.tracking = tracking.start_trackers(recipe, folder.path)
        if point.checkpoint is None:
            _record_start(folder, recipe, point)  # before any other file: without it a folder is taken for another's
            folder.rewind({}, 0, [])
        with console.working(f"loading {recipe.model}"):
            policy = build_policy(recipe)
            add_reference(recipe, policy)
            values = build_values(recipe, policy)
            ranks = shared_out(recipe, policy, values, ranks)
            if sharing_of(ranks) is not None:
                inputs.scorer.judge.join(ranks.gather, loud=ranks.rank == 0)  # what waits for all, as the others do
            policy.prepare(telling(inputs.train), plan_for(recipe, 0))
            check_engine(recipe, policy, inputs.train, ranks)
            agreed(None, ranks)  # behind this a rank's parameters are its own part of them again
            learner = build_learner(recipe, policy)
            critic = build_critic(recipe, values)
            if (sharing := sharing_of(ranks)) is not None:
                sharing.follow(learner.copies)
        console.started(recipe, policy, folder.path)
        work = Run(recipe, inputs, policy, learner, folder, console, critic, ranks)
        if point.checkpoint is not None:
            work.restore(point.checkpoint, changed=bool(point.changed))
            _record_start(folder, recipe, point)  # only once it is known to resume
            console.resumed(point.iteration, recipe.train.iterations, point.changed)
        summary = work.train()
    return summary | {"folder": str(folder.path)}


@contextlib.contextmanager
def _record_end(folder: RunFolder) -> Iterator[None]:
    """Records in the folder how the run ends."""
    try:
        yield
    except BaseException as error:
        how = f"stopped by {error.name}" if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            folder.ended(how[:500])
        raise
    folder.ended("done")


def _how_to_continue(recipe: Recipe, point: resuming.ResumePoint) -> str:
    """How to continue a run that is finished."""
    if back := (point.summary or {}).get("rolled_back"):
        ended = f"the alarm {back['alarm']} ended it with the weights of iteration {back['to']}"
        return f"{ended}; to continue from them, change the recipe, for example with watch.on_hack=warn"
    return f"raise train.iterations{'' if recipe.train.seconds is None else ' or train.seconds'}"


def _record_start(folder: RunFolder, recipe: Recipe, point: resuming.ResumePoint) -> None:
    folder.write("recipe.yaml", dump(recipe))
    folder.begun(point.iteration, point.changed)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns an error of writing to the disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK and not str(error.filename or "").startswith(str(folder)):
            raise
        raise UserError(
            f"output: {folder} cannot be written ({error.strerror}); make room or give access, then use --resume"
        ) from error
