"""Does a loss of noised samples fit the rest of its recipe?"""

from collections.abc import Iterator

from flowrl.recipe.calls import check_values
from flowrl.recipe.checks.pulled import check_pulled, refuse_visits
from flowrl.recipe.checks.schedules import num_steps
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.keys.noised import LEVEL_KEYS, LOSS_KEYS, TEXT_KEYS, Levels, Loss
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own

BRIDGED = 5  # steps of sampler.levels of kind bridge, where no number is given
ABOUT_GUIDANCE = ("guidance", "cfg", "negative_prompt")  # what an argument's name contains that a look may differ in


def check_noised(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about objective.loss, sampler.levels and the older copy of the weights that cannot work."""
    loss = recipe.objective.loss
    if loss is None:
        yield from _without(recipe)
        return
    if loss.kind in ("dpo", "opa_dpo", "balance", "sub_balance") or loss.phi is not None:
        place, got = ("kind", loss.kind) if loss.phi is None else ("phi", loss.phi)
        problem = f"got {show(got)}, which is about texts, but the decisions here are denoising steps"
        remedy = f"accepted: {'crd' if loss.reads_rewards else 'flow_dpo'}" if place == "kind" else "remove it"
        yield RecipeError(f"objective.loss.{place}", problem, remedy)
        return
    yield from check_keys("objective.loss", loss, loss.kind, dict.fromkeys(LOSS_KEYS[loss.kind], False))
    yield from _walk(recipe)
    yield from _levels(recipe, recipe.sampler.levels or Levels())
    yield from _look(recipe)
    yield from _weights(recipe, loss)
    if loss.kind == "awm" and loss.clip is None and loss.pull == 0:
        problem = "got 0, but without a clip and without a pull the loss has no bound, and training collapses"
        yield RecipeError("objective.loss.pull", problem, "give objective.loss.clip, or a pull above 0")
    yield from _together(recipe, loss)
    yield from (check_pulled if loss.pulls else refuse_visits)(recipe, loss)
    yield from _files(recipe, loss)


def check_texts(recipe: Recipe) -> Iterator[RecipeError]:
    """What is about noised samples, where there is nothing that could be noised, and everything about losses of texts
    that cannot work."""
    loss, train = recipe.objective.loss, recipe.train
    if loss is None:
        yield from _without(recipe)
        return
    if loss.kind not in TEXT_KEYS:
        problem = f"got {show(loss.kind)}, a loss of noised samples, but `generation` makes tokens"
        yield RecipeError(
            "objective.loss", problem, "set objective.loss=null, or kind sft, dpo, opa_dpo, balance or sub_balance"
        )
        return
    needed = {name: name == "view" for name in TEXT_KEYS[loss.kind]}
    yield from check_keys("objective.loss", loss, loss.kind, needed)
    if train.source not in ("rollouts", "files"):
        problem = f"got {show(train.source)}, a share, but texts come from files or from rollouts"
        yield RecipeError("train.source", problem, "set train.source=rollouts or files")
    elif loss.kind in ("sft", "opa_dpo") and train.source != "files":
        problem = f"got 'rollouts', but {loss.kind} is of texts that come with prompts.train"
        yield RecipeError("train.source", problem, "set train.source=files")
    if loss.reads_rewards:
        yield from _rewards_as_they_are(recipe, loss)
    if recipe.objective.kl > 0 or "objective.kl" in recipe.curves:
        problem = f"got {recipe.objective.kl:g}, but objective.loss is in the place of a divergence"
        yield RecipeError("objective.kl", problem, "set objective.kl=0")
    if loss.kind == "dpo" and loss.pair == 0 and not loss.bco:
        yield RecipeError("objective.loss.pair", "got 0, and no bco, so that no pair is compared", "raise one of them")
    for place, value, off in (
        ("train.refill", train.refill, 0),
        ("train.budget", train.budget, None),
        ("train.keep", train.keep, None),
        ("train.old", train.old, None),
        ("train.sample_old", train.sample_old, False),
        ("objective.correction", recipe.objective.correction, None),
        ("objective.covariance", recipe.objective.covariance, None),
        ("objective.off_policy_mask", recipe.objective.off_policy_mask, None),
        ("objective.entropy_target", recipe.objective.entropy_target, None),
        ("objective.entropy", recipe.objective.entropy, 0.0),
    ):
        if value != off:
            got = show(value) if isinstance(value, str | int | float) else "a mapping"
            problem = f"got {got}, but objective.loss {loss.kind!r} takes whole texts as they are"
            yield RecipeError(place, problem, f"set {place}={'null' if off is None else str(off).lower()}")


# keys of advantage that change what a reward is, and the value that leaves each out
AS_IT_IS = {"baseline": "none", "scale": "none", "combine": "sum", "clip": None, "standardise": False, "factor": 1.0}
AS_IT_IS |= {"groups": 1.0, "early": None}


def _rewards_as_they_are(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    """What does not go with a loss of drawn texts that reads rewards, and no advantages."""
    train, given = recipe.train, recipe.advantage
    if train.source == "files":
        problem = f"got 'files', but {loss.kind} is of texts that are drawn and scored"
        yield RecipeError("train.source", problem, "set train.source=rollouts")
    if train.group < 2 and not loss.reads_flows:
        problem = f"got {train.group}, but {loss.kind} compares the texts of a prompt"
        yield RecipeError("train.group", problem, "accepted: a whole number >= 2")
    if train.drop_silent:
        problem = f"got true, but {loss.kind} has a loss of every text"
        yield RecipeError("train.drop_silent", problem, "set train.drop_silent=false")
    why = f"but {loss.kind} reads the weighted sum of the rewards as it is"
    if isinstance(given, Own):
        yield RecipeError("advantage.kind", f"got {show(given.kind)}, {why}", "remove advantage.kind")
        return
    for name, off in AS_IT_IS.items():
        if (value := getattr(given, name)) != off:
            got = "a mapping" if name == "early" else show(value)
            remedy = f"set advantage.{name}={'null' if off is None else str(off).lower()}, or take preset gflow's"
            yield RecipeError(f"advantage.{name}", f"got {got}, {why}", remedy)
    credit = "flow" if loss.reads_flows else "broadcast"
    if given.credit.kind != credit:
        remedy = f"set advantage.credit={credit}{' and a critic' if loss.reads_flows else ''}"
        yield RecipeError("advantage.credit.kind", f"got {given.credit.kind!r}, {why}", remedy)


def _without(recipe: Recipe) -> Iterator[RecipeError]:
    """Keys that only a loss of noised samples reads."""
    train = recipe.train
    for place, value, off in (
        ("sampler.levels", recipe.sampler.levels, None),
        ("sampler.look", recipe.sampler.look, {}),
        ("train.old", train.old, None),
        ("train.sample_old", train.sample_old, False),
        ("train.pairs", train.pairs, 1),
        ("train.source", train.source, "rollouts"),
    ):
        if value != off:
            accepted = "null" if off is None else str(off).lower()
            problem = f"got {show(value)}, accepted: {accepted}, as the objective noises no finished samples"
            remedy = f"set {place}={accepted}, or a preset such as nft"
            yield RecipeError(place, problem, remedy)


# keys of losses of log-probs, and the value that leaves each out
OF_LOGP = {"ratio": "plain", "gate": "ppo"} | dict.fromkeys(
    ("kl_mask", "entropy_share", "off_policy_mask", "correction", "covariance"), None
)


def _walk(recipe: Recipe) -> Iterator[RecipeError]:
    sampler, why = recipe.sampler, "but samples that are noised again come from the ODE"
    if sampler.tree is not None:
        yield RecipeError("sampler.tree", f"got kind {sampler.tree.kind!r}, {why}", "set sampler.tree=null")
    if sampler.tail is not None and (sampler.tail.ratio is not None or sampler.tail.steps is not None):
        problem = "got fewer steps behind the last that draws, but none draws"
        yield RecipeError("sampler.tail", problem, "give sampler.tail.solver alone, or lower sampler.steps")
    for name, off in OF_LOGP.items():
        if (value := getattr(recipe.objective, name)) != off:
            got = show(value) if isinstance(value, str | float) else "a mapping"
            problem = f"got {got}, which is about log-probabilities, {why}"
            yield RecipeError(f"objective.{name}", problem, f"set objective.{name}={'null' if off is None else off}")


def _levels(recipe: Recipe, levels: Levels) -> Iterator[RecipeError]:
    yield from check_keys("sampler.levels", levels, levels.kind, LEVEL_KEYS[levels.kind])
    if levels.kind in ("leap", "bridge"):
        steps, least = num_steps(recipe), 2 if levels.kind == "leap" else levels.number or BRIDGED
        if least > steps or least < 2:
            problem = f"got {least} steps to look at, of a walk of {steps}"
            yield RecipeError("sampler.levels", problem, "give 2 or more, and no more than sampler.steps")
        return
    if levels.kind in ("again", "spaced"):
        return
    if levels.kind not in ("walk", "tail"):
        low, high = (0.75, 0.964) if levels.kind == "align" else (0.0, 1.0)
        low, high = low if levels.low is None else levels.low, high if levels.high is None else levels.high
        if not 0 <= low < high <= 1:
            problem = f"got low {low:g} and high {high:g}"
            yield RecipeError("sampler.levels", problem, "give 0 <= low < high <= 1")
        return
    steps = num_steps(recipe)
    low, end = levels.low or 0, steps if levels.high is None else levels.high
    least = -steps if levels.kind == "walk" else 0
    for name, value in (("low", low), ("high", end)):
        if value != int(value) or not least <= value <= steps:
            further = f", or from {least} to -1, counted from the end" if least and name == "low" else ""
            accepted = f"a step, a whole number from 0 to {steps}{further}"
            yield wrong_value(f"sampler.levels.{name}", value, accepted)
            return
    if levels.kind == "tail":
        if low > end:
            yield RecipeError("sampler.levels", f"got low {low:g} and high {end:g}", "give 1 <= low <= high")
        return
    first = low + steps if low < 0 else low
    if (levels.number or 1) > end - first:
        problem = f"got {levels.number}, but the steps from {first:g} to below {end:g} are {max(int(end - first), 0)}"
        yield RecipeError("sampler.levels.number", problem, "lower it, or widen low and high")


def _look(recipe: Recipe) -> Iterator[RecipeError]:
    """Arguments that would change more than guidance, such as the size of a state, and values out of their limits."""
    for name, value in recipe.sampler.look.items():
        if not any(part in name for part in ABOUT_GUIDANCE):
            problem = f"got {show(value)}, accepted: arguments whose names contain {', '.join(ABOUT_GUIDANCE)}"
            yield RecipeError(f"sampler.look.{name}", problem, f"set it in `pipeline`, or remove sampler.look.{name}")
    yield from check_values(recipe.sampler.look, recipe.model, "sampler.look")
    loss = recipe.objective.loss
    if recipe.sampler.look and loss is not None and loss.kind in ("draft", "match"):
        problem = f"got arguments of its own, but loss {loss.kind!r} follows the steps as the rollout took them"
        yield RecipeError("sampler.look", problem, "set sampler.look={}, or change `pipeline`")


def _weights(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    if loss.reads_old and recipe.train.old is None:
        problem = f"missing, loss {loss.kind!r} reads velocities of an older copy of the weights"
        yield RecipeError("train.old", problem, "set train.old=0 for those that an iteration begins with")
    if recipe.train.sample_old and recipe.train.old is None:
        yield RecipeError("train.sample_old", "got true, but there is no older copy", "set train.old=0")


def _together(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    train = recipe.train
    if loss.kind != "flow_dpo" and train.pairs != 1:
        yield RecipeError("train.pairs", f"got {train.pairs}, but loss {loss.kind!r} takes none", "set train.pairs=1")
    if loss.kind == "flow_dpo" and 2 * train.pairs > train.group:
        problem = f"got {train.pairs}, accepted: at most {train.group // 2}, half of train.group"
        yield RecipeError("train.pairs", problem, "lower it, or raise train.group")
    if loss.kind in ("flow_dpo", "dgpo", "crd") and train.drop_silent:
        problem = f"got true, but loss {loss.kind!r} chooses its rows itself"
        yield RecipeError("train.drop_silent", problem, "set train.drop_silent=false")


def _files(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    """What does not go with samples from files, and what goes with them alone."""
    train = recipe.train
    if loss.kind == "rpo" and (train.share is None or train.group < 2):
        problem = (
            f"got {show(train.source)}, group {train.group}, but loss 'rpo' is of samples from files against drawn"
        )
        yield RecipeError("train.source", problem, "set train.source=1, and train.group=2 or more")
        return
    if train.share is not None:
        if loss.pulls or loss.kind == "sft":
            problem = f"got {show(train.source)}, but loss {loss.kind!r} takes samples of one sort"
            yield RecipeError(
                "train.source", problem, f"set train.source={'files' if loss.kind == 'sft' else 'rollouts'}"
            )
        return
    if train.source == "rollouts":
        if loss.kind == "sft":
            problem = "got 'rollouts', but loss 'sft' is of samples from files"
            yield RecipeError("train.source", problem, "set train.source=files")
        return
    if loss.kind not in ("flow_dpo", "flow_rwr", "sft"):
        problem = f"got 'files', but loss {loss.kind!r} is of samples that the model draws"
        yield RecipeError("train.source", problem, "set train.source=rollouts, or objective.preset=flow_dpo")
    for name, off in (("refill", 0), ("keep", None), ("drop_silent", False), ("sample_old", False)):
        if (value := getattr(train, name)) != off:
            problem = f"got {show(value)}, but samples from files are taken as they are"
            remedy = f"set train.{name}={'null' if off is None else str(off).lower()}"
            yield RecipeError(f"train.{name}", problem, remedy)
