"""Losses: what one is given of a rollout, and what it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from flowrl.contracts.looks import RewardOf, View
from flowrl.contracts.samples import Rollout


@dataclass(frozen=True)
class Batch:
    """The data of what is looked at, cut as it is: r rows, k decisions of each.

    rollout_logp float32 [r, k]: log-probs under the policy that sampled; old_logp, where an objective needs them, under
    the weights that train, before the first update. adv float32 [r], or [r, k] where decisions of a row differ: what
    moves them. mask bool [r, k]: which are trained. reference float32 [r, k]: log-probs under the
    reference, where the objective needs it. step_stats: [r, k] by name, see `Rollout`. velocities: of a Field, those of
    the other weights that the objective needs at the same states, like its v, by name. together int64 [r]: equal for
    rows that the objective takes together; of a pair the better one comes first, or the one that was given. pull, like
    v of a Field: the gradient of the loss at what its step leads to. reward_of: the weighted reward of samples, with
    gradient. value, returns, shown float32 [r, k]: see `Rollout`.
    """

    rollout_logp: Tensor
    adv: Tensor
    mask: Tensor
    reference: Tensor | None = None
    step_stats: dict[str, Tensor] = field(default_factory=dict)
    velocities: Mapping[str, Tensor] = field(default_factory=dict)
    together: Tensor | None = None
    pull: Tensor | None = None
    reward_of: RewardOf | None = None
    value: Tensor | None = None
    returns: Tensor | None = None
    old_logp: Tensor | None = None
    shown: Tensor | None = None


Together = Literal["decision", "row", "pair", "given", "group"]
Need = Literal["reference", "old", "pull", "reward_of", "rank", "returns", "every_row", "old_logp", "shown"]


class Objective(Protocol):
    """A loss per decision, what it needs to be computed, and how the loop is to average it."""

    @property
    def view(self) -> View:
        """What it looks at."""
        ...

    @property
    def together(self) -> Together:
        """What must not be cut: the loss of a decision reads that decision alone, or others of its row too; of noised
        states, the other row of its pair, of better and worse or of given and drawn, or those of its group, in the same
        column."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What the loop has to provide. reference: `Batch.reference`, as every trained decision pays a divergence; of
        noised states the velocities of the reference, and with old those of the older copy, in `Batch.velocities`;
        reward_of, pull, returns, old_logp, shown: see `Batch`, and for a pull core/backward_pull.py. rank: in
        `Batch.adv`, in place of a row's advantage, the share of the update's rows that it is above, in (0, 1).
        every_row: nothing more, but rows whose advantage is 0 are looked at too, since they have a loss."""
        ...

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """The rollout as it is trained, and metrics, 0-d: once, before its first update.

        It may have a narrower mask, and further step_stats, which `step_weights` and the loss read. adv: as in `Batch`,
        of all rows.
        """
        ...

    def weights(self, mask: Tensor) -> Tensor:
        """Weight of every decision in the loss, float32 [R, K], from the mask [R, K] of all rows of an update."""
        ...

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor | None:
        """Factor of every decision's advantage, float32 [R, K], from mask and step_stats [R, K] of all rows.

        Rows: of an update. None: all are 1. It acts on the policy gradient and leaves a divergence alone. Raises
        ValueError where a statistic that it needs is not there.
        """
        ...

    def __call__(self, seen: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss [r, k] float32, metrics: name -> [r, k] values, averaged over decisions; see clipped.py)."""
        ...
