"""`flowrl run`: trains as a recipe says, resumes an earlier run, or prints the plan."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flowrl.commands.common import Overrides, RecipeArgument, silence_before_import, silence_libraries
from flowrl.commands.failures import EXIT_FAILED
from flowrl.commands.ranks import asked_ranks, check_before_launch, is_rank, joined, launched, leads
from flowrl.names import UserError
from flowrl.terminal import output_console

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no weights are loaded.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the newest run in this recipe's output folder.")
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train in N processes on this machine, one per GPU (docs/scale.md)."),
    ] = None,
    seconds_per_forward: Annotated[
        float | None,
        typer.Option(help="With --dry-run: time of one denoiser forward of one row; prints the time of the run."),
    ] = None,
    time_from: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --dry-run: an earlier run; prints the time of the run.")
    ] = None,
) -> None:
    """Train the model of a recipe; `resume=FOLDER` resumes that run."""
    from flowrl.recipe.load import load

    if not dry_run and (seconds_per_forward is not None or time_from is not None):
        raise UserError("--seconds-per-forward and --time-from: apply only with --dry-run; add it, or leave them out")
    resume_folders = [o.removeprefix("resume=") for o in overrides or [] if o.startswith("resume=")]
    checked = load(recipe, [o for o in overrides or [] if not o.startswith("resume=")])
    number = asked_ranks(ranks, checked.parallel.ranks)
    if number is not None and not dry_run and not is_rank():
        check_before_launch(checked, number)
        raise typer.Exit(launched(number, sys.argv[1:]))
    if leads():
        typer.echo(f"{recipe}: the recipe is valid; " + ("working out the plan" if dry_run else "loading"))
    if dry_run:
        if leads():
            _plan(checked, seconds_per_forward, time_from)
        return
    silence_libraries()
    from flowrl.runs.alarm_response import AlarmError
    from flowrl.runs.folder import newest_run
    from flowrl.runs.start import run as run_recipe
    from flowrl.runs.stopping import Stopped

    folder = Path(resume_folders[-1]) if resume_folders else newest_run(Path(checked.output or "")) if resume else None
    if folder is None and resume and leads():
        typer.echo(f"--resume: no run under {checked.output} yet; starting one")
    if folder is not None and not folder.is_dir():
        raise UserError(f"resume: {folder} does not exist; give the folder of a run")
    with joined(checked.parallel.wait) as together:
        try:  # what ends all ranks alike, the first one tells
            run_recipe(checked, resume=folder, ranks=together)
            return
        except Stopped as stop:
            code, line = stop.code, f"stopped by {stop.name}; resume with: flowrl run {recipe} ... --resume"
        except AlarmError as alarm:
            code, line = EXIT_FAILED, f"flowrl: {alarm}"
    if leads():
        typer.echo(line, err=True)
    raise typer.Exit(code)


def _plan(recipe: "Recipe", forward: float | None, earlier: Path | None) -> None:
    """Prints what the recipe will do, what it needs, and how long it takes if a pace is given."""
    from flowrl.planning.duration import assumed_pace, measured_pace, time_text

    if forward is not None and (forward <= 0 or earlier is not None):
        given = f"got {forward:g}" + (" and --time-from" if earlier is not None else "")
        raise UserError(f"--seconds-per-forward: {given}, accepted: a number > 0, or --time-from instead; give one")
    pace = measured_pace(earlier) if earlier is not None else None if forward is None else assumed_pace(recipe, forward)
    silence_before_import()
    from flowrl.planning.dry_run import describe
    from flowrl.planning.sizes.text import describe_sizes
    from flowrl.reading.inputs import overlap, planned_prompts

    train, heldout, missing = planned_prompts(recipe)
    if recipe.environment is not None:
        from flowrl.environments.building import MissingError, build_agent, build_environment

        try:
            (build_environment if recipe.environment.agent is None else build_agent)(recipe.environment)
        except MissingError as error:
            missing = [*missing, str(error)]
    counts = [None if part is None else len(part) for part in (train, heldout)]
    blocks = [describe(recipe, num_train=counts[0], num_heldout=counts[1])]
    blocks += (
        ["\n".join(f"{'missing' if i == 0 else '':<12}{line}" for i, line in enumerate(missing))] if missing else []
    )
    shared = None if train is None or heldout is None else overlap(train, heldout)
    blocks += [] if shared is None else [f"{'overlap':<12}{shared}"]
    blocks += [describe_sizes(recipe, train or [])]
    blocks += [] if pace is None else [time_text(recipe, pace, counts[1])]
    output_console(soft_wrap=True).print(escape("\n\n".join(blocks)))
