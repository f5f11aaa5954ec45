"""Under which weights a policy looks at its decisions."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from flowrl.contracts import Weights
from flowrl.core.copies import Copies
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError

WeightsContext = Callable[[str], AbstractContextManager[None]]  # within it, modules have the weights of that name


def weights_of(modules: adapters.Modules, copies: Copies | None = None) -> WeightsContext:
    """The other weights of modules: copies by their names, and the reference of those with adapters.

    What it gives raises PolicyError for weights that are not kept, and where there is no adapter to disable.
    """

    def context(name: str) -> AbstractContextManager[None]:
        if copies is not None and name in copies:
            return copies.using(name)
        if name != "reference":
            raise PolicyError(f"no copy {name!r} of the weights is kept")
        return adapters.disable_adapters(modules)

    return context


@contextlib.contextmanager
def under(context: WeightsContext, weights: Weights) -> Iterator[None]:
    """Within, the modules have these weights; there is no gradient under others than those that learn."""
    if weights == "current":
        yield
    else:
        with torch.no_grad(), context(weights):
            yield
