"""The trees of a recipe: out of the walk of an iteration, a plan whose samples share more than a start.

    def my_tree(walk: Walk, *, children: int = 2) -> Tree: ...

A function (walk, *, ...) gives a `Tree`, or a plan with `tree(group)`; its other arguments are keys of `sampler.tree`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from samplers import windows
from samplers.plan import OwnTable, Table, Tree
from samplers.solvers import Solver
from samplers.trees import Branching, PerStep


@dataclass(frozen=True, slots=True)
class Walk:
    """The walk of an iteration, and the samples that are wanted.

    num_steps: of the pipeline's own table. stochastic, trained: the window's steps, counted along `table`. group: the
    samples of a prompt that are compared. table, tail, solver, share_noise: see `plan.Plan`.
    """

    num_steps: int
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    group: int
    iteration: int
    share_noise: bool = False
    table: Table = OwnTable()
    tail: Table | None = None
    solver: Solver = "euler"


@dataclass(frozen=True, slots=True)
class Grown:
    """The plan of a tree of one's own, made for one number of samples."""

    num_steps: int
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    made: Tree

    def tree(self, group: int) -> Tree:
        """The tree, which was made for `group` samples."""
        return self.made


def branch(
    walk: Walk,
    *,
    splits: Annotated[list[int], "a list of steps that rise"],
    splits_from: Literal["start", "window"] = "start",
    widths: Annotated[int | list[int], "a whole number >= 2, or a list of one for each split"] = 2,
    correlation: Annotated[float, "in [0, 1)"] = 0.0,
    split_noise: Annotated[float, "> 0"] = 1.0,
    credit: Literal["uniform", "path_probability"] = "uniform",
    compare: Literal["depth", "leaves"] = "depth",
    prune: Annotated[list[int], "a list of steps"] = [],  # noqa: B006 - it is only read
    prune_interval: Annotated[int, ">= 1"] | None = None,
    prune_stop: Annotated[int, ">= 0"] = 0,
    prune_until: Annotated[int, ">= 0"] | None = None,
    width_prune: Literal["branches", "ends"] | None = None,
    width_ratio: Annotated[float, "in (0, 1)"] = 0.5,
) -> Branching:
    """At each of `splits` every live row splits into `widths` rows (BranchGRPO, arXiv 2509.06040).

    widths: one number, or one a split; train.group is the number of leaves of all trees of a prompt. splits_from
    window: splits count from the window's first step. correlation: between the draws of siblings where they part;
    split_noise: factor of its std. credit: how leaves' rewards reach the rows above. compare depth: rows with those of
    their depth; leaves: samples with each other, and rows take the mean of their advantages. prune: steps that are
    drawn and not trained, one step nearer to the start every prune_interval iterations until the first is prune_stop;
    all are trained after iteration prune_until. width_prune: behind the last split only width_ratio of decisions are
    trained: of each branch (its earliest: they share an advantage), or the best and worst of all, by ends.
    """
    pruned = windows.pruned(
        tuple(prune), interval=prune_interval, stop=prune_stop, iteration=walk.iteration, until=prune_until
    )
    over = prune_until is not None and walk.iteration > prune_until
    offset = walk.stochastic[0] if splits_from == "window" else 0
    return Branching(
        walk.num_steps,
        tuple(offset + split for split in splits),
        (widths,) * len(splits) if isinstance(widths, int) else tuple(widths),
        walk.stochastic,
        tuple(step for step in walk.trained if step not in pruned),
        correlation=correlation,
        split_noise=split_noise,
        credit=credit,
        by_row=compare != "leaves",
        width_prune=None if over else width_prune,
        width_ratio=width_ratio,
        **_ends(walk),
    )


def per_step(
    walk: Walk,
    *,
    anchors: Annotated[int, ">= 1"] = 1,
    per_anchor: bool = False,
    strides: Annotated[list[int], "a list of whole numbers >= 1"] = [1],  # noqa: B006 - it is only read
) -> PerStep:
    """At each step of the window train.group children branch off the ODE trajectory (TempFlow-GRPO, G2RPO).

    They part over `anchors` trunks. per_anchor: children are compared with those of their trunk alone. strides: every
    child is finished once by each, on ever coarser tables (TempFlow-GRPO: arXiv 2508.04324, G2RPO: arXiv 2510.01982).
    """
    return PerStep(walk.num_steps, walk.trained, anchors, tuple(strides), per_anchor, walk.table)


def _ends(walk: Walk) -> dict[str, Any]:
    """How the samples of a branching tree begin and end, which the walk says."""
    return {"table": walk.table, "tail": walk.tail, "solver": walk.solver, "share_noise": walk.share_noise}


# kind of tree in a recipe -> the function, whose arguments are its keys
TREES = {"branch": branch, "per_step": per_step}
