"""What a rollout stores for its replay: states and draws of the trained steps, laid out by the tree that was walked.

All prompts walk the same tree, so that every tensor here is rectangular: prompt by prompt, the same number of entries
for each. Which segment an entry belongs to is known from the tree alone (samplers/decisions.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.noise import Key, copy_numbers
from flowrl.policies.pipelines.steps.intercepted import Path
from samplers.plan import Tree

Streams = dict[int, Tensor]  # by stream: 0 for the pipeline's own scheduler, more for its deep copies


@dataclass
class Trajectory:
    """What a rollout of P prompts stored: only what its trained steps need.

    Sample members take their noise from (seed, prompt id, first + member). copies: for each prompt, how many equal
    ones the rollout has before it, which draw other noise. By step and stream, prompt by prompt:
    enter, the states that decisions start from (none before step 0, which the pipeline draws again); drawn, the states
    after them; keep, elements that the pipeline did not overwrite; mean, the means drawn from, where they were asked
    for; reference, the means under the reference policy, laid out like enter. complete: for pipelines whose denoisers
    run in skipped iterations too, `states` holds the state after every step of every segment. Where samples are to be
    noised again: clean, their final states by stream; levels, those of the columns (see looks/noised.py); path, what
    they are levels of. Of columns that are states of the walk (see looks/visited.py): walked, these states by column
    and stream; ends, the levels that the columns' steps lead to; factors, what their steps weigh; judged, the estimates
    of x_0 that rewards judge in place of the samples; end, the level that the walk ends at. initial: the noise that the
    walks began with, by stream, where the tree keeps it or a column needs it. token_levels: by stream, of pipelines
    with a level a token, the highest that each has, [P, tokens, 1].
    """

    prompts: list[Prompt]
    tree: Tree
    seed: int
    first: int = 0
    complete: bool = False
    copies: list[int] = field(default_factory=list)
    enter: dict[int, Streams] = field(default_factory=dict)
    drawn: dict[int, Streams] = field(default_factory=dict)
    keep: dict[int, Streams] = field(default_factory=dict)
    mean: dict[int, Streams] = field(default_factory=dict)
    reference: dict[int, Streams] = field(default_factory=dict)
    states: dict[tuple[int, int], Streams] = field(default_factory=dict)  # by (segment, step)
    clean: Streams = field(default_factory=dict)
    levels: tuple[float, ...] = ()
    path: Path = "flow"
    walked: dict[int, Streams] = field(default_factory=dict)
    initial: Streams = field(default_factory=dict)
    ends: tuple[float, ...] = ()
    token_levels: Streams = field(default_factory=dict)
    factors: tuple[float, ...] = ()
    judged: Streams = field(default_factory=dict)
    end: float = 0.0

    def __post_init__(self) -> None:
        self.copies = self.copies or copy_numbers(p.id for p in self.prompts)

    def __len__(self) -> int:
        return len(self.prompts) * len(self.tree.rows)

    def keys(self, segments: Sequence[int]) -> list[Key]:
        """The samples whose noise these segments draw, prompt by prompt."""
        members = [self.first + self.tree.segments[i].member for i in segments]
        named = zip(self.prompts, self.copies, strict=True)
        return [Key(self.seed, p.id, member, copy) for p, copy in named for member in members]

    def start(self, prompt: int, segment: int) -> Key:
        """The sample whose initial noise a segment of a prompt starts from."""
        root = self.tree.segments[self.tree.path(segment)[0]]
        return Key(self.seed, self.prompts[prompt].id, self.first + root.start, self.copies[prompt])

    def segment_holding(self, segment: int, step: int) -> int:
        """The segment on the way to `segment` that holds a step."""
        return next(i for i in self.tree.path(segment) if step < self.tree.segments[i].end)


def join_trajectories(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of consecutive prompts as one."""
    if len(trajectories) == 1:
        return trajectories[0]
    first = trajectories[0]
    clean, initial, judged, token_levels = (
        {s: torch.cat([getattr(t, name)[s] for t in trajectories]) for s in getattr(first, name)}
        for name in ("clean", "initial", "judged", "token_levels")
    )
    whole = Trajectory(
        [p for t in trajectories for p in t.prompts],
        first.tree,
        first.seed,
        first.first,
        first.complete,
        [copy for t in trajectories for copy in t.copies],
        clean=clean,
        levels=first.levels,
        path=first.path,
        initial=initial,
        ends=first.ends,
        token_levels=token_levels,
        factors=first.factors,
        judged=judged,
        end=first.end,
    )
    joined: dict[tuple[int, ...], Tensor] = {}  # a state that is stored under two names is one tensor, before and after

    def join(parts: list[Tensor]) -> Tensor:
        key = tuple(map(id, parts))
        if key not in joined:
            joined[key] = torch.cat(parts)
        return joined[key]

    for name in ("enter", "drawn", "mean", "states", "walked"):
        parts = [getattr(t, name) for t in trajectories]
        for at in parts[0]:
            getattr(whole, name)[at] = {s: join([p[at][s] for p in parts]) for s in parts[0][at]}
    for step in first.drawn:
        overwritten = {s for t in trajectories for s in t.keep.get(step, {})}
        if overwritten:
            whole.keep[step] = {s: torch.cat([_kept(t, step, s) for t in trajectories]) for s in overwritten}
    return whole


def _kept(trajectory: Trajectory, step: int, stream: int) -> Tensor:
    kept = trajectory.keep.get(step, {}).get(stream)
    return torch.ones_like(trajectory.drawn[step][stream], dtype=torch.bool) if kept is None else kept


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows], without a copy where rows are all of them in order."""
    if len(rows) == len(tensor) and bool((rows == torch.arange(len(rows))).all()):
        return tensor
    return tensor[rows.to(tensor.device)]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """[P, ...] of n segments as [P * n, ...], prompt by prompt."""
    return torch.stack(list(parts), 1).flatten(0, 1)


def positions(of: Sequence[int], width: int, num_prompts: int) -> Tensor:
    """Rows of these positions, int64 [num_prompts * len(of)], prompt by prompt, of `width` rows each."""
    return (torch.arange(num_prompts)[:, None] * width + torch.tensor(of, dtype=torch.int64)[None]).flatten()
