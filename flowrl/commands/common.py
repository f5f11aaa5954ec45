"""Shared by several commands: their arguments, and how a target is resolved."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


def _complete(incomplete: str) -> list[str]:
    """Keys of a recipe, and behind the = their choices."""
    from flowrl.recipe.explain import completions

    return completions(incomplete)


RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a recipe that ships.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="A run's folder, a recipe file, or its name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", autocompletion=_complete, help="Recipe values, such as train.lr=1e-4."),
]


WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="final|best|last|witness|NUMBER", help="Which of the run's weights; NUMBER is a checkpoint's."
    ),
]
RawOption = Annotated[bool, typer.Option("--raw", help="The weights without averaging, if the run averages them.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Import the Python modules that the run's recipe names (they can run any code).")
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="SOURCE", help="Prompts (default: the training prompts).")
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="ODE steps (default: the recipe's).")]


def resolve_target(
    target: str, overrides: list[str], weights: str = "final", raw: bool = False, trust: bool = False
) -> "tuple[Recipe, Path | None]":
    """(recipe without trackers, the run's folder or None) for a run's folder or a recipe.

    trust: whether a run's own recipe may name modules to import. Raises UserError if it names some without trust, if
    the run has no such weights, or if weights are given for a recipe, which has none.
    """
    from flowrl.recipe.load import load
    from flowrl.recipe.trust import load_run
    from flowrl.runs.weights import check_weights

    folder = Path(target)
    overrides = ["track=null", *overrides]
    if (folder / "recipe.yaml").is_file():
        check_weights(folder, weights, raw)
        return load_run(folder, overrides, trust=trust), folder
    if weights != "final" or raw:
        option = "--raw" if raw else f"--weights {weights}"
        raise UserError(f"{option}: {target} is a recipe, which has no trained weights; give a run's folder")
    return load(target, overrides), None


def silence_before_import() -> None:
    """Silences libraries that are not loaded yet, without loading them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def silence_libraries() -> None:
    """Loads diffusers and transformers, and silences everything below errors."""
    silence_before_import()

    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
