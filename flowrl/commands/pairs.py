"""`flowrl pairs`: draws samples, ranks them by a recipe's rewards, and writes pairs to train on."""

from pathlib import Path
from typing import Annotated

import typer

from flowrl.commands.common import (
    Overrides,
    PromptsOption,
    RawOption,
    RunArgument,
    StepsOption,
    TrustOption,
    WeightsOption,
    resolve_target,
    silence_libraries,
)
from flowrl.names import UserError
from flowrl.terminal import output_console


def pairs_command(
    target: RunArgument,
    overrides: Overrides = None,
    number: Annotated[int, typer.Option(min=1, help="Pairs to write.")] = 1000,
    group: Annotated[int, typer.Option(min=2, help="Samples per prompt.")] = 8,
    each: Annotated[
        int, typer.Option(min=1, help="Pairs per group: best with worst, second best with second worst, ...")
    ] = 1,
    margin: Annotated[float, typer.Option(min=0.0, help="Smallest difference of the rewards of a pair.")] = 0.0,
    noise: Annotated[
        bool, typer.Option("--noise/--no-noise", help="Keep the noise that each sample was generated from, for PNAPO.")
    ] = True,
    prompts: PromptsOption = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: runs/pairs-RECIPE.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    steps: StepsOption = None,
) -> None:
    """Generate samples, rank them by the recipe's rewards, and write preference pairs with their noise.

    `train.source=files prompts.train=FOLDER/pairs.jsonl` trains on them, and `flowrl train-reward` fits a reward.
    """
    more = ([] if steps is None else [f"eval.steps={steps}"]) + (overrides or [])
    recipe, run = resolve_target(target, more, weights, raw, trust)
    if 2 * each > group:
        raise UserError(f"--each: got {each}, accepted: at most {group // 2}, half of --group; lower it")
    if prompts is None and recipe.train.reads_files:
        raise UserError(f"--prompts: {target} trains on samples from files; name prompts to draw for")
    folder = output or Path("runs") / f"pairs-{Path(target).stem}"
    if (folder / "pairs.jsonl").exists():
        raise UserError(f"--output: {folder} holds pairs already; name another folder")
    silence_libraries()
    from flowrl.build import build_policy, build_scorer, set_up
    from flowrl.preferences.collect import Choice, collect
    from flowrl.reading.inputs import load_prompts
    from flowrl.runs.weights import load_weights

    source = recipe.prompts.train if prompts is None else prompts
    wanted = load_prompts(recipe, source, "train", recipe.prompts.limit)
    set_up(recipe)
    scorer = build_scorer(recipe)
    policy = build_policy(recipe)
    if run is not None:
        load_weights(policy, run, weights, raw)
    choice = Choice(number, group, each, margin, noise)
    with output_console().status("drawing") as status:
        written, drawn = collect(
            recipe, policy, scorer, wanted, choice, folder, seed=seed, tell=lambda n: status.update(f"{n} pairs")
        )
    typer.echo(f"{folder / 'pairs.jsonl'}: {written} pairs of {drawn} samples")
