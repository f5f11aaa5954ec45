"""`flowrl sample`: samples for a user's own prompts: pictures, videos or sound, or a language model's completions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.commands.common import (
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

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.contracts import Policy, Prompt
    from flowrl.recipe.schema import Recipe


def sample(
    target: RunArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Prompts, and KEY=VALUE overrides."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="SOURCE", help="Prompts from a file or other source.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts of SOURCE.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The PNG to write (default: samples.png), or a file for texts.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples per prompt (default: 4, or 1 text at eval.temperature=0; more are sampled as in training).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    steps: StepsOption = None,
) -> None:
    """Generate samples for your own prompts, one row per prompt; a language model's completions are printed."""
    given = texts or []
    own = [p for p in given if not _is_override(p)]
    overrides = ([] if steps is None else [f"eval.steps={steps}"]) + [p for p in given if _is_override(p)]
    if not own and prompts is None:
        got = f"only overrides ({', '.join(overrides)})" if overrides else "none"
        raise UserError(f"PROMPT: got {got}; give at least one text to draw, or --prompts SOURCE")
    recipe, run = resolve_target(target, overrides, weights, raw, trust)
    recipe, each = _samples_per_prompt(recipe, number)
    silence_libraries()
    from flowrl.contracts import Prompt
    from flowrl.media.pictures import save_grid
    from flowrl.reading.inputs import load_prompts

    wanted = [Prompt(text, text) for text in own]
    wanted += [] if prompts is None else load_prompts(recipe, prompts, "heldout", limit)
    policy = _load_policy(recipe, run, weights, raw)
    with output_console().status("drawing"):
        pictures, completions = _draw(policy, recipe, wanted, each, seed, output or Path("samples.png"))
    if completions:
        owners = [p.text for p in wanted for _ in range(each)]
        lines = [f"{text}  ->  {completion}" for text, completion in zip(owners, completions, strict=True)]
        typer.echo("\n".join(lines))
        if output is not None:
            output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if pictures is None:
        raise UserError(f"{target}: its samples are neither pictures nor texts")
    output = output or Path("samples.png")
    save_grid(pictures, output, columns=each)
    typer.echo(f"{output}: {len(wanted)} x {each} samples")


def _samples_per_prompt(recipe: "Recipe", number: int | None) -> "tuple[Recipe, int]":
    """(the recipe to draw with, samples per prompt). Greedy texts of a prompt are all the same, so one is drawn, or
    several at the training temperature."""
    if recipe.eval.temperature != 0:
        return recipe, 4 if number is None else number
    if number in (None, 1):
        return recipe, 1
    warm = recipe.eval.model_copy(update={"temperature": None})
    return recipe.model_copy(update={"eval": warm}), number


def _load_policy(recipe: "Recipe", run: Path | None, weights: str, raw: bool) -> "Policy":
    from flowrl.build import build_policy, set_up
    from flowrl.runs.weights import load_weights

    set_up(recipe)
    policy = build_policy(recipe)
    if run is not None:
        load_weights(policy, run, weights, raw)
    return policy


def _draw(
    policy: "Policy", recipe: "Recipe", prompts: "list[Prompt]", number: int, seed: int, sounds: Path
) -> "tuple[Tensor | None, list[str]]":
    """(pictures float32 [prompts * number, 3, H, W] in [0, 1] or None, texts), about eval.batch samples at a time.

    Sounds are written as they are drawn, beside the file `sounds`: NAME_000.wav and so on.
    """
    import torch

    from flowrl.core.evaluation import picture_of
    from flowrl.kinds import kind_of
    from flowrl.media.sounds import save_sound
    from flowrl.planning.costs import eval_plan
    from flowrl.runs.ahead import batches_ahead

    pictures: list[Tensor] = []
    texts: list[str] = []
    source = kind_of(recipe).building.evaluated(policy, recipe)
    together = max(1, recipe.eval.batch // number)
    with torch.no_grad(), batches_ahead(recipe, policy, prompts, together):
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            samples = source.rollout(part, group_size=number, plan=eval_plan(recipe), seed=seed).samples
            shown = picture_of(samples)
            pictures += [] if shown is None else [shown.float().cpu()]
            texts += samples.readable()
            for i, sound in enumerate(() if samples.audio is None else samples.audio):
                path = sounds.with_name(f"{sounds.stem}_{start * number + i:03d}.wav")
                save_sound(sound, samples.sample_rate or 1, path)
    return torch.cat(pictures) if pictures else None, texts


def _is_override(text: str) -> bool:
    head, mark, _ = text.partition("=")
    return bool(mark) and head.replace(".", "").replace("_", "").isalnum()
