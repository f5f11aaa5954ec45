"""The interface of a kind of model: everything that differs between a denoiser and a language model.

One part is about recipes alone and imports nothing heavy, because a recipe is refused before torch is loaded. The other
part (`planning`, `building`, `exporter`, `proofs`) names modules of other rooms, which are imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.checking.proofs.bench import Bench
    from flowrl.checking.proofs.proof import Proof
    from flowrl.contracts import Coming, Prompt, Ranks
    from flowrl.planning.costs import Arithmetic
    from flowrl.planning.sizes.flops import Flops
    from flowrl.planning.sizes.memory import Sizes


P = TypeVar("P")  # the policies of a kind, each of its own class
P_contra = TypeVar("P_contra", contravariant=True)


@dataclass(frozen=True)
class Words:
    """The words for a kind in messages and reports."""

    model: str  # one of its models: "a diffusers pipeline"
    chosen: str  # how to choose it in a recipe: "remove generation"
    decisions: str  # "denoising steps"
    network: str  # the network that is trained: "denoiser"
    whole: str  # an export of all weights, in its model card: "whole pipeline"
    forward: str  # the unit of one forward: "row", as in row-forwards
    forwards: str  # "denoiser row-forwards"
    costs: str  # the unit of the costs in a dry run
    reference: str  # what a scan compares samples with: "the ODE"
    reference_sample: str  # "the ODE's sample"

    @property
    def unit(self) -> str:
        """The unit of a progress display: "rows"."""
        return f"{self.forward}s"


class Planning(Protocol):
    """What a recipe of this kind will do, computed without weights; a module of flowrl/planning."""

    def plan(self, recipe: Recipe, iteration: int) -> Any:
        """What a training iteration, counted from 0, does."""
        ...

    def eval_plan(self, recipe: Recipe) -> Any:
        """How an evaluation draws its samples."""
        ...

    def group_plan(self, recipe: Recipe) -> Any:
        """How groups of differing samples are drawn for held-out prompts, to measure their diversity."""
        ...

    def reference_plan(self, recipe: Recipe) -> Any:
        """How a scan draws the deterministic samples that it compares those of training with."""
        ...

    def starts(self, plan: Any, group: int) -> list[int]:
        """The index of the reference sample that each finished sample of a group is compared with."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError if the plans do not fit the recipe's objective and updates."""
        ...

    def arithmetic(self, recipe: Recipe, iteration: int) -> Arithmetic:
        """Sizes and costs of an iteration."""
        ...

    def eval_forwards(self, recipe: Recipe) -> int:
        """Upper bound on the forwards of one sample of an evaluation."""
        ...

    def lines(self, recipe: Recipe) -> list[str]:
        """The lines of a dry run about the decisions."""
        ...

    KNOWN: Sequence[str]  # ids on a hub whose configs ship, so that their memory is estimated without a folder

    def sizes(self, recipe: Recipe, prompts: Sequence[Prompt]) -> Sizes | None:
        """Parameters and memory by phase; None where no config of the model is at hand."""
        ...

    def flops(self, recipe: Recipe, prompts: Sequence[Prompt]) -> Flops | None:
        """Floating-point operations of an iteration by phase; None where they are not known."""
        ...

    def eval_words(self, recipe: Recipe) -> str:
        """How an evaluation samples, for messages."""
        ...


class Building(Protocol[P]):
    """How a policy of this kind is built; a module of its folder in flowrl/policies."""

    def build(self, recipe: Recipe) -> P:
        """The recipe's model as a policy, with what it trains made trainable."""
        ...

    def add_reference(self, policy: P, recipe: Recipe) -> None:
        """Gives a policy the recipe's reference, frozen. Raises UserError where it cannot be one of this policy."""
        ...

    def references(self, policy: P) -> Sequence[Mapping[str, Any]]:
        """The modules, by name, of each other model that a policy has as reference; none where it is its own."""
        ...

    def evaluated(self, policy: P, recipe: Recipe) -> Any:
        """What evaluations draw from: the policy itself, or what holds discussions of its roles."""
        ...

    def looking_ahead(self, policy: P, coming: Coming) -> AbstractContextManager[None]:
        """Within, a policy that has something to do for prompts before they are drawn knows which are coming."""
        ...

    def apart(self, policy: Any, recipe: Recipe) -> Sequence[Sequence[Any]]:
        """Parameters of a policy, or of a critic, whose gradients are clipped each by themselves; none: all at once."""
        ...

    def build_critic(self, policy: P, recipe: Recipe) -> Any:
        """What gives the values of the policy's decisions (core/values.py), with what it trains made trainable.

        Raises UserError where it cannot be loaded, and of kinds that have none.
        """
        ...

    def retune(self, policy: P, recipe: Recipe) -> None:
        """Makes a policy draw as another recipe of the same model does. Raises RecipeError if it cannot."""
        ...

    def unfinished(self, recipe: Recipe, prompts: Sequence[Prompt]) -> Any:
        """Samples that an iteration may leave unfinished, with a state to save; None where it leaves none."""
        ...

    def view_of(self, recipe: Recipe, name: str) -> Any:
        """What changes pictures as the recipe's view of that name does; of kinds that have views."""
        ...

    def exploration(
        self, recipe: Recipe, unfinished: Any = None, ranks: Ranks | None = None
    ) -> Callable[..., Any] | None:
        """A function (policy, drawing, score) where samples are drawn in more than one go; score gives the rewards of
        samples, by name, and their weighted sum. ranks: those that draw together."""
        ...


class Exporter(Protocol[P_contra]):
    """How weights of this kind are exported; a module of flowrl/exports."""

    def write(self, policy: P_contra, folder: Path, kind: str) -> None:
        """Writes the weights; the policy may be unusable afterwards."""
        ...

    def draw(self, policy: P_contra, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Tensor]:
        """One sample per prompt, as tensors that can be subtracted."""
        ...

    def redraw(self, recipe: Recipe, folder: Path, kind: str, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The same samples by the export alone, from the same noise."""
        ...

    def usage(self, recipe: Recipe, folder: Path, kind: str) -> str:
        """Python code that loads the export, for its model card."""
        ...


class Proofs(Protocol):
    """What `flowrl check` verifies for this kind; a module of flowrl/checking/proofs."""

    BENCH: type[Bench]
    PROOFS: tuple[Proof, ...]  # in order; one that changes the weights comes after all that only read them


class Kind(Protocol):
    """A kind of model; see the module's docstring. Methods `check_...` yield an error for all that cannot work."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def unread(self) -> tuple[str, ...]:
        """The sections of a recipe that it does not read."""
        ...

    @property
    def presets(self) -> Mapping[str, dict[str, dict[str, JSON]]]:
        """The values of objective.preset: preset -> section -> key -> value."""
        ...

    @property
    def saving(self) -> tuple[str, ...]:
        """Keys that lower memory, beside those of every kind: the dry run says which would make a recipe fit a card."""
        ...

    @property
    def texts(self) -> bool:
        """Whether samples are texts; otherwise they are pictures, videos or sounds."""
        ...

    @property
    def words(self) -> Words:
        """The words for it."""
        ...

    def claims(self, values: Mapping[str, JSON]) -> bool:
        """Whether a recipe with these values, checked or not, trains a model of this kind."""
        ...

    def holds(self, folder: Path) -> bool:
        """Whether a folder contains a model of this kind."""
        ...

    @property
    def index(self) -> str:
        """The file by which such a folder is recognised, for messages."""
        ...

    def completed(self, values: dict[str, JSON]) -> dict[str, JSON]:
        """A recipe's values with this kind's defaults filled in. Raises RecipeError for unread sections."""
        ...

    def check_model(self, recipe: Recipe) -> Iterator[RecipeError]:
        """The model, its adapters, and keys that only other kinds read."""
        ...

    def check_sampling(self, recipe: Recipe) -> Iterator[RecipeError]:
        """How samples are drawn."""
        ...

    def draws_in_parts(self, recipe: Recipe) -> bool:
        """Whether a prompt takes more numbers of noise than it has samples."""
        ...

    def draws_together(self, recipe: Recipe) -> bool:
        """Whether ranks wait for each other as they draw."""
        ...

    def check_ranks(self, recipe: Recipe) -> Iterator[RecipeError]:
        """What is not done over several ranks."""
        ...

    def check_objective(self, recipe: Recipe) -> Iterator[RecipeError]:
        """The loss."""
        ...

    def check_parts(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Named parts; a user's own modules may be imported here."""
        ...

    def call(self, recipe: Recipe) -> object:
        """What else determines a deterministic sample, besides plan, seed and weights."""
        ...

    def noise(self, recipe: Recipe) -> object:
        """What determines the distribution of a decision, besides the plan."""
        ...

    def sampling(self, recipe: Recipe) -> dict[str, JSON]:
        """The step, noise and steps under which a comparison measures all its runs; None where the kind has none."""
        ...

    def sampled_by(self, recipe: Recipe, sampling: Mapping[str, JSON]) -> Recipe:
        """The recipe under another one's `sampling`, with noise at every step but the last."""
        ...

    def plain(self, recipe: Recipe) -> Recipe:
        """The recipe with a plan that is the same in every iteration and draws noise at every step but the last."""
        ...

    def prompt_arguments(self, model: str, *, online: bool) -> list[str]:
        """Names of the model's call arguments that columns of prompts may set. online: whether to ask the hub."""
        ...

    def refuse_prompts(self, prompts: Sequence[Prompt], model: str) -> str | None:
        """Why the model cannot take these prompts; None if it can."""
        ...

    def refuse_views(self, prompts: Sequence[Prompt], recipe: Recipe) -> str | None:
        """Why the recipe's views cannot be made of these training prompts; None if they can."""
        ...

    def library(self, export: str) -> str:
        """The library that reads an export, "lora" or "merged"."""
        ...

    @property
    def planning(self) -> Planning:
        """Its plans and costs."""
        ...

    @property
    def building(self) -> Building[Any]:
        """How its policies are built."""
        ...

    @property
    def exporter(self) -> Exporter[Any]:
        """How its weights are exported."""
        ...

    @property
    def proofs(self) -> Proofs:
        """What `flowrl check` verifies."""
        ...
