"""`flowrl eval`: scores of a run's weights or of a recipe's model, on any prompts, with any rewards."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flowrl.commands.common import (
    Overrides,
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
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.build import Inputs
    from flowrl.contracts import Policy, Samples
    from flowrl.core.evaluation import Evaluation, Mean
    from flowrl.recipe.schema import Recipe

Results = dict[str, "Evaluation"]  # "rewards", and with --base also "base" and "difference"


def evaluate_command(
    target: RunArgument,
    overrides: Overrides = None,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    prompts: Annotated[str | None, typer.Option(metavar="SOURCE", help="Evaluate on all of these prompts.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]USE", help="Score with this reward instead of the recipe's; may be repeated."),
    ] = None,
    steps: StepsOption = None,
    base: Annotated[bool, typer.Option("--base", help="Also score the untrained model, with the same noise.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Save every sample here.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all results here, as JSON.")] = None,
) -> None:
    """Evaluate a run's weights, or the untrained model of a recipe, on held-out prompts."""
    options = _options_as_overrides(prompts, reward or [], steps) + (overrides or [])
    recipe, run = resolve_target(target, options, weights, raw, trust)
    if recipe.prompts.heldout is None:
        raise UserError("prompts.heldout: got null, but an evaluation needs prompts; give --prompts SOURCE")
    if base and run is None:
        raise UserError(f"--base: {target} is a recipe, whose model is already the base; give a run's folder")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output: {output.parent} is not a folder; name a file in an existing folder")
    silence_libraries()
    from flowrl.kinds import kind_of
    from flowrl.runs.stopping import refuse_exit

    with refuse_exit():
        results = _score_policies(recipe, run, weights, raw, base, save)
    number, how = len(results["rewards"].prompts), kind_of(recipe).planning.eval_words(recipe)
    output_console().print(_table(results, f"{target}: {number} prompts, {how}"))
    if output is not None:
        head: dict[str, JSON] = {"target": target, "weights": weights if run else None, "raw": raw, "sampling": how}
        head |= {
            "steps": kind_of(recipe).sampling(recipe)["steps"],
            "source": recipe.prompts.heldout,
            "seed": recipe.seed,
        }
        output.write_text(json.dumps(head | _json_numbers(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _options_as_overrides(prompts: str | None, rewards: list[str], steps: int | None) -> list[str]:
    """The options as overrides of a recipe, which come before those that the user wrote."""
    overrides = []
    if prompts is not None:
        overrides += [f"prompts.heldout={json.dumps(prompts)}", "eval.prompts=null"]
    if rewards:
        pairs = [
            (name if mark else use.split(".")[-1].split(":")[-1], use)
            for name, mark, use in map(_split_reward, rewards)
        ]
        overrides.append(f"rewards={json.dumps({name: {'use': use} for name, use in pairs})}")
        if len({name for name, _ in pairs}) < len(pairs):
            raise UserError(f"--reward: got a name twice in {', '.join(rewards)}; give each its own name, as NAME=USE")
    if steps is not None:
        overrides.append(f"eval.steps={steps}")
    return overrides


def _split_reward(reward: str) -> tuple[str, str, str]:
    name, mark, use = reward.partition("=")
    return (name, mark, use) if mark else ("", "", name)


def _score_policies(
    recipe: "Recipe", run: Path | None, weights: str, raw: bool, base: bool, save: Path | None
) -> Results:
    """The requested evaluations; the untrained model is scored before the run's weights are loaded."""
    from flowrl.build import Inputs, build_policy, build_scorer, set_up
    from flowrl.core.evaluation import difference
    from flowrl.planning.sizes.calls import check_arguments
    from flowrl.reading.inputs import load_prompts
    from flowrl.runs.weights import load_weights

    set_up(recipe)
    check_arguments(recipe.model, recipe.pipeline)
    heldout = load_prompts(recipe, str(recipe.prompts.heldout), "heldout", recipe.eval.prompts)
    inputs = Inputs([], heldout, build_scorer(recipe))
    comparing = [name for name, reward in inputs.scorer.rewards.items() if reward.groupwise]
    if len(comparing) == len(inputs.scorer.rewards):
        raise UserError(
            f"{', '.join(comparing)}: compares samples of a group, but an evaluation draws one per prompt; "
            "give another --reward"
        )
    policy = build_policy(recipe)
    results: Results = {}
    with output_console().status(f"scoring {len(heldout)} prompts"):
        if base:
            results["base"] = _evaluate(recipe, policy, inputs, save / "base" if save else None)
        if run is not None:
            load_weights(policy, run, weights, raw)
        results["rewards"] = _evaluate(recipe, policy, inputs, save)
    if base:
        results["difference"] = difference(results["rewards"], results["base"])
    return results


def _evaluate(recipe: "Recipe", policy: "Policy", inputs: "Inputs", save: Path | None) -> "Evaluation":
    """An evaluation with the recipe's own noise, whose samples are written to `save` as they are drawn."""
    from flowrl.runs.heldout import evaluate_heldout

    kept = 0

    def score(samples: "Samples") -> "dict[str, Tensor]":
        nonlocal kept
        if save is not None:
            kept = _save_samples(samples, save, kept)
        return inputs.scorer(samples)

    return evaluate_heldout(recipe, policy, inputs.heldout, score)


def _save_samples(samples: "Samples", folder: Path, first: int) -> int:
    """Writes samples as 00000.png (or .txt, and .wav) and so on, in order of the prompts; returns the next number."""
    from flowrl.core.evaluation import picture_of
    from flowrl.media.pictures import save_picture
    from flowrl.media.sounds import save_sound

    pictures, texts = picture_of(samples), samples.readable()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(len(samples)):
            if pictures is not None:
                save_picture(pictures[i], folder / f"{first + i:05d}.png")
            else:
                (folder / f"{first + i:05d}.txt").write_text(texts[i], encoding="utf-8")
            if samples.audio is not None:
                save_sound(samples.audio[i], samples.sample_rate or 1, folder / f"{first + i:05d}.wav")
    except OSError as error:
        raise UserError(f"--save: {folder} cannot be written ({error.strerror}); name another folder") from error
    return first + len(samples)


def _table(results: Results, title: str) -> Table:
    columns = [name for name in ("rewards", "base", "difference") if name in results]
    table = Table(title=escape(title))
    table.add_column("reward")
    for name in columns:
        table.add_column("mean" if name == "rewards" else name, justify="right")
    table.add_column("n", justify="right")
    means, kinds = ({c: f(results[c]) for c in columns} for f in (lambda e: e.means(), lambda e: e.by("kind")))
    for reward, mean in means["rewards"].items():
        table.add_row(reward, *(str(means[c][reward]) for c in columns), str(mean.number))
        for kind, part in kinds["rewards"].get(reward, {}).items():
            table.add_row(escape(f"  {kind}"), *(str(kinds[c][reward][kind]) for c in columns), str(part.number))
    return table


def _json_numbers(results: Results) -> dict[str, JSON]:
    """The JSON results: prompts once; for each evaluation means, means by kind and every score. NaN becomes null."""
    from dataclasses import asdict

    def without_nan(mean: "Mean") -> dict[str, JSON]:
        return {key: value if value == value else None for key, value in asdict(mean).items()}

    out: dict[str, JSON] = {"prompts": results["rewards"].record()["prompts"]}
    for name, evaluation in sorted(results.items(), key=lambda item: item[0] != "rewards"):
        by_kind = {n: {k: without_nan(m) for k, m in kinds.items()} for n, kinds in evaluation.by("kind").items()}
        means = {n: without_nan(m) for n, m in evaluation.means().items()}
        numbers = {"rewards": means, "by_kind": by_kind, "scores": evaluation.record()["scores"]}
        out |= numbers if name == "rewards" else {name: numbers}
    return out
