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


# kind of a loss of texts -> its class, whose fields are keys of objective.loss
TEXTS = {"sft": TextLikelihood, "dpo": TextPairs}
