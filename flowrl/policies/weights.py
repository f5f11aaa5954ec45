"""Under which weights a policy looks at its decisions."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from flowrl.contracts import Weights

WeightsContext = Callable[[str], AbstractContextManager[None]]  # within which the modules have the weights of this name


@contextlib.contextmanager
def under(context: WeightsContext, weights: Weights) -> Iterator[None]:
    """Within, the modules have these weights; there is no gradient under others than those that learn."""
    if weights == "current":
        yield
    else:
        with torch.no_grad(), context(weights):
            yield
