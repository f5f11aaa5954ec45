"""How far the policy that sampled is from the one that trains, from their log-probs of the same decisions."""

import torch
from torch import Tensor

from flowrl.core.objectives.clipped import difference
from flowrl.core.objectives.correction import LIMIT, weights_of
from flowrl.core.objectives.divergence import k3


def mismatch(old_logp: Tensor, rollout_logp: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Metrics, 0-d, of the trained decisions of a rollout: log-probs and mask [R, K].

    With x = old - rollout: mean_abs and max, of |x|; kl, the mean of -x, and k3, of exp(x) - x - 1, both estimates of
    KL(who sampled || who trains); chi2_token and chi2_seq, the mean of the squared ratio of decisions, and of the
    product over a row, less 1; ess, the effective share of decisions when each is weighted by its ratio, 1 where there
    is no mismatch. Of rows, by their mean log-prob: training_log_ppl, rollout_log_ppl and, as exponentials,
    training_ppl and rollout_ppl; log_ppl_diff, rollout's log-prob less training's, with its abs_diff, max and min, and
    ppl_ratio. Rows without any trained decision count nowhere.
    """
    valid = mask.bool()
    rows = valid.any(1)
    valid, number = valid[rows], valid[rows].sum(1).clamp(min=1)
    x = difference(old_logp.detach()[rows], rollout_logp.detach()[rows], valid)
    total = valid.sum().clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return values.where(valid, 0.0).sum() / total

    def of_rows(values: Tensor) -> Tensor:
        return values.where(valid, 0.0).sum(1) / number

    def over(values: Tensor) -> Tensor:
        return values.mean() if len(values) else values.sum()

    token, row = weights_of(x, valid, "token"), (2 * x.sum(1)).clamp(-LIMIT, LIMIT).exp()
    training, rollout = (-of_rows(logp.detach()[rows].to(x.dtype)) for logp in (old_logp, rollout_logp))
    differs = training - rollout
    return {
        "mean_abs": mean(x.abs()),
        "max": x.abs().amax() if x.numel() else x.sum(),
        "kl": mean(-x),
        "k3": mean(k3(x)),
        "ess": effective_share(token, valid),
        "chi2_token": mean(token.square()) - 1,
        "chi2_seq": over(row) - 1,
        "training_log_ppl": over(training),
        "rollout_log_ppl": over(rollout),
        "training_ppl": over(training.exp()),
        "rollout_ppl": over(rollout.exp()),
        "log_ppl_diff": over(differs),
        "log_ppl_abs_diff": over(differs.abs()),
        "log_ppl_diff_max": differs.amax() if len(differs) else over(differs),
        "log_ppl_diff_min": differs.amin() if len(differs) else over(differs),
        "ppl_ratio": over(differs.exp()),
    }


SHOWN = ("mean_abs", "max", "k3", "ess", "chi2_seq", "log_ppl_abs_diff")  # what a run records


def effective_share(weight: Tensor, valid: Tensor, limit: float | None = None) -> Tensor:
    """(mean w)^2 / mean w^2 of weights [R, K] over the valid decisions, 0-d, of w within [1 / limit, limit]."""
    w = weight if limit is None else weight.clamp(1 / limit, limit)
    number = valid.sum().clamp(min=1)
    first, second = (values.where(valid, 0.0).sum() / number for values in (w, w.square()))
    return first.square() / second.clamp(min=torch.finfo(w.dtype).tiny)


def spread_of_weights(log_ratio: Tensor, valid: Tensor, level: str, high: float) -> dict[str, Tensor]:
    """Of w = old / rollout before it is bounded, 0-d: its mean over decisions, max and min; above, the share of
    decisions, or of rows where w is of a row, beyond `high`; ess, see `effective_share`, of w within [1 / high, high].

    log_ratio [R, K], 0 where not valid; level: see correction.py.
    """
    weight = weights_of(log_ratio, valid, level)
    beyond = (weight > high).float()
    share = (beyond * valid).sum() / valid.sum().clamp(min=1) if level == "token" else beyond[:, 0].mean()
    inside = weight[valid] if level == "token" else weight[:, 0]
    mean = weight.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
    ends = {"max": inside.amax(), "min": inside.amin()} if inside.numel() else {"max": mean, "min": mean}
    return {"mean": mean, **ends, "above": share, "ess": effective_share(weight, valid, high)}
