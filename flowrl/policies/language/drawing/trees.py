"""Trees of tokens: completions of a prompt that share their first tokens, each of which is drawn and computed once.

A tree's rows are its leaves. `node` tells the segments apart that its tokens belong to, `tree` the trees of a prompt.
All choices are functions of the seed, the prompt and what was chosen before, never of the batch.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.contracts import Drawing, Explored, Progress, Prompt, Rollout, Samples
from flowrl.policies.language.drawing.rows import Row, go_on
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.noise import Key, copy_numbers
from samplers.tokens import Generation

# every reward of samples, [B] by name, and their weighted sum, float64 [B]; NaN where it is not known
ScoreAll = Callable[[Samples], tuple[dict[str, Tensor], Tensor]]


class Forest:
    """The rows of some prompts while they grow.

    first: the number from which on rows of a prompt name their noise. Rows of prompt i are `rows[i]`.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        prompts: Sequence[Prompt],
        plan: Generation,
        seed: int,
        first: int,
        progress: Progress | None = None,
    ):
        self.policy, self.plan, self.progress = policy, plan, progress
        copy = copy_numbers(prompt.id for prompt in prompts)
        self._keys = [Key(seed, prompt.id, first, number) for prompt, number in zip(prompts, copy, strict=True)]
        policy.prepare(telling(prompts), plan)
        self._roots = policy.start(prompts, [[key] for key in self._keys], plan)
        self._named, self._nodes = [0] * len(prompts), [0] * len(prompts)
        self.rows: list[list[Row]] = [[] for _ in prompts]

    @classmethod
    def of(cls, policy: LanguagePolicy, drawing: Drawing, apart: int = 0) -> "Forest":
        """The rows of a drawing, without any yet. apart: further numbers of noise to leave out."""
        first = drawing.first + apart
        return cls(policy, drawing.prompts, drawing.plan, drawing.seed, first, drawing.progress)

    def root(self, i: int) -> Row:
        """A new row of prompt i, without a token."""
        row = self._roots[i].fork(0, self._key(i))
        row.prefix = None
        self.rows[i].append(row)
        return row

    def branch(self, i: int, row: Row, at: int) -> Row:
        """A new row of prompt i that shares the first `at` tokens of another."""
        made = row.fork(at, self._key(i)) if at else self.root(i)
        made.tree = row.tree
        if at:
            self.rows[i].append(made)
        return made

    def grow(self, live: Sequence[tuple[int, Row]], until: Sequence[int] | None = None, *, keep: bool = True) -> None:
        """Draws on in these rows, (prompt, row) each, in a new segment each; until: see `go_on`."""
        numbers = []
        for i, _ in live:
            self._nodes[i] += 1
            numbers.append(self._nodes[i])
        rows = [row for _, row in live]
        go_on(self.policy, rows, self.plan, until=until, keep=keep, node=numbers, progress=self.progress)

    def cut(self, i: int, row: Row, at: Sequence[int], begin: int = 0) -> None:
        """Gives the tokens of a row from `begin` on a segment each between these positions, which rise."""
        for start, end in zip([begin, *at], [*at, len(row.ids)], strict=True):
            self._nodes[i] += 1
            row.node[start:end] = [self._nodes[i]] * (end - start)

    def chance(self, i: int, *what: int | str) -> random.Random:
        """Random numbers for one use in the tree of a prompt."""
        return random.Random(self._keys[i].number("tree", *what))

    def live(self, row: Row) -> bool:
        """Whether a row has still room and no end."""
        return not row.ended and len(row.ids) < self.plan.max_new_tokens

    def completed(self) -> Rollout:
        """All rows as a rollout, prompt by prompt. Raises ValueError where prompts do not have equally many."""
        if len({len(rows) for rows in self.rows}) != 1:
            raise ValueError(f"trees of {[len(rows) for rows in self.rows]} leaves; give each prompt equally many")
        flat = [row for rows in self.rows for row in rows]
        group = torch.arange(len(self.rows)).repeat_interleave(len(self.rows[0]))
        return self.policy.completed(flat, group, self.plan)

    def explored(self) -> Explored:
        """The rows as they stand, and which share of their tokens had to be computed."""
        rollout = self.completed()
        once = {(i, row.node[at], at) for i, rows in enumerate(self.rows) for row in rows for at in range(len(row.ids))}
        return Explored(rollout, None, {"tree/computed": len(once) / int(rollout.replay.length.sum())})

    def _key(self, i: int) -> Key:
        own, self._named[i] = self._keys[i], self._named[i] + 1
        return Key(own.seed, own.prompt, own.index + self._named[i] - 1, own.copy)


def treepo(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    segment: int = 512,
    width: int = 2,
    roots: Sequence[int] = (2, 8),
) -> Explored:
    """Trees of a group's leaves each: TreePO (arXiv:2508.17445, algorithm 1 and its code).

    Between roots[0] and roots[1] rows begin at the prompt. After every `segment` tokens each row that goes on parts
    into `width`, as long as the leaves do not exceed the group. Where all rows have ended before, others go on from the
    begin of a random segment of a random row.
    """
    forest, group = Forest.of(policy, drawing), drawing.group
    live: list[tuple[int, Row]] = []
    for i in range(len(forest.rows)):
        number = min(forest.chance(i, "roots").randint(*roots), group)
        live += [(i, forest.root(i)) for _ in range(number)]
    turn = 0
    while live:
        forest.grow(live, [len(row.ids) // segment * segment + segment for _, row in live])
        going = [(i, row) for i, row in live if forest.live(row)]
        live, turn = list(going), turn + 1
        for i, row in going:
            extra = max(min(width - 1, group - len(forest.rows[i])), 0)
            live += [(i, forest.branch(i, row, len(row.ids))) for _ in range(extra)]
        at_work = {i for i, _ in live}
        for i, rows in enumerate(forest.rows):
            if i not in at_work:
                chance, ended = forest.chance(i, "fall back", turn), list(rows)
                for row in chance.choices(ended, k=group - len(ended)):
                    inside = [*range(segment, len(row.ids), segment)]
                    live.append((i, forest.branch(i, row, chance.choice(inside or [0]))))
    return forest.explored()


def tree_grpo(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    segment: int | None = None,
    split: str | None = None,
    trees: int = 2,
    expand: int = 2,
    rounds: int = 1,
) -> Explored:
    """`trees` trees of 1 + expand * rounds leaves each: Tree-GRPO (arXiv:2509.21240, section 3.2).

    Each begins as one row; in every round `expand` random nodes of each tree, none of them a leaf, are expanded to a
    whole row each. Nodes are the steps of a row: so many tokens (segment), or what ends with the text `split`.
    """
    forest = Forest.of(policy, drawing)
    for i in range(len(forest.rows)):
        for number in range(trees):
            forest.root(i).tree = number + 1
    first = [(i, row) for i, rows in enumerate(forest.rows) for row in rows]
    forest.grow(first)
    ends = {id(row): _step_ends(forest, i, row, segment, split) for i, row in first}
    for turn in range(rounds):
        live: list[tuple[int, Row]] = []
        begin: list[int] = []
        for i, rows in enumerate(forest.rows):
            for number in range(trees):
                chance = forest.chance(i, "expand", turn, number)
                mine = [(row, at) for row in rows if row.tree == number + 1 for at in ends.get(id(row), ())]
                for _ in range(expand):
                    row, at = chance.choice(mine) if mine else (next(r for r in rows if r.tree == number + 1), 0)
                    live.append((i, forest.branch(i, row, at)))
                    begin.append(at)
        forest.grow(live)
        for (i, row), at in zip(live, begin, strict=True):
            ends[id(row)] = _step_ends(forest, i, row, segment, split, at)
    return forest.explored()


def _step_ends(forest: Forest, i: int, row: Row, segment: int | None, split: str | None, begin: int = 0) -> list[int]:
    """Where the steps of a row end behind `begin`, its own end left out; its tokens get these as segments."""
    at = [end for end in step_ends(forest.policy, row.ids, segment, split) if end > begin]
    forest.cut(i, row, at, begin)
    return at


def step_ends(policy: LanguagePolicy, ids: Sequence[int], segment: int | None, split: str | None) -> list[int]:
    """Positions behind the last token of each step of a completion, that of the last step left out."""
    if segment is not None:
        return list(range(segment, len(ids), segment))
    ending = policy.tokens_with(split or "\n")
    return [k + 1 for k, token in enumerate(ids[:-1]) if token in ending]
