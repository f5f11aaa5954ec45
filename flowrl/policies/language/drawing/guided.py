"""Completions that are helped after they were scored: hints from the reference solution, and corrections."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.contracts import Drawing, Explored, Prompt, Rollout, Samples, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.rows import Row, go_on
from flowrl.policies.language.drawing.trees import Forest, ScoreAll
from flowrl.policies.language.policy import LanguagePolicy

Scores = tuple[dict[str, Tensor], Tensor]  # rewards by name and their total, [B]
FAR = 2**19  # numbers of noise between what a prompt draws for different purposes


def hints(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    place: str = "prompt",
    text: str = " {hint}",
    column: str = "solution",
    right: float = 0.0,
) -> Explored:
    """Groups without a right completion are drawn anew with a first part of the reference solution: GHPO.

    shares: of the solution's characters, tried in this order until one completion has rewards that add up to more than
    `right`. place: the hint goes to the prompt, as `text` behind it (GHPO, arXiv:2507.10628, its code), or is the begin
    of the answer, where it is given and not trained. column: of the prompt's meta. The last draw of a group is trained.
    """
    forest = _drawn(policy, drawing)
    rewards, total = score(_samples(policy, forest))

    def again(groups: Sequence[int], prompts: list[Prompt], begins: list[str], first: int) -> Scores:
        made = Forest(policy, prompts, drawing.plan, drawing.seed, first)
        made.progress = drawing.progress
        for at, begin in enumerate(begins):
            for _ in range(drawing.group):
                row = made.root(at)
                row.give(policy.tokenizer(begin, add_special_tokens=False).input_ids[: drawing.plan.max_new_tokens])
        made.grow([(at, row) for at, rows in enumerate(made.rows) for row in rows], keep=False)
        scores = score(_samples(policy, made))
        for at, i in enumerate(groups):
            forest.rows[i] = made.rows[at]
        return scores

    metrics = help_stuck(
        drawing, rewards, total, again, shares=shares, place=place, text=text, column=column, right=right
    )
    return Explored(forest.completed(), rewards, metrics)


def help_stuck(
    drawing: Drawing,
    rewards: dict[str, Tensor],
    total: Tensor,
    again: Callable[[Sequence[int], list[Prompt], list[str], int], Scores],
    *,
    shares: Sequence[float],
    place: str,
    text: str,
    column: str,
    right: float,
) -> dict[str, float]:
    """Has groups without a right sample drawn anew with hints, see `hints`; metrics of it.

    rewards, total: [B], of what was drawn, written over where it is drawn anew. again: draws in the place of these
    groups, for prompts and begins of their answers, with noise from this number on; gives rewards and totals of it.
    """
    size, used = drawing.group, torch.zeros(len(drawing.prompts))
    for stage, share in enumerate(shares, 1):
        best = total.nan_to_num(nan=-torch.inf).unflatten(0, (-1, size)).amax(1)
        stuck = (best <= right).nonzero()[:, 0].tolist()
        if not stuck:
            break
        helped = [hinted(drawing.prompts[i], share, place, text, column) for i in stuck]
        first = drawing.first + stage * FAR
        new, sums = again(stuck, [prompt for prompt, _ in helped], [begin for _, begin in helped], first)
        for at, i in enumerate(stuck):
            own, there = slice(i * size, (i + 1) * size), slice(at * size, (at + 1) * size)
            total[own] = sums[there]
            for name, values in rewards.items():
                values[own] = new[name][there]
            used[i] = share
    return {"hints/groups": float((used > 0).float().mean()), "hints/share": float(used.mean())}


def corrections(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    again: float = 0.5,
    tokens: int = 256,
    text: str = "Wait! Something is wrong here.",
    otherwise: str = "answer",
    answer: str = "\\boxed{{{answer}}}",
    column: str = "answer",
    right: float = 0.0,
    train_given: bool = True,
) -> Explored:
    """Wrong completions are corrected: guided error correction of EDGE-GRPO (arXiv:2507.21848, its code).

    Wrong: the rewards add up to no more than `right`. With probability `again` a completion is told so by `text` and
    goes on for at most `tokens`; otherwise the right answer follows it (answer, a text with {answer}), or the reference
    solution takes its place (solution). column: of the prompt's meta. train_given: what was given is trained as well,
    with the log-probs that the policy has for it.
    """
    longer = replace(drawing.plan, max_new_tokens=drawing.plan.max_new_tokens + tokens)
    try:
        policy.start(drawing.prompts, [[] for _ in drawing.prompts], longer)
    except PolicyError as error:
        raise PolicyError(f"generation.again: corrections add tokens={tokens} to the completions; {error}") from error
    forest = _drawn(policy, drawing)
    _, total = score(_samples(policy, forest))
    wrong = (~(total > right)).unflatten(0, (-1, drawing.group)).tolist()
    counts, live = {"again": 0, "given": 0}, []
    for i, rows in enumerate(forest.rows):
        for number, row in enumerate(rows):
            if not wrong[i][number]:
                continue
            if forest.chance(i, "correct", number).random() < again:
                _reopen(policy, row, f" {text} ")
                live.append(row)
                counts["again"] += 1
            else:
                _finish(policy, row, otherwise, answer, column)
                counts["given"] += 1
    ends = [min(len(row.ids) + tokens, longer.max_new_tokens) for row in live]
    go_on(policy, live, longer, until=ends, progress=drawing.progress)
    rollout = forest.completed()
    if train_given:
        fill_given(policy, rollout)
    rows = len(drawing.prompts) * drawing.group
    return Explored(rollout, None, {f"corrections/{name}": number / rows for name, number in counts.items()})


def fill_given(policy: LanguagePolicy, rollout: Rollout) -> None:
    """Makes given tokens trained ones: their log-probs are those of the policy as it samples."""
    mask = torch.arange(rollout.mask.shape[1]) < rollout.replay.length[:, None]
    new = mask & ~rollout.mask
    rows = new.any(1).nonzero()[:, 0]

    def visit(seen: object) -> None:
        at = (seen.rows[:, None], seen.columns[None])  # pyright: ignore[reportAttributeAccessIssue]
        logp = seen.logp.cpu().to(rollout.rollout_logp)  # pyright: ignore[reportAttributeAccessIssue]
        rollout.rollout_logp[at] = torch.where(new[at], logp, rollout.rollout_logp[at])

    with torch.no_grad():
        for part in rows.split(policy.max_rows or len(rows)) if len(rows) else ():
            policy.look(rollout, part, View(), visit)
    rollout.mask |= new


def solution_of(prompt: Prompt, column: str) -> str:
    """A text of the prompt's meta. Raises PolicyError where there is none."""
    value = prompt.meta.get(column)
    if not isinstance(value, str | int | float) or not str(value):
        held = ", ".join(prompt.meta) or "nothing"
        raise PolicyError(
            f"generation.again.column: prompt {prompt.text!r} has no {column!r} in its meta, only {held}; add it to "
            "the prompt file, or set column to a column that holds it"
        )
    return str(value)


def _drawn(policy: LanguagePolicy, drawing: Drawing) -> Forest:
    """Groups as a plain rollout draws them."""
    forest = Forest.of(policy, drawing)
    for i in range(len(drawing.prompts)):
        for _ in range(drawing.group):
            forest.root(i)
    forest.grow([(i, row) for i, rows in enumerate(forest.rows) for row in rows], keep=False)
    for rows in forest.rows:
        for row in rows:
            row.node = [0] * len(row.ids)
    return forest


def _samples(policy: LanguagePolicy, forest: Forest) -> Samples:
    return forest.completed().samples


def hinted(prompt: Prompt, share: float, place: str, text: str, column: str) -> tuple[Prompt, str]:
    """(the prompt that is asked, what its answer begins with)."""
    whole = solution_of(prompt, column)
    hint = whole[: int(len(whole) * share)]
    if place == "answer":
        return prompt, hint
    behind, messages = text.replace("{hint}", hint), prompt.messages
    if messages:
        messages = (*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + behind})
    return replace(prompt, text=prompt.text + behind, messages=messages), ""


def _reopen(policy: LanguagePolicy, row: Row, text: str) -> None:
    """Takes the end off a row and appends a text."""
    if row.ended:
        for name in ("ids", "drawn", "logp", "entropy", "node"):
            getattr(row, name).pop()
    row.ended, row.prefix = False, None
    row.give(policy.tokenizer(text, add_special_tokens=False).input_ids)


def _finish(policy: LanguagePolicy, row: Row, otherwise: str, answer: str, column: str) -> None:
    """Ends a wrong row by the right answer, or puts the reference solution in its place."""
    truth = solution_of(row.prompt, column)
    if otherwise == "solution":
        for name in ("ids", "drawn", "logp", "entropy", "node"):
            getattr(row, name).clear()
        _reopen(policy, row, truth)
    else:
        _reopen(policy, row, " " + answer.format(answer=truth))
    row.give(policy.stop[:1])
    row.ended = bool(policy.stop)
