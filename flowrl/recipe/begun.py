"""The keys of completions that are drawn in more than one go, and whether they fit together."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.kinds import check_keys

if TYPE_CHECKING:
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe


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
CREDIT_NEEDS = {
    "prefix": ("treepo", "tree_grpo"),
    "trees": ("tree_grpo",),
    "values": ("values",),
    "nodes": ("deepsearch",),
}


def arguments(section: TokenTree | DrawAgain) -> dict[str, Any]:
    """What a section gives to the function of its kind."""
    return {name: value for name in READS[section.kind] if (value := getattr(section, name)) is not None}


def leaves(tree: TokenTree) -> int:
    """The rows of a tree_grpo's prompt."""
    return (tree.trees or 2) * (1 + (tree.expand or 2) * (tree.rounds or 1))


def check_begun(recipe: "Recipe", given: "GenerationKeys") -> Iterator[RecipeError]:
    """Everything about generation.tree, again and force, and advantage.credit, that cannot work."""
    for name in ("tree", "again"):
        section = getattr(given, name)
        if section is not None:
            yield from check_keys(f"generation.{name}", section, section.kind, READS[section.kind])
            if section.segment is not None and section.split is not None:
                remedy = f"set generation.{name}.split=null, or generation.{name}.segment=null"
                yield RecipeError(f"generation.{name}.split", "given beside segment, which also cuts steps", remedy)
    yield from _pairs(recipe, given)
    tree, again = given.tree, given.again
    if tree is not None and tree.kind == "tree_grpo" and leaves(tree) != recipe.train.group:
        problem = f"got {recipe.train.group}, but generation.tree makes {leaves(tree)} completions of a prompt"
        remedy = f"set train.group={leaves(tree)}, or other trees, expand and rounds"
        yield RecipeError("train.group", problem, remedy)
    if tree is not None and tree.roots is not None and not 1 <= tree.roots[0] <= tree.roots[1]:
        yield wrong_value("generation.tree.roots", tree.roots, "two whole numbers >= 1 that do not fall")
    if again is not None and again.shares is not None:
        rising = sorted(set(again.shares)) == again.shares and 0 < again.shares[0] <= again.shares[-1] <= 1
        if not rising:
            yield wrong_value("generation.again.shares", again.shares, "numbers in (0, 1] that rise")
    for place, words in (("text", "{hint}"), ("answer", "{answer}")):
        value = getattr(again, place, None)
        if (
            again is not None
            and value is not None
            and words not in value
            and (place == "answer" or again.kind == "hints")
        ):
            yield wrong_value(f"generation.again.{place}", value, f"a text with {words} in it")
    if given.force is not None and given.force.left >= given.max_new_tokens:
        problem = f"got {given.force.left}, accepted: below generation.max_new_tokens = {given.max_new_tokens}"
        yield RecipeError("generation.force.left", problem, "lower it")


def _pairs(recipe: "Recipe", given: "GenerationKeys") -> Iterator[RecipeError]:
    """Keys of which one excludes or needs another."""
    kinds = [section.kind for section in (given.tree, given.again) if section is not None]
    if len(kinds) > 1:
        problem = f"got {kinds[1]!r} beside generation.tree, but each of them draws the completions"
        yield RecipeError("generation.again", problem, "set generation.again=null, or generation.tree=null")
    if given.force is not None and kinds:
        problem = f"got a mapping beside {kinds[0]!r}, whose completions are drawn in parts"
        yield RecipeError("generation.force", problem, "set generation.force=null")
    if recipe.train.budget is not None and kinds:
        problem = f"got a mapping, but {kinds[0]!r} draws the completions of a group in its own way"
        yield RecipeError("train.budget", problem, "set train.budget=null")
    if given.partial is not None:
        yield from _partial(recipe, kinds + (["force"] if given.force is not None else []))
    credit = recipe.advantage.credit.kind
    needed = CREDIT_NEEDS.get(credit)
    if needed is None:
        return
    if not set(kinds) & set(needed):
        place = "again" if credit == "values" else "tree"
        problem = f"got {credit!r}, which reads what generation.{place} of kind {' or '.join(needed)} leaves"
        yield RecipeError("advantage.credit", problem, f"set generation.{place}={{kind: {needed[0]}}}")
    scales = ("none", "whiten") if credit in ("values", "nodes") else ()
    if scales and recipe.advantage.scale not in scales:
        problem = f"got {show(recipe.advantage.scale)}, but advantage.credit {credit!r} gives each decision its own"
        yield RecipeError("advantage.scale", problem, f"accepted: {' or '.join(scales)}")
    if recipe.advantage.combine != "sum":
        problem = f"got {show(recipe.advantage.combine)}, but advantage.credit {credit!r} compares sums of rewards"
        yield RecipeError("advantage.combine", problem, "set advantage.combine=sum")


def _partial(recipe: "Recipe", kinds: list[str]) -> Iterator[RecipeError]:
    """What does not go along with completions that wait for the next iteration."""
    train, place = recipe.train, "generation.partial"
    others = [f"generation's {kind}" for kind in kinds]
    others += [f"train.{name}" for name in ("refill", "budget", "expand") if getattr(train, name)]
    others += ["advantage.baseline=given"] if recipe.advantage.baseline == "given" else []
    if others:
        problem = f"got a number beside {others[0]}, which needs the completions of an iteration to end in it"
        yield RecipeError(place, problem, f"set {place}=null")
