"""Plans whose samples share more than a start: BranchGRPO's trees, TempFlow-GRPO's and G2RPO's branches off a trunk.

A group are the samples that are compared with each other: the leaves of a branching tree, the children that leave the
trunk at one step. Rows are segments, compared with their peers: those of one depth, or of one step.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.plan import ROOT, OwnTable, Segment, Table, Tree
from samplers.solvers import Solver
from samplers.tables import Coarse


@dataclass(frozen=True, slots=True)
class Branching:
    """Every live segment parts into `widths[i]` at step `splits[i]` (BranchGRPO, arXiv 2509.06040).

    stochastic: steps that draw, the splits among them; the others follow the ODE, so that a window of stochastic steps
    is the paper's mixed form. trained: those that the loss sees; leaving some out is its depth pruning. share_noise: of
    several trees (group / product of widths). correlation, split_noise: of the draws where siblings part, see
    `Segment`; every sibling is scored by the density that it was really drawn from. credit, by_row: see `Tree`.
    tail, solver: see `Plan`. width_prune: which share `width_ratio` of the decisions behind the last split is trained,
    "branches" or "ends" (see flowrl.core.selection); None: all.

    Raises ValueError for splits that do not rise, lie outside the walk, or draw no noise, and for a group that is no
    multiple of the product of the widths.
    """

    num_steps: int
    splits: tuple[int, ...]
    widths: tuple[int, ...]
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    share_noise: bool = True
    correlation: float = 0.0
    split_noise: float = 1.0
    credit: str = "uniform"
    by_row: bool = True
    table: Table = OwnTable()
    tail: Table | None = None
    solver: Solver = "euler"
    width_prune: str | None = None
    width_ratio: float = 0.5

    def __post_init__(self) -> None:
        if len(self.splits) != len(self.widths) or not self.splits or min(self.widths) < 2:
            raise ValueError(f"splits={self.splits}, widths={self.widths}: give each split a width of 2 or more")
        if list(self.splits) != sorted(set(self.splits)) or not set(self.splits) <= set(self.stochastic):
            raise ValueError(f"splits={self.splits} must rise and draw noise; stochastic={self.stochastic}")
        if not self.trained or not set(self.trained) <= set(self.stochastic):
            raise ValueError(f"trained={self.trained}: give some of the stochastic steps {self.stochastic}")

    @property
    def leaves(self) -> int:
        """Samples of one tree."""
        return math.prod(self.widths)

    def tree(self, group: int) -> Tree:
        """The trees of `group` samples."""
        if group % self.leaves:
            raise ValueError(f"group={group} is no multiple of the {self.leaves} leaves of a tree")
        steps = self.table.num_steps(self.num_steps)
        has_tail = self.tail is not None or self.solver != "euler"
        last = self.stochastic[-1] + 1 if has_tail else steps
        bounds = [*self.splits, last]
        segments: list[Segment] = []
        trees = group // self.leaves
        # trees of one start are one trunk until something is drawn
        fan = min(self.stochastic[0], self.splits[0]) if self.share_noise and trees > 1 else 0
        trunk = self._add(segments, ROOT, 0, fan) if fan else ROOT
        for root in range(trees):
            start = 0 if self.share_noise else root
            live = [trunk]
            if self.splits[0] > fan:
                live = [self._add(segments, trunk, fan, self.splits[0], start=start)]
            for depth, (begin, end, width) in enumerate(zip(bounds, bounds[1:], self.widths, strict=False), 1):
                live = [
                    self._add(segments, parent, begin, end, start=start, depth=depth)
                    for parent in live
                    for _ in range(width)
                ]
            if last < steps:
                table, end = (0, steps) if self.tail is None else (1, self.tail.num_steps(self.num_steps))
                segments += [
                    Segment(parent, last, end, start=start, table=table, solver=self.solver) for parent in live
                ]
        tables = (self.table,) if self.tail is None else (self.table, self.tail)
        return Tree(self.num_steps, tuple(segments), tables, self.credit, self.by_row)

    def _add(
        self, segments: list[Segment], parent: int, begin: int, end: int, *, start: int = 0, depth: int = 0
    ) -> int:
        """Appends a segment; returns its position, which is also whose noise it draws."""
        inside = range(begin, end)
        segments.append(
            Segment(
                parent,
                begin,
                end,
                tuple(step for step in self.stochastic if step in inside),
                tuple(step for step in self.trained if step in inside),
                member=len(segments),
                start=start,
                scale=self.split_noise if depth else 1.0,
                correlation=self.correlation if depth else 0.0,
                peers=depth,
            )
        )
        return len(segments) - 1


@dataclass(frozen=True, slots=True)
class PerStep:
    """One trunk along the ODE for each anchor; at every step of `steps` children draw once and go on by the ODE.

    So the reward of a child is the worth of one step's draw: TempFlow-GRPO (arXiv 2508.04324), with steps all but the
    last. strides: each child is finished once by every stride, on a table of which, two levels after its draw, only
    every stride-th is left: G2RPO (arXiv 2510.01982) with strides (1, 2). The advantages of all strides are added.
    per_anchor: children are compared with those of their own anchor alone.

    Raises ValueError for a group that the anchors do not divide, for steps outside the walk, and for strides so long
    that no step is left to one, or that two of them would finish a child in the same way.
    """

    num_steps: int
    steps: tuple[int, ...]
    anchors: int = 1
    strides: tuple[int, ...] = (1,)
    per_anchor: bool = False
    table: Table = OwnTable()

    def __post_init__(self) -> None:
        number = self.table.num_steps(self.num_steps)
        if list(self.steps) != sorted(set(self.steps)) or not self.steps or not 0 <= self.steps[0] <= self.steps[-1]:
            raise ValueError(f"steps={self.steps} must rise from 0 without repeats")
        if self.anchors < 1 or not self.strides or min(self.strides) < 1 or len(set(self.strides)) < len(self.strides):
            raise ValueError(f"anchors={self.anchors}, strides={self.strides}: give 1 or more, strides without repeats")
        highest = number - 1 - _needed(self.strides)
        if self.steps[-1] > highest:
            raise ValueError(f"steps={self.steps}: strides {self.strides} of {number} steps want {highest} or less")

    def tree(self, group: int) -> Tree:
        """The trunks and branches of `group` children a step."""
        if group % self.anchors:
            raise ValueError(f"group={group} is no multiple of anchors={self.anchors}")
        number = self.table.num_steps(self.num_steps)
        tables: list[Table] = [self.table]
        segments: list[Segment] = []
        for anchor in range(self.anchors):
            trunk = ROOT
            for i, step in enumerate(self.steps):
                begin = self.steps[i - 1] if i else 0
                if step > begin:
                    segments.append(Segment(trunk, begin, step, start=anchor))
                    trunk = len(segments) - 1
                peers = i + (anchor * len(self.steps) if self.per_anchor else 0)
                for child in range(group // self.anchors):
                    member = anchor * (group // self.anchors) + child
                    end = number if self.strides == (1,) else step + 2
                    own = Segment(trunk, step, end, (step,), (step,), member=member, start=anchor, peers=peers)
                    segments.append(own)
                    if self.strides != (1,):
                        segments += self._tails(len(segments) - 1, step + 2, own, tables)
        return Tree(self.num_steps, tuple(segments), tuple(tables))

    def _tails(self, parent: int, begin: int, child: Segment, tables: list[Table]) -> Iterator[Segment]:
        """What finishes a child, once a stride."""
        for view, stride in enumerate(self.strides):
            table = self.table if stride == 1 else Coarse(begin, stride, self.table)
            if table not in tables:
                tables.append(table)
            yield Segment(
                parent,
                begin,
                table.num_steps(self.num_steps),
                member=child.member,
                start=child.start,
                table=tables.index(table),
                view=view,
            )


def _needed(strides: tuple[int, ...]) -> int:
    """Steps that have to follow a draw, so that every stride finishes it in a way of its own."""
    return 0 if strides == (1,) else 2 + (sorted(strides)[-2] if len(strides) > 1 else 0)


def peers(tree: Tree) -> Tensor:
    """Which rows of a prompt are compared with each other: int64 [rows]."""
    return torch.tensor([tree.segments[i].peers for i in tree.rows], dtype=torch.int64)


def credit_weights(tree: Tree, edge_logp: Tensor | None = None) -> Tensor:
    """How the samples of a prompt reach its rows, float32 [P, V, rows, leaves]: each row's weights sum to 1 in a view.

    uniform: the mean over the leaves that grow out of a row; P is 1. path_probability: a row that parts into others
    takes theirs by the softmax of their edge log-probs, float [P, rows], which is BranchGRPO's other fusion (as
    published, of means over elements, so that the weights are all but equal).

    Raises ValueError where path_probability is given no log-probs.
    """
    if tree.credit == "path_probability" and edge_logp is None:
        raise ValueError("credit by path probability needs the log-probs of the edges: give edge_logp [P, rows]")
    given = torch.zeros(1, len(tree.rows)) if edge_logp is None or tree.credit == "uniform" else edge_logp.double()
    views = sorted({tree.segments[i].view for i in tree.leaves})
    weights = [_reach(tree, i, given, view) for view in views for i in tree.rows]
    return torch.stack(weights, 1).unflatten(1, (len(views), -1)).float()


def _reach(tree: Tree, segment: int, edge_logp: Tensor, view: int) -> Tensor:
    """Weights [P, leaves] of the leaves of a view under one segment; all 0 where it has none."""
    weights = edge_logp.new_zeros((len(edge_logp), len(tree.leaves)))
    children = [i for i, s in enumerate(tree.segments) if s.parent == segment]
    if not children:
        if tree.segments[segment].view == view:
            weights[:, tree.leaves.index(segment)] = 1
        return weights
    parts = [_reach(tree, child, edge_logp, view) for child in children]
    if tree.credit == "path_probability" and all(child in tree.rows for child in children):
        at = [tree.rows.index(child) for child in children]
        share: Iterable[Tensor] = edge_logp[:, at].softmax(1).unbind(1)
    else:
        number = [_leaves_below(tree, child, view) for child in children]
        share = [edge_logp.new_full((len(edge_logp),), n / max(sum(number), 1)) for n in number]
    return sum((w[:, None] * part for w, part in zip(share, parts, strict=True)), start=weights)


def _leaves_below(tree: Tree, segment: int, view: int) -> int:
    return sum(segment in tree.path(leaf) for leaf in tree.leaves if tree.segments[leaf].view == view)


def lines(tree: Tree) -> list[str]:
    """Rows of the denoiser at each step of each table, trained steps marked: one line a table."""
    described = []
    for table in range(len(tree.tables)):
        at: dict[int, int] = {}
        for front in tree.fronts:
            if front.table == table:
                at[front.step] = at.get(front.step, 0) + len(front.units)
        marks = [f"{at[step]}{'●' if table == 0 and step in tree.trained else ''}" for step in sorted(at)]
        if marks and table == 0:
            described.append(" ".join(marks))
        elif marks:
            described.append(f"and from step {min(at)} of table {table + 1}: " + " ".join(marks))
    return described


def picture(tree: Tree) -> str:
    """One character a step: · ODE, o draws noise, ● draws noise and is trained; | where a cheaper tail begins."""
    own = [s for s in tree.segments if s.table == 0]
    drawn = {step for s in own for step in s.stochastic}
    marks = {step: "●" if step in tree.trained else "o" for step in drawn}
    text = "".join(marks.get(step, "·") for step in range(max(s.end for s in own)))
    tails = [s for s in tree.segments if s.solver != "euler" and s.begin > 0]
    if not tails:
        return text
    return text[: tails[0].begin] + "|" + "·" * (tails[0].end - tails[0].begin)
