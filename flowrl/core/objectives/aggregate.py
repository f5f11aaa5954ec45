"""Weights that turn per-decision losses into one number, and the same for metrics.

loss = (loss_rk * weights).sum(), with weights computed ONCE over the mask of the global update batch. Any split of rows
or decisions into micro-batches or ranks then sums to the same gradient; the mean of micro-batch means does not (25-38 %
off on ragged masks). A rank that averages its gradients with D-1 others multiplies its weights by D.
"""

import torch
from torch import Tensor

MODES = ("decision_mean", "seq_mean_mean", "seq_mean_sum", "constant")


def weights(
    mask: Tensor, mode: str = "decision_mean", *, constant: float | None = None, count_empty_rows: bool = False
) -> Tensor:
    """Weight of every decision, float32 [R, K], 0 where the mask is 0. An empty mask gives zeros.

    mask bool or 0/1 [R, K], of the whole update batch.
    decision_mean: 1 / number of valid decisions (DAPO). seq_mean_mean: mean over rows of the row's mean (GRPO).
    seq_mean_sum: mean over rows of the row's sum. constant: 1 / constant; Dr. GRPO's constant is R * the length limit,
    that of verl's seq-mean-token-sum-norm the length limit alone.
    count_empty_rows: whether rows without a valid decision count in the mean over rows (TRL) or not (verl).

    Raises ValueError for an unknown mode, and for a constant that is missing, not positive, or given to another mode.
    """
    if mode not in MODES:
        raise ValueError(f"aggregation mode {mode!r}: choose one of {', '.join(MODES)}")
    if (mode == "constant") != (constant is not None) or (constant is not None and constant <= 0):
        raise ValueError(f"mode={mode!r}, constant={constant}: mode 'constant' needs a positive constant, others none")
    valid = mask.bool()
    length = valid.sum(1, keepdim=True)
    rows = torch.tensor(len(valid)) if count_empty_rows else (length > 0).sum()
    divisor: dict[str, Tensor] = {
        "decision_mean": length.sum(),
        "seq_mean_mean": length.clamp(min=1) * rows,
        "seq_mean_sum": rows,
        "constant": torch.tensor(constant or 1.0),
    }
    return valid / divisor[mode].to(valid.device, torch.float32).clamp(min=torch.finfo(torch.float32).tiny)


def reduce_metrics(metrics: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """One 0-d tensor a metric: [r, k] entries become their weighted sum, 0-d entries (maxima, *_max) pass through.

    weights [r, k] is the part's slice of weights(global mask, "decision_mean"), so that a share is a share of valid
    decisions.
    """
    return {name: value if value.ndim == 0 else (value * weights).sum() for name, value in metrics.items()}


def merge_metrics(total: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The total with the reduced metrics, scalars, of one more micro-batch or rank added; *_max take the larger."""
    merged = dict(total)
    for name, value in part.items():
        if name not in merged:
            merged[name] = value
        elif name.endswith("_max"):
            merged[name] = torch.maximum(merged[name], value)
        else:
            merged[name] = merged[name] + value
    return merged
