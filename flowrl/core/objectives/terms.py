"""Terms beside the policy gradient: the likelihood of answers that are right, or an expert's, and token preferences.

Each is a value per decision or per pair of rows; means are the caller's, over the set of rows that a term is of.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.core.objectives.preference import preference_loss

Phi = Literal["one", "p", "uncertain"]
PHIS = ("one", "p", "uncertain")


def likelihood(logp: Tensor, phi: Phi = "one") -> Tensor:
    """-phi(p) log p of each decision, like logp [r, k]; phi has no gradient.

    one: supervised finetuning, and VAPO's term on right answers (arXiv:2504.05118, eq. 10: coefficient 0.1, mean over
    their tokens). p: tokens count by their probability. uncertain: p (1 - p), CHORD-phi (arXiv:2508.11408, eq. 6),
    which leaves alone what is learnt and what is far off.
    Raises ValueError for another phi.
    """
    if phi not in PHIS:
        raise ValueError(f"phi={phi!r}: choose one of {', '.join(PHIS)}")
    p = logp.detach().exp()
    weight = {"one": torch.ones_like(p), "p": p, "uncertain": p * (1 - p)}[phi]
    return -weight * logp


def policy_share(mu: float) -> float:
    """What the policy gradient's loss counts beside mu times an expert's, so that both are one: CHORD-mu
    (arXiv:2508.11408, eq. 4), where mu falls during a run (a curve)."""
    return 1.0 - mu


def row_log_ratio(logp: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Sum over the mask [r, k] of logp - reference: the log-ratio of each row to the reference, [r]."""
    return (logp - reference.detach()).where(mask, 0.0).sum(1)


def pair_terms(
    better: Tensor,
    worse: Tensor,
    kind: Literal["dpo", "bco", "ipo"] = "dpo",
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss of each pair of rows, [p], from their log-ratios to the reference [p].

    dpo: -log sigmoid(beta (better - worse)), labels smoothed (DPO, arXiv:2305.18290, eq. 7). bco: -log sigmoid(beta
    better) - log sigmoid(-beta worse), each row on its own (BCO, arXiv:2404.04656, without its running mean reward, as
    TRL). ipo: (difference of log-ratios a token - 1 / (2 beta))^2 (arXiv:2310.12036, eq. 17, by lengths as in TRL).
    MPO of InternVL is 0.8 dpo + 0.2 bco + the mean likelihood of the better rows (arXiv:2411.10442).
    Raises ValueError for another kind, and for ipo without lengths [p] of both.
    """
    if kind == "dpo":
        return preference_loss(beta * (better - worse), 1 - smoothing)
    if kind == "bco":
        return -functional.logsigmoid(beta * better) - functional.logsigmoid(-beta * worse)
    if kind == "ipo" and lengths is not None:
        return (better / lengths[0] - worse / lengths[1] - 1 / (2 * beta)).square()
    raise ValueError(f"kind={kind!r}: choose one of dpo, bco and, with lengths, ipo")
