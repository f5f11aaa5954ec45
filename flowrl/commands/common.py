"""What several commands share: the arguments they take, and what a target names."""

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


RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the short name of one that ships.")]
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
RawOption = Annotated[bool, typer.Option("--raw", help="The weights without averaging, where the run averages.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Import and run modules that the run's own recipe names by dotted paths.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="ODE steps; the recipe's where not given.")]


def target_of(
    target: str, overrides: list[str], weights: str = "final", raw: bool = False, trust: bool = False
) -> "tuple[Recipe, Path | None]":
    """(recipe, the run's folder or None) of a run's folder or a recipe; nothing of it is tracked.

    trust: whether a run's own recipe may name modules to import. Raises UserError where it does without, where the run
    has no such weights, or where weights are named of a recipe, which has none.
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


def hush() -> None:
    """Asks libraries that are not loaded yet to keep their chatter off the screen, without loading them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def quiet() -> None:
    """Keeps third-party chatter off the screen; it stands in their logs' error level. Loads the libraries."""
    hush()

    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
