"""The keys of completions that are drawn in more than one go."""

from collections.abc import Mapping
from typing import Any, Literal

from flowrl.recipe.base import Strict, key


class TokenTree(Strict):
    """Completions of a prompt that share their first tokens; train.group are the leaves.

    treepo: every `segment` tokens (512) a row parts into `width` (2), as long as there are no more than the group;
    roots (2 to 8) of them begin at the prompt. tree_grpo: `trees` (2) whole rows, then `rounds` (1) times `expand` (2)
    random steps of each tree are gone on from; steps are `segment` tokens or end with the text `split`, or, with an
    environment, are turns. deepsearch: a search that expands a segment (256 tokens, or with an environment a turn) by
    `width` (8) others; explore (2)
    is the weight of its confidence bound, frontier (0.4, 0, 0.01) what quality, surprise and depth count in choosing
    the next, least (0.1) the least share that an early segment gets of what came of it, right (0) the sum of rewards
    above which a completion is right.
    """

    kind: Literal["treepo", "tree_grpo", "deepsearch"] = key(..., "treepo, tree_grpo or deepsearch")
    segment: int | None = key(None, "a whole number >= 1 or null", ge=1)
    split: str | None = key(None, "a text or null", min_length=1)
    width: int | None = key(None, "a whole number >= 2 or null", ge=2)
    roots: list[int] | None = key(None, "two whole numbers >= 1 that do not fall, or null", min_length=2, max_length=2)
    trees: int | None = key(None, "a whole number >= 1 or null", ge=1)
    expand: int | None = key(None, "a whole number >= 1 or null", ge=1)
    rounds: int | None = key(None, "a whole number >= 1 or null", ge=1)
    explore: float | None = key(None, "a number >= 0 or null", ge=0)
    least: float | None = key(None, "a number in [0, 1] or null", ge=0, le=1)
    frontier: list[float] | None = key(None, "three numbers or null", min_length=3, max_length=3)
    right: float | None = key(None, "a number or null")


class DrawAgain(Strict):
    """What is drawn once completions have been scored.

    hints: groups without a right completion are drawn anew with a first part of the reference solution, its `shares`
    (0.25, 0.5, 0.75) one after the other; place: behind the prompt as `text` with {hint} in it (prompt), or as the
    begin of the answer (answer). corrections: to a wrong completion `text` is appended, after which it goes on for
    `tokens` (256), with probability `again` (0.5); otherwise the right answer, as `answer` with {answer} in it, or the
    reference solution takes its place (otherwise: answer or solution). train_given: what was given is trained too
    (true). values: from the begin of each of the first `steps` (20) steps `continuations` (9) are drawn, whose mean is
    its value; steps are `segment` tokens or end with the text `split` (a new line), or, with an environment, are turns.
    column: of the prompts' meta, what
    holds the solution (solution) or the answer (answer). right: the sum of rewards above which a completion is right
    (0).
    """

    kind: Literal["hints", "corrections", "values"] = key(..., "hints, corrections or values")
    shares: list[float] | None = key(None, "numbers in (0, 1] that rise, or null", min_length=1)
    place: Literal["prompt", "answer"] | None = key(None, "prompt, answer or null")
    text: str | None = key(None, "a text or null", min_length=1)
    again: float | None = key(None, "a number in [0, 1] or null", ge=0, le=1)
    tokens: int | None = key(None, "a whole number >= 1 or null", ge=1)
    otherwise: Literal["answer", "solution"] | None = key(None, "answer, solution or null")
    answer: str | None = key(None, "a text with {answer} in it, or null", min_length=1)
    train_given: bool | None = key(None, "true, false or null")
    continuations: int | None = key(None, "a whole number >= 1 or null", ge=1)
    steps: int | None = key(None, "a whole number >= 1 or null", ge=1)
    split: str | None = key(None, "a text or null", min_length=1)
    segment: int | None = key(None, "a whole number >= 1 or null", ge=1)
    column: str | None = key(None, "a key of the prompts' meta, or null", min_length=1)
    right: float | None = key(None, "a number or null")


class Force(Strict):
    """A text that a completion gets when it has only so many tokens left and has not written it: an answer is forced.

    As GLM-4.5V (arXiv:2507.01006) and budget forcing (arXiv:2501.19393) have it; in training, not in evaluations.
    """

    text: str = key(..., "a text", min_length=1)
    left: int = key(..., "a whole number >= 2", ge=2)


def _reads(*names: str) -> Mapping[str, bool]:
    return dict.fromkeys(names, False)


READS: dict[str, Mapping[str, bool]] = {
    "treepo": _reads("segment", "width", "roots"),
    "tree_grpo": _reads("segment", "split", "trees", "expand", "rounds"),
    "deepsearch": _reads("segment", "width", "explore", "least", "frontier", "right"),
    "hints": _reads("shares", "place", "text", "column", "right"),
    "corrections": _reads("again", "tokens", "text", "otherwise", "answer", "column", "right", "train_given"),
    "values": _reads("continuations", "steps", "split", "segment"),
}


def arguments(section: TokenTree | DrawAgain) -> dict[str, Any]:
    """What a section gives to the function of its kind."""
    return {name: value for name in READS[section.kind] if (value := getattr(section, name)) is not None}


def leaves(tree: TokenTree) -> int:
    """The rows of a tree_grpo's prompt."""
    return (tree.trees or 2) * (1 + (tree.expand or 2) * (tree.rounds or 1))
