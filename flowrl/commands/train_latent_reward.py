"""`flowrl train-latent-reward`: fits a reward of noisy latents, by which `sampler.guide` steers samples."""

from pathlib import Path
from typing import Annotated, cast

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


def train_latent_reward_command(
    target: RunArgument,
    overrides: Overrides = None,
    number: Annotated[int, typer.Option(min=16, help="Number of prompts.")] = 500,
    group: Annotated[int, typer.Option(min=2, help="Samples per prompt.")] = 8,
    levels: Annotated[int, typer.Option(min=1, help="Noise levels per sample.")] = 6,
    prompts: PromptsOption = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: runs/latent-reward-RECIPE.")] = None,
    heldout: Annotated[float, typer.Option(min=0.05, max=0.4, help="Share of held-out prompts.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise, levels, prompts and held-out prompts.")] = 0,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    steps: StepsOption = None,
) -> None:
    """Generate samples, score them by the recipe's rewards, and fit a reward of noisy latents, for sampler.guide.

    Says how well it orders pairs of held-out prompts; `sampler.guide.path=FOLDER` then steers eval and sample.
    """
    more = ([] if steps is None else [f"eval.steps={steps}"]) + (overrides or [])
    recipe, run = resolve_target(target, more, weights, raw, trust)
    folder = output or Path("runs") / f"latent-reward-{Path(target).stem}"
    if (folder / "card.json").exists():
        raise UserError(f"--output: {folder} holds a reward already; name another folder")
    silence_libraries()
    from flowrl.kinds import kind_of

    if kind_of(recipe).texts:
        raise UserError(f"{target}: a language model has no noisy latents; accepted: a recipe of a diffusers pipeline")
    if not recipe.scores_train:
        raise UserError(
            f"{target}: every reward is a witness; give one a non-zero weight, to which the reward is fitted"
        )
    import random

    from flowrl.build import build_policy, build_scorer, set_up
    from flowrl.policies.pipelines.policy import PipelinePolicy
    from flowrl.preferences.latent import Shape, collect, fit, write
    from flowrl.reading.inputs import load_prompts
    from flowrl.runs.weights import load_weights

    wanted = load_prompts(recipe, prompts or recipe.prompts.train, "train", recipe.prompts.limit)
    random.Random(seed).shuffle(wanted)
    wanted = wanted[:number]
    set_up(recipe)
    scorer, policy = build_scorer(recipe), cast(PipelinePolicy, build_policy(recipe))
    if run is not None:
        load_weights(policy, run, weights, raw)
    with output_console().status("drawing") as status:
        groups, blocks = collect(
            recipe,
            policy,
            scorer,
            wanted,
            Shape(group, levels),
            seed=seed,
            tell=lambda samples: status.update(f"{samples} samples looked at"),
        )
        reward, result = fit(groups, heldout=heldout, seed=seed)
    trained = {name: spec.weight for name, spec in recipe.rewards.items() if spec.weight}
    told = {"model": recipe.model, "target": target, "rewards": trained, "call": recipe.pipeline, "seed": seed}
    write(reward, result, folder, blocks, told)
    parts = ", ".join(f"{share:.3f} at {bounds}" for bounds, share in result.by_level.items())
    typer.echo(f"{result.pairs} pairs fitted; of {result.heldout} held out it orders {result.accuracy:.3f} ({parts})")
    typer.echo(f"sampler: {{guide: {{path: {folder}, weight: 1.0}}}}")
