"""Search among the segments of completions, or the turns of conversations, by what came of them: DeepSearch
(arXiv:2509.25454)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from flowrl.contracts import Drawing, Explored, Rollout, Samples
from flowrl.policies.language.drawing.rows import Row
from flowrl.policies.language.drawing.trees import Forest, ScoreAll
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.state import Talk


@dataclass
class Node:
    """A segment of a tree: the row up to its end, what is known of it, and what grows out of it.

    talk: the conversation up to there, where segments are turns with what was shown behind them.
    """

    row: Row
    depth: int = 0
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    value: float = 0.0
    visits: int = 0
    final: float | None = None  # of a leaf: 1 right, -1 wrong, 0 not known
    taken: bool = False
    talk: Talk | None = None

    @property
    def quality(self) -> float:
        """The mean value of a visit."""
        return self.value / self.visits if self.visits else 0.0

    def leaves(self) -> list["Node"]:
        """Its children that are leaves and no sample yet; those of which nothing is known where no child is open."""
        own = [child for child in self.children if child.final is not None and not child.taken]
        known = [child for child in own if child.final]
        return known if known or any(child.final is None for child in self.children) else own

    def path(self) -> list["Node"]:
        """The nodes from the root to this one."""
        return [*(self.parent.path() if self.parent else []), self]

    def uct(self, weight: float) -> float:
        """The upper confidence bound (eq. 3)."""
        above = self.parent.visits if self.parent else 0
        return self.quality + (weight * math.sqrt(math.log(above) / self.visits) if above and self.visits else 0.0)

    def update(self, value: float, length: int, least: float) -> None:
        """Adds what a leaf of a path of `length` nodes was worth; a right leaf outweighs all wrong ones (eq. 6)."""
        self.visits += 1
        if not value:
            return
        gain = max((self.depth + 1) / length, least) * value
        if self.value * value >= 0:
            self.value += gain
        elif value > 0:
            self.value = gain

    def surprise(self) -> float:
        """The mean of -log p over the drawn tokens of the path, which stands for their entropy."""
        known = [value for value in self.row.logp if value == value]
        return -sum(known) / max(len(known), 1)


class Growth(Protocol):
    """What nodes are made of. depth: how many a path has at most."""

    depth: int

    def root(self, i: int) -> Node:
        """The tree of prompt i, in which nothing was drawn."""
        ...

    def expand(self, parents: Sequence[tuple[int, Node]]) -> list[Node]:
        """One further child of each, (prompt, node), which it does not have yet."""
        ...

    def ended(self, node: Node) -> bool:
        """Whether nothing can follow."""
        ...

    def chance(self, i: int, *what: int | str) -> random.Random:
        """Random numbers for one use in the tree of a prompt."""
        ...

    def samples(self, leaves: Sequence[Node], group: torch.Tensor) -> Samples:
        """Leaves as samples; group int64 [B] as in `Samples`."""
        ...

    def completed(self, found: Sequence[Sequence[Node]]) -> Rollout:
        """The rollout of these leaves of each prompt."""
        ...


class Segments:
    """Nodes of so many tokens."""

    def __init__(self, policy: LanguagePolicy, drawing: Drawing, segment: int):
        self.policy, self.drawing, self.segment = policy, drawing, segment
        self.forest = Forest.of(policy, drawing)
        self.depth = -(-drawing.plan.max_new_tokens // segment)
        self.chance = self.forest.chance

    def root(self, i: int) -> Node:
        """See `Growth`."""
        return Node(self.forest.root(i))

    def expand(self, parents: Sequence[tuple[int, Node]]) -> list[Node]:
        """See `Growth`."""
        rows = [(i, self.forest.branch(i, node.row, len(node.row.ids))) for i, node in parents]
        ends = [min(len(row.ids) + self.segment, self.drawing.plan.max_new_tokens) for _, row in rows]
        self.forest.grow(rows, ends)
        return [Node(row, node.depth + 1, node) for (_, row), (_, node) in zip(rows, parents, strict=True)]

    def ended(self, node: Node) -> bool:
        """See `Growth`."""
        return not self.forest.live(node.row)

    def samples(self, leaves: Sequence[Node], group: torch.Tensor) -> Samples:
        """See `Growth`."""
        return self.policy.completed([node.row for node in leaves], group, self.drawing.plan).samples

    def completed(self, found: Sequence[Sequence[Node]]) -> Rollout:
        """See `Growth`."""
        self.forest.rows = [[node.row for node in own] for own in found]
        return self.forest.completed()


@dataclass
class Tree:
    """The tree of one prompt. explore: weight of the confidence bound; least: see `Node.update`; frontier: weights of a
    parent's quality, of surprise and of depth where the whole tree is looked over for the next node."""

    i: int
    root: Node
    width: int
    depth: int
    explore: float
    least: float
    frontier: tuple[float, float, float]
    now: Node | None = None
    found: list[Node] = field(default_factory=list)

    def take(self, growth: Growth) -> None:
        """Backs up what the children of the present node were worth, and chooses the next one to expand."""
        assert self.now is not None
        ended = self.now.leaves()
        for child in self.now.children:
            if child.final is None and not child.visits:
                child.update(0.0, 1, self.least)
        if ended:
            self._back_up(ended)
        open_children = [child for child in self.now.children if child.final is None]
        if ended or not open_children:
            self.now = self._best()
        else:
            weights = [math.exp(child.uct(self.explore)) for child in open_children]
            chance = growth.chance(self.i, "select", self.now.visits, len(self.now.row.ids), len(self.found))
            self.now = chance.choices(open_children, weights)[0]

    def _back_up(self, ended: list[Node]) -> None:
        best = max(child.final or 0.0 for child in ended)
        chosen = min((child for child in ended if child.final == best), key=Node.surprise)
        chosen.taken = True
        self.found.append(chosen)
        for node in chosen.path():
            node.update(best, chosen.depth + 1, self.least)

    def _best(self) -> Node:
        """The open node of the highest frontier score (eq. 5); the root where none is open."""
        stack, best, highest = [self.root], self.root, -math.inf
        while stack:
            node = stack.pop()
            stack += reversed(node.children)
            if node.parent is None or node.final is not None or len(node.children) >= self.width:
                continue
            a, b, c = self.frontier
            score = a * math.tanh(node.parent.quality) + c * math.sqrt(node.depth / self.depth)
            score += b * node.surprise() if b else 0.0
            if score > highest:
                best, highest = node, score
        return best


def deepsearch(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    segment: int = 256,
    width: int = 8,
    explore: float = 2.0,
    least: float = 0.1,
    frontier: tuple[float, float, float] = (0.4, 0.0, 0.01),
    right: float = 0.0,
    growth: Growth | None = None,
) -> Explored:
    """Completions that a search finds, as many as a group has: DeepSearch (arXiv:2509.25454, its code).

    A node is expanded by `width` segments of so many tokens. Of its leaves the surest right one, else the surest wrong
    one is backed up and becomes a sample; then the whole tree is looked over (frontier). Without a leaf the search goes
    down by the confidence bound (explore). right: a leaf is right where its rewards add up to more. step_stats has
    `value` of each token's node once the search is over. Whatever was drawn and is in no sample is not trained. growth:
    what nodes are made of, where they are no segments; a leaf whose rewards are not known is taken where nothing else
    follows, and backs nothing up.
    """
    growth = Segments(policy, drawing, segment) if growth is None else growth
    trees = []
    for i in range(len(drawing.prompts)):
        root = growth.root(i)
        trees.append(Tree(i, root, width, growth.depth, explore, least, frontier, now=root))
    drawn = 0
    while waiting := [tree for tree in trees if len(tree.found) < drawing.group]:
        parents: list[tuple[int, Node]] = []
        for tree in waiting:
            node = tree.now or tree.root
            number = width - len(node.children) if len(node.children) < width else 0 if node.leaves() else width
            parents += [(tree.i, node)] * number
        new = growth.expand(parents) if parents else []
        for (_, parent), node in zip(parents, new, strict=True):
            parent.children.append(node)
        leaves = [(i, node) for (i, _), node in zip(parents, new, strict=True) if growth.ended(node)]
        drawn += len(leaves)
        if leaves:
            group = torch.tensor([i for i, _ in leaves])
            _, total = score(growth.samples([node for _, node in leaves], group))
            for (_, node), value in zip(leaves, total.tolist(), strict=True):
                node.final = 0.0 if math.isnan(value) and node.talk is not None else 1.0 if value > right else -1.0
        for tree in waiting:
            tree.take(growth)
    rollout = growth.completed([tree.found for tree in trees])
    rollout.step_stats["value"] = _node_values(trees, rollout.mask.shape[1])
    right_ones = sum(node.final == 1.0 for tree in trees for node in tree.found)
    metrics = {"search/leaves": drawn / len(trees), "search/right": right_ones / (len(trees) * drawing.group)}
    return Explored(rollout, None, metrics)


def _node_values(trees: list[Tree], width: int) -> torch.Tensor:
    """The value of the node of each token, float32 [R, K], 0 behind a row's end."""
    found = torch.zeros(sum(len(tree.found) for tree in trees), width)
    for row, leaf in enumerate(leaf for tree in trees for leaf in tree.found):
        begin = 0
        for node in leaf.path()[1:]:
            end = len(node.row.ids)
            found[row, begin:end] = node.value
            begin = end
    return found
