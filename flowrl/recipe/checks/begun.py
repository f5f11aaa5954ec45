"""Whether completions that are drawn in more than one go fit the rest of a recipe."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.keys.begun import READS, leaves
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe

CREDIT_NEEDS = {
    "prefix": ("treepo", "tree_grpo"),
    "trees": ("tree_grpo",),
    "values": ("values",),
    "nodes": ("deepsearch",),
}


def check_begun(recipe: Recipe, given: GenerationKeys) -> Iterator[RecipeError]:
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


def _pairs(recipe: Recipe, given: GenerationKeys) -> Iterator[RecipeError]:
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


def _partial(recipe: Recipe, kinds: list[str]) -> Iterator[RecipeError]:
    """What does not go along with completions that wait for the next iteration."""
    train, place = recipe.train, "generation.partial"
    others = [f"generation's {kind}" for kind in kinds]
    others += [f"train.{name}" for name in ("refill", "budget", "expand") if getattr(train, name)]
    others += ["advantage.baseline=given"] if recipe.advantage.baseline == "given" else []
    if others:
        problem = f"got a number beside {others[0]}, which needs the completions of an iteration to end in it"
        yield RecipeError(place, problem, f"set {place}=null")
