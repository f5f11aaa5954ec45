"""Objectives of whole texts: the likelihood of given ones, and preferences between two of one prompt.

They look at decisions as they were drawn or given and read no ratio to who sampled. Samples come from files, or, for
preferences, from rollouts, where the best and the worst of each group are a pair.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Need, Rollout, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.balance import SubTrajectoryBalance, TrajectoryBalance
from flowrl.core.objectives.preference import opa_dpo_loss
from flowrl.core.objectives.terms import likelihood, pair_terms, row_log_ratio


@dataclass(frozen=True)
class TextLikelihood:
    """Supervised finetuning: the mean of -phi(p) log p over the tokens of given texts; phi: see `terms.likelihood`."""

    phi: Literal["one", "p", "uncertain"] = "one"

    view = View()
    together: Together = "decision"
    needs: frozenset[Need] = frozenset()

    def weights(self, mask: Tensor) -> Tensor:
        """The mean over tokens; see `contracts.Objective`."""
        return weights(mask)

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """As it is."""
        return rollout, {}

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """None; see `contracts.Objective`."""

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Metric: likelihood, -log p."""
        plain = (-seen.logp.detach()).where(batch.mask, 0.0)
        return likelihood(seen.logp, self.phi).where(batch.mask, 0.0), {"likelihood": plain}


@dataclass(frozen=True)
class TextPairs:
    """Preferences between two texts of a prompt: pair * dpo + bco * bco + likelihood * the better one's, per pair.

    beta: of the implicit rewards, beta times a row's log-ratio to the reference. smoothing: of the labels of dpo. The
    likelihood is the mean over the tokens of the better text, then over pairs. Forms are in terms.py: DPO
    (arXiv:2305.18290), BCO (arXiv:2404.04656); MPO (arXiv:2411.10442) is 0.8, 0.2 and 1.
    """

    beta: Annotated[float, "> 0"] = 0.1
    pair: Annotated[float, ">= 0"] = 1.0
    bco: Annotated[float, ">= 0"] = 0.0
    likelihood: Annotated[float, ">= 0"] = 0.0
    smoothing: Annotated[float, "in [0, 0.5)"] = 0.0

    view = View()
    together: Together = "pair"
    needs: frozenset[Need] = frozenset({"reference"})

    def weights(self, mask: Tensor) -> Tensor:
        """The mean over rows of their means, so that what stands at all decisions of both rows counts once a pair."""
        return weights(mask, "seq_mean_mean")

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """As it is."""
        return rollout, {}

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """None; see `contracts.Objective`."""

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Rows are pairs, the better one first. Metrics: margin, implicit_accuracy,
        likelihood, -log p a token of the better text.

        Raises ValueError for rows that are no whole pairs.
        """
        labels = batch.together
        if labels is None or batch.reference is None or len(labels) % 2 or (labels[0::2] != labels[1::2]).any():
            raise ValueError("the objective is of pairs of rows with their reference, the better one first")
        ratio = row_log_ratio(seen.logp, batch.reference, batch.mask)
        better, worse = ratio[0::2], ratio[1::2]
        loss = seen.logp.new_zeros(len(better))
        if self.pair:
            loss = loss + self.pair * pair_terms(better, worse, "dpo", beta=self.beta, smoothing=self.smoothing)
        if self.bco:
            loss = loss + self.bco * pair_terms(better, worse, "bco", beta=self.beta)
        spread = loss.repeat_interleave(2)[:, None].expand_as(seen.logp)
        first = (torch.arange(len(ratio), device=ratio.device) % 2 == 0)[:, None]
        plain = -seen.logp.where(batch.mask & first, 0.0)
        spread = spread + 2 * self.likelihood * plain
        margin = (self.beta * (better - worse)).detach().repeat_interleave(2)[:, None].expand_as(seen.logp)
        metrics = {"margin": margin, "implicit_accuracy": (margin > 0).to(margin.dtype)}
        mean = plain[0::2].sum(1) / batch.mask[0::2].sum(1).clamp(min=1)
        metrics["likelihood"] = mean.detach().repeat_interleave(2)[:, None].expand_as(seen.logp)
        return spread.where(batch.mask, 0.0), {n: v.where(batch.mask, 0.0) for n, v in metrics.items()}


ROWS = ("gt", "orig", "revised", "gt_masked_img", "revised_masked_img")  # of a prompt, see opa_dpo_loss


@dataclass(frozen=True)
class CorrectedAnswers:
    """OPA-DPO (arXiv:2501.09695): five rows of a prompt, an expert's answer, the model's own, that one corrected, and
    the first and the last again beside masked pictures; see `preference.opa_dpo_loss` for its pairs and the anchor.

    image: the factor of the two pairs that differ by the picture alone. squared: the anchor is a squared distance, in
    place of that of the published script. by: positions compares token by token, and
    takes the mean over prompts and the positions of the longest row, padding included, as the published code does over
    its fixed length; texts compares sums over the tokens of a row, and takes the mean over prompts.
    """

    beta: Annotated[float, "> 0"] = 0.1
    image: Annotated[float, ">= 0"] = 0.2
    anchor: float = 0.0
    anchor_coef: Annotated[float, ">= 0"] = 1.0
    squared: bool = False
    by: Literal["positions", "texts"] = "positions"
    smoothing: Annotated[float, "in [0, 0.5)"] = 0.0

    view = View()
    together: Together = "group"
    needs: frozenset[Need] = frozenset({"reference", "every_row"})

    def weights(self, mask: Tensor) -> Tensor:
        """The first row of each prompt bears its loss, at every position, or at the first one."""
        made = torch.zeros(mask.shape)
        if self.by == "positions":
            made[:: len(ROWS)] = len(ROWS) / mask.numel()
        else:
            made[:: len(ROWS), 0] = len(ROWS) / len(mask)
        return made

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """As it is."""
        return rollout, {}

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """None; see `contracts.Objective`."""

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Metrics: pair_0 to pair_3, the losses of the four pairs, and anchor.

        Raises ValueError for rows that are not five of each prompt.
        """
        labels, size = batch.together, len(ROWS)
        if (
            labels is None
            or batch.reference is None
            or len(labels) % size
            or (labels != labels[::size].repeat_interleave(size)).any()
        ):
            raise ValueError("the objective is of five rows of each prompt with their reference")
        found = []
        for values in (seen.logp, batch.reference):
            of_rows = values.where(batch.mask, 0.0)
            of_rows = of_rows if self.by == "positions" else of_rows.sum(1, keepdim=True)
            found.append({name: of_rows[i::size] for i, name in enumerate(ROWS)})
        names = {"beta": self.beta, "smoothing": self.smoothing, "anchor": self.anchor, "anchor_coef": self.anchor_coef}
        loss, metrics = opa_dpo_loss(*found, coefs=(1.0, 1.0, self.image), mdpo=not self.squared, **names)
        whole = torch.zeros_like(seen.logp)
        return _spread(loss, whole), {
            n: v.mean(1, keepdim=True).repeat_interleave(size, 0).expand_as(whole) for n, v in metrics.items()
        }


def _spread(loss: Tensor, whole: Tensor) -> Tensor:
    """The loss of prompts [p, k], or [p, 1], in the first row of each, like whole [r, K], 0 elsewhere."""
    wide = torch.nn.functional.pad(loss, (0, whole.shape[1] - loss.shape[1]))
    rows = torch.zeros(len(loss), len(ROWS), whole.shape[1], dtype=loss.dtype, device=loss.device)
    return torch.cat([wide[:, None], rows[:, 1:]], 1).flatten(0, 1)


# kind of a loss of texts -> its class, whose fields are keys of objective.loss
TEXTS = {
    "sft": TextLikelihood,
    "dpo": TextPairs,
    "opa_dpo": CorrectedAnswers,
    "balance": TrajectoryBalance,
    "sub_balance": SubTrajectoryBalance,
}
