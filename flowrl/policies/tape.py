"""What a rollout stores for its replay."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.noise import Key
from samplers.plan import Plan

Streams = dict[int, Tensor]  # by stream: 0 for the pipeline's own scheduler, more for its deep copies


@dataclass
class Tape:
    """What a rollout of R rows stored: only what its trained steps need.

    keys: whose noise a row's steps take; starts: whose initial noise. enter: the state before a trained step (none
    before step 0, which the pipeline draws again). drawn: the state after it. keep: elements that the pipeline did not
    overwrite. Where the step ran once for several rows, parent [R] gives each row's place among the states in `enter`
    and lead [U] a row that stands for them. reference: means under the reference policy. complete: the state before
    every iteration is stored, for pipelines whose denoisers run in skipped iterations too. company: where a row depends
    on the longest prompt of its call, the rows that stand for that prompt, for each row.
    """

    prompts: list[Prompt]
    keys: list[Key]
    starts: list[Key]
    plan: Plan
    complete: bool = False
    enter: dict[int, Streams] = field(default_factory=dict)
    drawn: dict[int, Streams] = field(default_factory=dict)
    keep: dict[int, Streams] = field(default_factory=dict)
    parent: dict[int, Tensor] = field(default_factory=dict)
    lead: dict[int, Tensor] = field(default_factory=dict)
    reference: dict[int, Streams] = field(default_factory=dict)
    company: list[tuple[int, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)


def joined(tapes: Sequence[Tape]) -> Tape:
    """The tapes of consecutive rows as one."""
    if len(tapes) == 1:
        return tapes[0]
    whole = Tape(
        prompts=[p for t in tapes for p in t.prompts],
        keys=[k for t in tapes for k in t.keys],
        starts=[k for t in tapes for k in t.starts],
        plan=tapes[0].plan,
        complete=tapes[0].complete,
    )
    for name in ("enter", "drawn"):
        parts = [getattr(t, name) for t in tapes]
        for step in parts[0]:
            getattr(whole, name)[step] = {s: torch.cat([p[step][s] for p in parts]) for s in parts[0][step]}
    for step in tapes[0].drawn:
        overwritten = {s for t in tapes for s in t.keep.get(step, {})}
        if overwritten:
            whole.keep[step] = {s: torch.cat([_kept(t, step, s) for t in tapes]) for s in overwritten}
    rows = _offsets([len(t) for t in tapes])
    whole.company = [tuple(i + o for i in c) for t, o in zip(tapes, rows, strict=True) for c in t.company]
    for step in tapes[0].parent:
        states = _offsets([len(t.lead[step]) for t in tapes])
        whole.parent[step] = torch.cat([t.parent[step] + o for t, o in zip(tapes, states, strict=True)])
        whole.lead[step] = torch.cat([t.lead[step] + o for t, o in zip(tapes, rows, strict=True)])
    return whole


def _offsets(lengths: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths[:-1])]


def _kept(tape: Tape, step: int, stream: int) -> Tensor:
    kept = tape.keep.get(step, {}).get(stream)
    return torch.ones_like(tape.drawn[step][stream], dtype=torch.bool) if kept is None else kept


def in_company(tape: Tape, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows [r] in parts that shared a call in the rollout, and each part with the company that it needs behind it.

    Company is needed only where the part has no row of the same prompt.
    """
    if not tape.company:
        yield rows, rows
        return
    for company in dict.fromkeys(tape.company[i] for i in rows.tolist()):
        part = rows[torch.tensor([tape.company[i] == company for i in rows.tolist()])]
        present = {tape.prompts[i].text for i in part.tolist()}
        extra = [i for i in company if tape.prompts[i].text not in present]
        yield part, torch.cat([part, torch.tensor(extra, dtype=torch.int64)])


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows], without a copy where rows are all of them in order."""
    if len(rows) == len(tensor) and bool((rows == torch.arange(len(rows))).all()):
        return tensor
    return tensor[rows.to(tensor.device)]
