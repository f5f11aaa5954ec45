"""Under which weights a policy looks at its decisions."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch

from flowrl.contracts import Weights
from flowrl.core.learning.copies import Copies
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.reference_lora import reference_name, use_reference

WeightsContext = Callable[[str], AbstractContextManager[None]]  # within it, modules have the weights of that name


def weights_of(
    modules: adapters.Modules, copies: Copies | None = None, *, use: str | Sequence[str] = "base"
) -> WeightsContext:
    """The other weights of modules: copies by their names, and the references, whose names `reference_name` gives.

    use: what the reference is, or each of several. base: a copy, or the modules with their adapters off (also for
    model, which has modules of its own); average: the moving average among the copies; lora: the adapters that
    `add_reference_lora` loaded. What it gives raises PolicyError for weights that are not kept, and where there is no
    adapter to disable.
    """

    uses = {reference_name(i): one for i, one in enumerate([use] if isinstance(use, str) else use)}

    def context(name: str) -> AbstractContextManager[None]:
        if (what := uses.get(name)) == "lora":
            return use_reference(modules, name)
        if what is not None:
            name = "average" if what == "average" else "reference"
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
