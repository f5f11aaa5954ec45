"""What several commands share: the arguments they take, and what a target names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the short name of one that ships.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="A run's folder, a recipe file, or its name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe values, such as train.lr=1e-4.")
]


def target_of(target: str, overrides: list[str]) -> "tuple[Recipe, Path | None]":
    """(recipe, trained weights or None) of a run's folder or a recipe."""
    from flowrl.recipe.load import load

    folder = Path(target)
    if not (folder / "recipe.yaml").is_file():
        return load(target, overrides), None
    weights = next((folder / name for name in ("lora", "model") if (folder / name).is_dir()), None)
    if weights is None:
        raise UserError(f"{target}: the run has no weights yet (lora/ or model/); let it finish, or give its recipe")
    return load(str(folder / "recipe.yaml"), overrides), weights


def quiet() -> None:
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
