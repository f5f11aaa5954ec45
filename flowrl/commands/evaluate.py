"""`flowrl eval`: scores of a run's weights or of a recipe's model, on any prompts with any rewards."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    quiet,
    target_of,
)
from flowrl.names import UserError
from flowrl.terminal import output_console

if TYPE_CHECKING:
    from flowrl.core.evaluation import Evaluation
    from flowrl.recipe.schema import Recipe

Results = dict[str, "Evaluation"]  # "rewards", and with --base also "base" and "difference"


def evaluate_command(
    target: RunArgument,
    overrides: Overrides = None,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    prompts: Annotated[str | None, typer.Option(metavar="SOURCE", help="Other prompts, all of them.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]USE", help="Score with this, not the recipe's; repeatable."),
    ] = None,
    steps: StepsOption = None,
    base: Annotated[bool, typer.Option("--base", help="Also score the untrained model, at equal noise.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep every sample here.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all numbers here, as JSON.")] = None,
) -> None:
    """Score held-out prompts, by the ODE or at eval.temperature: a run's weights, or a recipe's model as it is."""
    asked = _asked(prompts, reward or [], steps) + (overrides or [])
    recipe, run = target_of(target, asked, weights, raw, trust)
    if recipe.prompts.heldout is None:
        raise UserError("prompts.heldout: null, but an evaluation needs prompts; give --prompts SOURCE")
    if base and run is None:
        raise UserError(f"--base: {target} is a recipe, whose model is the base itself; give a run's folder")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output: {output.parent} is no folder; name a file in one that is there")
    quiet()
    from flowrl.kinds import kind_of
    from flowrl.runs.stopping import staying

    with staying():
        results = _score(recipe, run, weights, raw, base, save)
    number, how = len(results["rewards"].prompts), kind_of(recipe).planning.eval_words(recipe)
    output_console().print(_table(results, f"{target}: {number} prompts, {how}"))
    if output is not None:
        head: dict[str, Any] = {"target": target, "weights": weights if run else None, "raw": raw, "sampling": how}
        head |= {
            "steps": kind_of(recipe).sampling(recipe)["steps"],
            "source": recipe.prompts.heldout,
            "seed": recipe.seed,
        }
        output.write_text(json.dumps(head | _numbers(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _asked(prompts: str | None, rewards: list[str], steps: int | None) -> list[str]:
    """The options as overrides of a recipe, to stand before those that the user wrote."""
    asked = []
    if prompts is not None:
        asked += [f"prompts.heldout={json.dumps(prompts)}", "eval.prompts=null"]
    if rewards:
        pairs = [(name if mark else use.split(".")[-1].split(":")[-1], use) for name, mark, use in map(_split, rewards)]
        asked.append(f"rewards={json.dumps({name: {'use': use} for name, use in pairs})}")
        if len({name for name, _ in pairs}) < len(pairs):
            raise UserError(f"--reward: got a name twice in {', '.join(rewards)}; name them apart, as NAME=USE")
    if steps is not None:
        asked.append(f"eval.steps={steps}")
    return asked


def _split(reward: str) -> tuple[str, str, str]:
    name, mark, use = reward.partition("=")
    return (name, mark, use) if mark else ("", "", name)


def _score(recipe: "Recipe", run: Path | None, weights: str, raw: bool, base: bool, save: Path | None) -> Results:
    """The evaluations that were asked for; the untrained model is scored before the weights are loaded over it."""
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
            f"{', '.join(comparing)}: compares samples of a group, but an evaluation draws one a prompt; "
            "name another --reward"
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


def _evaluate(recipe: "Recipe", policy: Any, inputs: Any, save: Path | None) -> "Evaluation":
    """An evaluation on the recipe's own noise, whose samples are kept in `save` as they are drawn."""
    from flowrl.runs.heldout import evaluate_heldout

    kept = 0

    def score(samples: Any) -> Any:
        nonlocal kept
        if save is not None:
            kept = _keep(samples, save, kept)
        return inputs.scorer(samples)

    return evaluate_heldout(recipe, policy, inputs.heldout, score)


def _keep(samples: Any, folder: Path, first: int) -> int:
    """Writes samples as 00000.png (or .txt, and .wav) and so on, in the order of the prompts; the next one's number."""
    from flowrl.core.evaluation import picture_of
    from flowrl.media.pictures import save_picture
    from flowrl.media.sounds import save_sound

    pictures = picture_of(samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(len(samples)):
            if pictures is not None:
                save_picture(pictures[i], folder / f"{first + i:05d}.png")
            else:
                (folder / f"{first + i:05d}.txt").write_text(samples.texts[i], encoding="utf-8")
            if samples.audio is not None:
                save_sound(samples.audio[i], samples.sample_rate, folder / f"{first + i:05d}.wav")
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


def _numbers(results: Results) -> dict[str, Any]:
    """What the JSON says: prompts once; means, means by kind and every score of each evaluation. NaN is null."""
    from dataclasses import asdict

    def clean(mean: Any) -> dict[str, Any]:
        return {key: value if value == value else None for key, value in asdict(mean).items()}

    out: dict[str, Any] = {"prompts": results["rewards"].record()["prompts"]}
    for name, found in sorted(results.items(), key=lambda item: item[0] != "rewards"):
        by_kind = {n: {k: clean(m) for k, m in kinds.items()} for n, kinds in found.by("kind").items()}
        means = {n: clean(m) for n, m in found.means().items()}
        of_one = {"rewards": means, "by_kind": by_kind, "scores": found.record()["scores"]}
        out |= of_one if name == "rewards" else {name: of_one}
    return out
