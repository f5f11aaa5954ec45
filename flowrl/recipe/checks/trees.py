"""Does a tree fit its window, its group and its walk? Told by arithmetic alone, before torch is loaded."""

import math
from collections.abc import Iterator

from flowrl.recipe.checks.schedules import num_steps
from flowrl.recipe.checks.windows import drawn
from flowrl.recipe.errors import RecipeError, wrong_value
from flowrl.recipe.keys.sampling import TreeKeys, Window
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, key_table

# What each kind of tree reads; True marks what it cannot do without.
TREE_KEYS = key_table("tree")


def check_tree(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `sampler.tree` that cannot work."""
    tree = recipe.sampler.tree
    if tree is None or isinstance(tree, Own):
        return
    misplaced = list(check_keys("sampler.tree", tree, tree.kind, TREE_KEYS[tree.kind]))
    yield from misplaced or (_branch(recipe, tree) if tree.kind == "branch" else _per_step(recipe, tree))


def _branch(recipe: Recipe, tree: TreeKeys) -> Iterator[RecipeError]:
    splits, widths, steps = tree.splits or [], tree.width_list(), num_steps(recipe)
    if not splits or splits != sorted(set(splits)) or splits[0] < 0:
        yield wrong_value("sampler.tree.splits", splits, "steps that rise without repeats, such as [0, 3, 6, 9]")
        return
    if len(widths) != len(splits) or min(widths) < 2:
        accepted = f"a whole number >= 2, or {len(splits)} of them, one for each of sampler.tree.splits"
        yield wrong_value("sampler.tree.widths", tree.widths, accepted)
        return
    leaves, group = math.prod(widths), recipe.train.group
    if group % leaves:
        problem = f"got {group}, but {' x '.join(map(str, widths))} branches make {leaves} samples of one tree"
        yield RecipeError("train.group", problem, f"set train.group to {leaves} or a multiple, or other widths")
    yield from _splits_in_window(recipe, tree, splits, steps)
    yield from _pruning(recipe, tree, steps)
    if tree.width_ratio is not None and tree.width_prune is None:
        remedy = "set sampler.tree.width_prune=ends or branches, or sampler.tree.width_ratio=null"
        yield RecipeError("sampler.tree.width_prune", "missing, width_ratio is given and needs it", remedy)


def _pruning(recipe: Recipe, tree: TreeKeys, steps: int) -> Iterator[RecipeError]:
    """Steps that are left out: of those that draw noise, and never all of them."""
    prune, place = tree.prune, "sampler.tree.prune"
    low, high = drawn(recipe.sampler.window, steps)
    if not prune:
        until = None if tree.width_prune is not None else tree.prune_until  # which both kinds of pruning read
        if any(v is not None for v in (tree.prune_interval, tree.prune_stop, until)):
            yield RecipeError(place, "missing, there is nothing to prune", f"set {place}=[STEPS]")
    elif prune != sorted(set(prune)) or not low <= prune[0] <= prune[-1] < high:
        accepted = f"steps that rise without repeats, of {low} to {high - 1}, where noise is drawn (sampler.window)"
        yield wrong_value(place, prune, accepted)
    elif tree.prune_stop is not None and tree.prune_stop > prune[0]:
        problem = f"got {tree.prune_stop}, accepted: at most the first of {place} = {prune}"
        yield RecipeError("sampler.tree.prune_stop", problem, "lower it")
    elif _may_prune_all(recipe.sampler.window, prune, steps):
        problem = f"got {prune}, which may leave an iteration without a step to train (sampler.window)"
        yield RecipeError(place, problem, "prune fewer steps, or widen sampler.window")


def _may_prune_all(window: Window | Own, prune: list[int], steps: int) -> bool:
    """Whether these steps may be all that an iteration trains. Sliding takes some out of the range, and adds none."""
    if isinstance(window, Own):
        return False
    low, high = drawn(window, steps)
    if window.share is not None:
        return len(prune) >= int((steps - 1) * window.share)
    size = high - low if window.size is None else window.size
    return any(set(prune).issuperset(range(at, at + size)) for at in range(low, high - size + 1))


def _splits_in_window(recipe: Recipe, tree: TreeKeys, splits: list[int], steps: int) -> Iterator[RecipeError]:
    window, place = recipe.sampler.window, "sampler.tree.splits"
    low, high = drawn(window, steps)
    if tree.splits_from == "window":
        if window.kind == "random":
            problem = "got 'window', but the steps of a window of kind 'random' are not adjacent"
            yield RecipeError("sampler.tree.splits_from", problem, "set another sampler.window.kind")
        size = high - low if window.size is None else window.size
        if splits[-1] >= size:
            problem = f"got {splits}, accepted: offsets within the window's {size} steps"
            yield RecipeError(place, problem, "lower the last split or widen sampler.window.size")
    elif window.moves and window.kind != "fraction":
        problem = f"got {splits}, but a window of kind {window.kind!r} may move away from them"
        yield RecipeError(place, problem, "set sampler.tree.splits_from=window, or sampler.window.kind=all")
    elif not low <= splits[0] <= splits[-1] < high:
        problem = f"got {splits}, but noise is drawn at steps {low} to {high - 1} alone (sampler.window)"
        yield RecipeError(place, problem, "move the splits, or widen sampler.window")


def _per_step(recipe: Recipe, tree: TreeKeys) -> Iterator[RecipeError]:
    anchors, group = tree.anchors or 1, recipe.train.group
    if group % anchors or group // anchors < 2:
        problem = f"got {anchors}, but each trunk takes an equal share, two or more, of train.group = {group} children"
        fitting = [str(n) for n in range(1, group // 2 + 1) if group % n == 0]
        yield RecipeError("sampler.tree.anchors", problem, f"accepted: {', '.join(fitting)}, or raise train.group")
    if anchors > 1 and recipe.sampler.share_noise:
        problem = f"got true, but {anchors} trunks of one start would be the same"
        yield RecipeError("sampler.share_noise", problem, "set sampler.share_noise=false, or sampler.tree.anchors=1")
    strides = [1] if tree.strides is None else tree.strides
    if not strides or min(strides) < 1 or len(set(strides)) < len(strides):
        yield wrong_value("sampler.tree.strides", strides, "different whole numbers >= 1, such as [1, 2]")
    elif strides != [1]:
        yield from _room_for_strides(recipe, strides)
    if recipe.sampler.tail is not None:
        remedy = "set sampler.tail=null; sampler.tree.strides coarsens what follows a draw"
        yield RecipeError("sampler.tail", "got a tail, but a tree per_step draws at every step", remedy)


def _room_for_strides(recipe: Recipe, strides: list[int]) -> Iterator[RecipeError]:
    """A stride begins two levels after the draw, and behind them no two strides may leave the same levels."""
    window, steps = recipe.sampler.window, num_steps(recipe)
    end, needed = drawn(window, steps)[1], 2 + (sorted(strides)[-2] if len(strides) > 1 else 0)
    if end + needed > steps:
        place = {"all": "skip_last", "first": "size", "frozen": "size", "fraction": "kind"}.get(window.kind, "high")
        problem = (
            f"step {end - 1} may be drawn at, accepted: below {steps - needed}, since sampler.tree.strides {strides} "
            f"need {needed} more steps behind it"
        )
        remedy = "lower it"
        if place in ("kind", "skip_last"):
            remedy = f"set sampler.window={{kind: all, skip_last: {needed}}}, or raise sampler.steps"
        yield RecipeError(f"sampler.window.{place}", problem, remedy)
