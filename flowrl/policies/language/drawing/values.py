"""Monte-Carlo values of the steps of completions, by drawing on from where each begins."""

import torch

from flowrl.contracts import Drawing, Explored
from flowrl.policies.language.drawing.guided import FAR
from flowrl.policies.language.drawing.trees import Forest, ScoreAll, step_ends
from flowrl.policies.language.policy import LanguagePolicy


def values(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    continuations: int = 9,
    steps: int = 20,
    split: str | None = None,
    segment: int | None = None,
) -> Explored:
    """Completions whose step_stats have `value`: what came of `continuations` from the begin of a step, on average.

    VinePPO (arXiv:2410.01679, section 4). Steps are so many tokens (segment) or end with the text `split` (a new line);
    of a completion the first `steps` are valued, others have NaN. The begin of a prompt is valued once, and so is every
    begin that completions share. Continuations are scored and not trained.
    """
    forest = Forest.of(policy, drawing)
    for i in range(len(drawing.prompts)):
        for _ in range(drawing.group):
            forest.root(i)
    forest.grow([(i, row) for i, rows in enumerate(forest.rows) for row in rows])
    probes = Forest.of(policy, drawing, FAR)
    place: dict[tuple[int, ...], int] = {}
    valued: list[list[tuple[int, int, int]]] = []  # of each row: where a step begins and ends, and its number
    live = []
    for i, rows in enumerate(forest.rows):
        for row in rows:
            ends = step_ends(policy, row.ids, segment, split)
            forest.cut(i, row, ends)
            valued.append([])
            for at, end in list(zip([0, *ends], [*ends, len(row.ids)], strict=True))[:steps]:
                state = (i, *row.ids[:at])
                if state not in place:
                    place[state] = len(place)
                    live += [(i, probes.branch(i, row, at)) for _ in range(continuations)]
                valued[-1].append((at, end, place[state]))
    group = torch.tensor([i for i, _ in live])
    probes.grow(live, keep=False)
    _, total = score(policy.completed([row for _, row in live], group, drawing.plan).samples)
    mean = total.unflatten(0, (-1, continuations)).nanmean(1)
    rollout = forest.completed()
    value = torch.full(rollout.mask.shape, torch.nan)
    for row, own in enumerate(valued):
        for at, end, number in own:
            value[row, at:end] = float(mean[number])
    rollout.step_stats["value"] = value
    metrics = {"values/states": len(place) / len(rollout.mask), "values/continuations": float(len(live))}
    return Explored(rollout, None, metrics | {"values/mean": float(mean.nanmean())})
