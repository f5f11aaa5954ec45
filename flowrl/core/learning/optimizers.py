"""Optimizers by name: AdamW of torch, as it is, fused, or with moments in 8 bits by bitsandbytes."""

from collections.abc import Iterable

import torch
from torch import nn

from flowrl.core.learning.shards import mixed

OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer of a name over some parameters. AdamW (arXiv:1711.05101) in all cases.

    adamw_fused: one kernel for all parameters, to rounding the same. adamw_8bit: moments of large parameters in 8 bits
    (arXiv:2110.02861). Raises ValueError for an unknown name, and where bitsandbytes is not installed.
    """
    how = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    if name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"train.optimizer: 'adamw_8bit' needs the package bitsandbytes ({error}); pip install bitsandbytes, or "
                "set train.optimizer=adamw"
            ) from error
        return AdamW8bit(list(parameters), **how)
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    parameters = list(parameters)
    if mixed(parameters):  # one kernel for several takes either
        return torch.optim.AdamW(parameters, **how, foreach=False)
    return torch.optim.AdamW(parameters, **how, fused=True if name == "adamw_fused" else None)
