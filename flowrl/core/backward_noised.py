"""How the loss of finished samples that are noised again reaches the weights.

The velocities of other weights come first: a swap of weights under a live graph would spoil its gradient. Then each
block of a look is differentiated as it comes. A loss of pairs or groups cannot be told from a block that holds a part
of them, be it that micro-batches are smaller or that the policy shows one row at a time. Its gradient then takes two
passes, by the chain rule over the velocities:

    dL/dtheta = sum over rows of <dL/dv, dv/dtheta>,   dL/dv at the velocities of all rows that belong together

The first pass collects them without gradient, the second differentiates the blocks one by one. That is exact, and costs
one more forward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flowrl.contracts import Field, Looks, Progress, View, Visit
from flowrl.core.backward import StepLoss

WEIGHTS = frozenset(["old", "reference"])  # whose velocities an objective may need
Look = Callable[[Tensor, View, Visit], None]  # `Looks.look` of one rollout


def backward_noised(
    policy: Looks, rows: Tensor, loss: StepLoss, micro_batch: int | None, progress: Progress | None = None
) -> None:
    """Adds the gradient of the loss of these rows, int64 [r], to the policy's parameters, micro_batch of them at once.

    Rows that belong together (`StepLoss.together`) stand beside each other. progress: see `contracts.Looks`.
    """
    look = partial(policy.look, loss.rollout, progress=progress)
    for chunk in chunks(rows, loss.together, micro_batch):
        parts = chunk.split(micro_batch or len(chunk))
        others = {
            name: _collect(look, parts, loss, name) for name in sorted(WEIGHTS & loss.objective.needs - loss.unmoved)
        }
        if loss.together is None:
            surrogate = None
        elif others and all(_is_whole(f.rows, chunk, loss.together) for f in next(iter(others.values()))):
            surrogate = None
        else:
            surrogate = iter(_slopes(look, parts, chunk, loss, others))
        _differentiate(look, parts, loss, others, surrogate)


def chunks(rows: Tensor, together: Tensor | None, micro_batch: int | None) -> Iterator[Tensor]:
    """Rows cut into parts of micro_batch, or of more where as many belong together."""
    if together is None or micro_batch is None:
        yield from rows.split(micro_batch or len(rows))
        return
    _, sizes = torch.unique_consecutive(together[rows], return_counts=True)
    packed: list[Tensor] = []
    for unit in rows.split(sizes.tolist()):
        if packed and sum(map(len, packed)) + len(unit) > micro_batch:
            yield torch.cat(packed)
            packed = []
        packed.append(unit)
    yield torch.cat(packed)


def _collect(look: Look, parts: Sequence[Tensor], loss: StepLoss, weights: str) -> list[Field]:
    """What looks at these rows show under some weights, without gradient, block by block."""
    fields: list[Field] = []
    with torch.no_grad():
        for part in parts:
            look(part, replace(loss.objective.view, weights=weights), fields.append)
    return fields


def _is_whole(block: Tensor, rows: Tensor, together: Tensor) -> bool:
    """Whether a block holds all of the rows that belong together with one of it."""
    labels = together[block].unique()
    return len(block) == int(torch.isin(together[rows], labels).sum())


def _differentiate(
    look: Look,
    parts: Sequence[Tensor],
    loss: StepLoss,
    others: Mapping[str, list[Field]],
    surrogate: Iterator[Tensor] | None,
) -> None:
    """Goes through the blocks with gradient. surrogate: dL/dv of each, where the loss itself has to see more."""
    pending = {name: iter(fields) for name, fields in others.items()}

    def visit(seen: Field) -> None:
        if surrogate is not None:
            (seen.v * next(surrogate)).sum().backward()
            return
        velocities = {name: seen.v.detach() for name in loss.objective.needs & loss.unmoved}
        velocities |= {name: next(fields).v for name, fields in pending.items()}
        loss(seen, velocities).backward()

    for part in parts:
        look(part, loss.objective.view, visit)


def _slopes(
    look: Look, parts: Sequence[Tensor], rows: Tensor, loss: StepLoss, others: Mapping[str, list[Field]]
) -> list[Tensor]:
    """dL/dv of every block, from the velocities of all rows of each column."""
    blocks = _collect(look, parts, loss, "current")
    slopes: list[Tensor] = [torch.empty(0)] * len(blocks)
    for column in dict.fromkeys(int(f.columns) for f in blocks):
        mine = [i for i, f in enumerate(blocks) if int(f.columns) == column]
        whole = _joined([blocks[i] for i in mine])
        order = torch.cat([(whole.rows == row).nonzero()[:, 0] for row in rows])
        velocities = {name: _joined([fields[i] for i in mine]).v[order] for name, fields in others.items()}
        velocities |= {name: whole.v[order] for name in loss.objective.needs & loss.unmoved}
        leaf = whole.v[order].requires_grad_()
        parts_of = {n: getattr(whole, n)[order] for n in ("rows", "x", "x0", "target")}
        share = None if whole.share is None else whole.share[order]
        seen = replace(whole, v=leaf, share=share, **parts_of)
        slope = torch.empty_like(whole.v)
        slope[order] = torch.autograd.grad(loss(seen, velocities), leaf)[0]
        for i, part in zip(mine, slope.split([len(blocks[i].rows) for i in mine]), strict=True):
            slopes[i] = part
    return slopes


def _joined(fields: Sequence[Field]) -> Field:
    """Blocks of one column as one."""
    names = ("rows", "x", "v", "x0", "target")
    shares = [torch.ones(len(f.rows), device=f.v.device) if f.share is None else f.share for f in fields]
    share = None if all(f.share is None for f in fields) else torch.cat(shares)
    joined = {name: torch.cat([getattr(f, name) for f in fields]) for name in names}
    return replace(fields[0], share=share, **joined)
