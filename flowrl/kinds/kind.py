"""What a kind of model has to know: all that differs between a denoiser and a token model.

The first part is about recipes alone, and loads nothing heavy: a recipe is refused before torch is loaded. The second
binds the parts of other rooms, each a module that is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.checking.proofs.bench import Bench
    from flowrl.checking.proofs.proof import Proof
    from flowrl.contracts import Prompt
    from flowrl.planning.costs import Arithmetic


@dataclass(frozen=True)
class Words:
    """How a kind is spoken of."""

    model: str  # what its models are: "a diffusers pipeline"
    network: str  # what learns: "denoiser"
    whole: str  # an export of all weights: "whole pipeline"
    forward: str  # what one forward takes: "row"; counts are of row-forwards
    forwards: str  # these, of whom: "denoiser row-forwards"
    costs: str  # what the numbers of a dry run count
    reference: str  # what samples are held against in a scan: "the ODE"
    reference_sample: str

    @property
    def unit(self) -> str:
        """What progress is counted in: "rows"."""
        return f"{self.forward}s"


class Planning(Protocol):
    """What a recipe of this kind will do, worked out without weights; a module of flowrl/planning."""

    def plan(self, recipe: Recipe, iteration: int) -> Any:
        """What a training iteration, counted from 0, does."""
        ...

    def eval_plan(self, recipe: Recipe) -> Any:
        """What an evaluation does."""
        ...

    def group_plan(self, recipe: Recipe) -> Any:
        """How groups of different samples are drawn of held-out prompts, to see how they vary."""
        ...

    def reference_plan(self, recipe: Recipe) -> Any:
        """How the samples without chance are drawn that those of training are held against in a scan."""
        ...

    def starts(self, plan: Any, group: int) -> list[int]:
        """Which reference sample of its prompt each finished sample of a group is held against."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError where the plans do not fit what the recipe trains by."""
        ...

    def arithmetic(self, recipe: Recipe, iteration: int) -> Arithmetic:
        """Sizes and costs of an iteration."""
        ...

    def eval_forwards(self, recipe: Recipe) -> int:
        """Forwards of one sample of an evaluation, at most."""
        ...

    def lines(self, recipe: Recipe) -> list[str]:
        """What a dry run says of the decisions."""
        ...

    def eval_words(self, recipe: Recipe) -> str:
        """How an evaluation samples, in words."""
        ...


class Building(Protocol):
    """How a policy of this kind is made; a module of its folder in flowrl/policies."""

    def build(self, recipe: Recipe) -> Any:
        """The recipe's model as a policy, with what it trains made trainable."""
        ...

    def retune(self, policy: Any, recipe: Recipe) -> None:
        """Makes a policy draw as another recipe of the same model says. Raises RecipeError where it cannot."""
        ...


class Exporter(Protocol):
    """What this kind is exported as; a module of flowrl/exports."""

    def write(self, policy: Any, folder: Path, kind: str) -> None:
        """Writes the weights; the policy may be of no use afterwards."""
        ...

    def draw(self, policy: Any, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Tensor]:
        """A sample a prompt, as values that can be subtracted."""
        ...

    def redraw(self, recipe: Recipe, folder: Path, kind: str, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The same samples by the export alone, from the same noise."""
        ...

    def usage(self, recipe: Recipe, folder: Path, kind: str) -> str:
        """Python that loads the export, for its card."""
        ...


class Proofs(Protocol):
    """What `flowrl check` proves of this kind, and on what evidence; a module of flowrl/checking/proofs."""

    BENCH: type[Bench]
    PROOFS: tuple[Proof, ...]  # in order; a proof that moves the weights comes after all that look at them


class Kind(Protocol):
    """A kind of model; see the module's docstring. Methods that begin with `check_` yield what cannot work."""

    @property
    def name(self) -> str:
        """A word for messages and tests."""
        ...

    @property
    def section(self) -> str | None:
        """The section of a recipe that chooses this kind; None for the kind of recipes without any."""
        ...

    @property
    def unread(self) -> tuple[str, ...]:
        """The sections of a recipe that this kind does not read."""
        ...

    @property
    def presets(self) -> Mapping[str, dict[str, dict[str, Any]]]:
        """The values of objective.preset: preset -> section -> key -> value."""
        ...

    @property
    def texts(self) -> bool:
        """Whether samples are texts; otherwise they are pictures, videos or sounds."""
        ...

    @property
    def words(self) -> Words:
        """How it is spoken of."""
        ...

    def holds(self, folder: Path) -> bool:
        """Whether a folder has a model of this kind in it."""
        ...

    @property
    def index(self) -> str:
        """The file that a folder with such a model is known by."""
        ...

    def refuse_model(self, model: str, other: Kind) -> RecipeError:
        """The error for a recipe of this kind whose model is of another."""
        ...

    def completed(self, values: dict[str, Any]) -> dict[str, Any]:
        """A recipe's values with what is filled in where they say nothing. Raises RecipeError for unread sections."""
        ...

    def check_model(self, recipe: Recipe) -> Iterator[RecipeError]:
        """About the model, its adapters and the keys that other kinds read."""
        ...

    def check_sampling(self, recipe: Recipe) -> Iterator[RecipeError]:
        """About how samples are drawn."""
        ...

    def check_objective(self, recipe: Recipe) -> Iterator[RecipeError]:
        """About the loss."""
        ...

    def check_parts(self, recipe: Recipe) -> Iterator[RecipeError]:
        """About named parts; modules of a user's own may be imported here."""
        ...

    def call(self, recipe: Recipe) -> Any:
        """What decides, beside plan, seed and weights, what the model draws of its own."""
        ...

    def noise(self, recipe: Recipe) -> Any:
        """What decides how a decision of the plan is drawn."""
        ...

    def sampling(self, recipe: Recipe) -> dict[str, Any]:
        """Step, noise and number of steps that a comparison measures all its runs by, where there are any."""
        ...

    def sampled_by(self, recipe: Recipe, sampling: Mapping[str, Any]) -> Recipe:
        """The recipe with another one's `sampling`, drawing noise at every step but the last."""
        ...

    def plain(self, recipe: Recipe) -> Recipe:
        """The recipe with a plan that does not change from iteration to iteration and draws at every decision."""
        ...

    def prompt_arguments(self, model: str, *, online: bool) -> list[str]:
        """Names of what a prompt's columns may give to the model's own call. online: whether a hub may be asked."""
        ...

    def refuse_prompts(self, prompts: Sequence[Prompt]) -> str | None:
        """Why the model cannot take these prompts, None where it can."""
        ...

    def library(self, export: str) -> str:
        """The library that reads an export, "lora" or "merged"."""
        ...

    @property
    def planning(self) -> Planning:
        """Its plans and costs."""
        ...

    @property
    def building(self) -> Building:
        """How its policies are made."""
        ...

    @property
    def exporter(self) -> Exporter:
        """How its weights are exported."""
        ...

    @property
    def proofs(self) -> Proofs:
        """What is proven before a run."""
        ...
