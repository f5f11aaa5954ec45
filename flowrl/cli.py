"""The command line: `flowrl run | eval | sample | list | world`.

Commands import what they need when they run: a mistake in a recipe is answered before torch is loaded.
"""

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowrl import __version__, names
from flowrl.names import UserError

app = typer.Typer(
    help="Align image and video generators with reinforcement learning, from a laptop CPU to many GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
world = typer.Typer(help="The embedded worlds: tiny models that are made and checked here.", no_args_is_help=True)
app.add_typer(world, name="world")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the short name of one that ships.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="A run's folder, a recipe file, or its name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe values, such as train.lr=1e-4.")
]


class Kind(str, Enum):
    """What `flowrl list` can list."""

    models = "models"
    samplers = "samplers"
    rewards = "rewards"
    recipes = "recipes"


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no weights are loaded.")] = False,
) -> None:
    """Train as a recipe says."""
    from flowrl.recipe.load import load

    checked = load(recipe, overrides or [])
    if dry_run:
        from flowrl.planning import describe
        from flowrl.run import read_prompts

        train, heldout = read_prompts(checked)
        text = describe(checked, num_train=len(train), num_heldout=len(heldout))
        Console(highlight=False, soft_wrap=True).print(escape(text))
        return
    _quiet()
    from flowrl.run import run as run_recipe

    run_recipe(checked)


@app.command("eval")
def evaluate_command(
    target: RunArgument,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers here, as JSON.")] = None,
) -> None:
    """Score held-out prompts by the ODE: a run's weights, or a recipe's model as it is."""
    checked, weights = _target(target, overrides or [])
    if checked.prompts.heldout is None:
        raise UserError("prompts.heldout: null, but an evaluation needs prompts; set prompts.heldout=FILE")
    _quiet()
    from dataclasses import asdict

    from flowrl.planning import eval_plan
    from flowrl.run import build_policy, evaluate_heldout, read_inputs, set_up

    set_up(checked)
    inputs = read_inputs(checked)
    policy = build_policy(checked, weights)
    with Console().status(f"evaluating {len(inputs.heldout)} held-out prompts"):
        result = evaluate_heldout(checked, policy, inputs)
    kinds = result.by("kind")
    table = Table(title=f"{target}: {len(inputs.heldout)} held-out prompts, {eval_plan(checked).num_steps} ODE steps")
    table.add_column("reward")
    table.add_column("mean", justify="right")
    for name, mean in result.means().items():
        table.add_row(name, str(mean))
        for kind, part in kinds.get(name, {}).items():
            table.add_row(f"  {kind}", f"{part} (n = {part.number})")
    Console().print(table)
    if output is not None:
        numbers = {name: asdict(m) for name, m in result.means().items()}
        by_kind = {name: {kind: asdict(m) for kind, m in parts.items()} for name, parts in kinds.items()}
        output.write_text(json.dumps({"target": target, "rewards": numbers, "by_kind": by_kind}, indent=2) + "\n")


@app.command()
def sample(
    target: RunArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw, and KEY=VALUE overrides.")],
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    number: Annotated[int, typer.Option(min=1, help="Samples a prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Names the noise.")] = 0,
) -> None:
    """Draw samples of your own prompts, a row each."""
    texts = [p for p in prompts if not _is_override(p)]
    if not texts:
        raise UserError(f"PROMPT: got only overrides ({', '.join(prompts)}); give at least one text to draw")
    checked, weights = _target(target, [p for p in prompts if _is_override(p)])
    _quiet()
    import torch

    from flowrl.contracts import Prompt
    from flowrl.evaluate import still
    from flowrl.pictures import save_grid
    from flowrl.planning import eval_plan
    from flowrl.run import build_policy, set_up

    set_up(checked)
    policy = build_policy(checked, weights)
    wanted = [Prompt(text, text) for text in texts]
    with torch.no_grad(), Console().status("drawing"):
        rollout = policy.rollout(wanted, group_size=number, plan=eval_plan(checked), seed=seed)
    pictures = still(rollout.samples)
    if pictures is None:
        raise UserError(f"{target}: its samples are not pictures")
    save_grid(pictures, output, columns=number)
    typer.echo(f"{output}: {len(texts)} x {number} samples")


@app.command("list")
def list_command(
    what: Annotated[Kind | None, typer.Argument(help="Which of them; all where none is named.")] = None,
) -> None:
    """List models, samplers, rewards and recipes that ship."""
    tables = {
        Kind.models: [(name, str(path)) for name, path in names.MODELS.items()]
        + [("owner/name", "any diffusers flow-matching pipeline on the hub"), ("FOLDER", "the same, on disk")],
        Kind.samplers: [(name, entry.summary) for name, entry in names.steps().items()],
        Kind.rewards: [(name, entry.summary) for name, entry in names.rewards().items()],
        Kind.recipes: [(name, _headline(path)) for name, path in names.recipes().items()],
    }
    for kind in [what] if what else list(Kind):
        table = Table(title=kind.value, title_justify="left", show_header=False, box=None)
        for row in tables[kind]:
            table.add_row(*map(escape, row))
        Console().print(table)


@world.command("build")
def build_world(
    name: Annotated[str, typer.Argument(help="Which world; there is `shapes`.")],
    output: Annotated[Path, typer.Option(help="Folder for the pipeline; called again, it goes on.")] = Path(
        "shapes-flux"
    ),
    vae_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the autoencoder.")] = None,
    flow_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the flow model, in one cycle.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints when done.")] = False,
) -> None:
    """Pretrain a world's model from nothing but seeds (shapes: about an hour on 2 cores); resumable."""
    if name != "shapes":
        raise UserError(f"world: got {name!r}, accepted: shapes{names.hint(name, ['shapes'])}")
    _quiet()
    from flowrl.worlds.shapes.build import FLOW_CYCLES, VAE_STEPS, build

    cycles = FLOW_CYCLES if flow_steps is None else ((flow_steps, 0.25),)
    accuracy = build(output, vae_steps=vae_steps or VAE_STEPS, flow_cycles=cycles, keep=keep)
    typer.echo(f"{output}: held-out {accuracy}")


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"flowrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Reads the options that stand before a command."""


def _target(target: str, overrides: list[str]):  # noqa: ANN202 - a Recipe, whose import is put off
    """(recipe, trained weights or None) of a run's folder or a recipe."""
    from flowrl.recipe.load import load

    folder = Path(target)
    if not (folder / "recipe.yaml").is_file():
        return load(target, overrides), None
    weights = next((folder / name for name in ("lora", "model") if (folder / name).is_dir()), None)
    if weights is None:
        raise UserError(f"{target}: the run has no weights yet (lora/ or model/); let it finish, or give its recipe")
    return load(str(folder / "recipe.yaml"), overrides), weights


def _is_override(text: str) -> bool:
    head, mark, _ = text.partition("=")
    return bool(mark) and head.replace(".", "").replace("_", "").isalnum()


def _headline(recipe: Path) -> str:
    """The first line of a recipe's header comment."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()


def _quiet() -> None:
    """Keeps third-party chatter off the screen; it stands in their logs' error level."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Entry point. What a user got wrong is one line on standard error and exit code 2, a reward that fails exit 1."""
    try:
        app()
    except UserError as error:
        typer.echo(f"flowrl: {error}", err=True)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "RewardError":  # importing the class would load torch
            raise
        typer.echo(f"flowrl: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
