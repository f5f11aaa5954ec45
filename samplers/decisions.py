"""Where the trained decisions of a tree stand, and what they cost: for rollouts of P prompts that all walk that tree.

Rows of such a rollout lie prompt by prompt, `Tree.rows` of each; the states of a step likewise.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from samplers.plan import Tree, Unit


@dataclass(frozen=True)
class Decisions:
    """The trained decisions of one step, for one prompt.

    units: the states that they start from, each a unit of the tree. rows: positions in `Tree.rows`, rising; unit_of:
    for each of them, position in units.
    """

    units: tuple[Unit, ...]
    rows: tuple[int, ...]
    unit_of: tuple[int, ...]

    def find(self, rows: Tensor, rows_per_prompt: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows int64 [r] of a rollout: those with a decision here, its place among all of the step, its state."""
        place = torch.full((rows_per_prompt,), -1)
        place[list(self.rows)] = torch.arange(len(self.rows))
        at = place[rows % rows_per_prompt]
        rows, at = rows[at >= 0], at[at >= 0]
        prompt = rows // rows_per_prompt
        states = prompt * len(self.units) + torch.tensor(self.unit_of, dtype=torch.int64)[at]
        return rows, prompt * len(self.rows) + at, states


@lru_cache(64)
def decisions(tree: Tree) -> dict[int, Decisions]:
    """The trained decisions of a tree, by step."""
    position = {segment: i for i, segment in enumerate(tree.rows)}
    by_step = {}
    for front in tree.fronts:
        if front.table != 0 or front.step not in tree.trained:
            continue
        units, pairs = [], []
        for unit in front.units:
            here = [i for i in unit if front.step in tree.segments[i].trained]
            pairs += [(position[i], len(units)) for i in here]
            units += [unit] if here else []
        if not units:  # of a step that others only pass on their way
            continue
        pairs.sort()
        by_step[front.step] = Decisions(tuple(units), tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
    return by_step


@lru_cache(256)
def replay_forwards(
    tree: Tree, num_prompts: int, updates: int, micro_batch: int | None, *, by_step: bool = False
) -> int:
    """Row-forwards of one replay of all rows in `updates` blocks, each cut into micro-batches: a state at a time once
    a micro-batch, whatever number of its rows comes from it. by_step: the blocks are steps, not prompts."""
    number = len(tree.rows)
    rows = torch.arange(num_prompts * number)
    if by_step:
        first = torch.tensor([tree.segments[i].trained[0] for i in tree.rows])[rows % number]
        first_steps = first.unique()
        blocks = [rows[torch.isin(first, part)] for part in first_steps.split(-(-len(first_steps) // updates))]
    else:
        blocks = list(rows.split(-(-len(rows) // updates)))
    parts = [part for block in blocks for part in block.split(micro_batch or len(block))]
    part_of = torch.empty_like(rows)
    part_of[torch.cat(parts)] = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p) for p in parts]))
    total = 0
    for step_decisions in decisions(tree).values():
        here, _, states = step_decisions.find(rows, number)
        total += len((part_of[here] * len(rows) + states).unique())  # a step has no more states than there are rows
    return total


def stored_states(tree: Tree, *, in_one_piece: bool = True) -> tuple[int, int]:
    """(latents that a rollout stores for one prompt, how many states its decisions start from).

    Stored are each draw and, but for step 0, the state it started from. Where that is the draw of the step before, both
    are one tensor as long as the rows of a prompt are not put together from pieces.
    """
    stored = states = 0
    for part in tree.passes():
        before: tuple[Unit, ...] | None = None
        for front in part.fronts:
            layout = decisions(tree).get(front.step)
            if layout is not None and set(layout.units) <= set(front.units):
                shared = in_one_piece and before is not None and len(layout.units) == len(front.units)
                shared = shared and all(
                    front.step - 1 in tree.segments[i].trained for unit in before or () for i in unit
                )
                stored += len(layout.rows) + (0 if front.step == 0 or shared else len(layout.units))
                states += len(layout.units)
            before = front.units
    return stored, states
