"""Whether the values of a recipe fit together: everything that can be checked before weights are loaded."""

import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flowrl import names
from flowrl.kinds import kind_of, kinds_of_model
from flowrl.known.places import is_random, random_problem
from flowrl.recipe.checks.computing import check_computing
from flowrl.recipe.checks.credit import check_credit
from flowrl.recipe.checks.fitting import check_fitting
from flowrl.recipe.checks.freezing import check_freeze
from flowrl.recipe.checks.merging import check_merge
from flowrl.recipe.checks.objectives import check_gate, check_keep
from flowrl.recipe.checks.parallel import check_ranks
from flowrl.recipe.checks.prompts import check_budget, check_choice
from flowrl.recipe.checks.reference import check_reference
from flowrl.recipe.checks.roles import contributions
from flowrl.recipe.checks.shapes import check_shape
from flowrl.recipe.checks.shards import check_parallel
from flowrl.recipe.checks.terms import check_drawn_anew, check_store, check_terms
from flowrl.recipe.checks.trackers import check_trackers
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.keys.lora import check_pattern
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.models import foreign_model, gguf_file, gguf_problem
from flowrl.recipe.presets import PRESETS
from flowrl.recipe.schema import ObjectiveKeys, Recipe
from flowrl.recipe.sections import Own, check_arguments, check_own, own_parts
from flowrl.watch.alarms import ALARMS

HUB_ID = r"[\w-][\w.-]*/[\w.-]+"


def check(recipe: Recipe) -> Iterator[RecipeError]:
    """All errors of a recipe, the most basic first, at every point of its curves.

    A user's own modules are imported last.
    """
    reported: set[str] = set()
    for stage in recipe.stages():
        errors = [error for error in _check_constants(stage) if error.place not in reported]
        yield from errors
        reported |= {error.place for error in errors}


def _check_constants(recipe: Recipe) -> Iterator[RecipeError]:
    kind = kind_of(recipe)
    yield from _model(recipe)
    yield from kind.check_model(recipe)
    yield from check_parallel(recipe)
    yield from check_ranks(recipe, recipe.parallel.ranks or 1)
    yield from kind.check_sampling(recipe)
    yield from _objective(recipe)
    yield from check_gate(recipe)
    yield from check_terms(recipe)
    yield from check_store(recipe)
    yield from check_drawn_anew(recipe)
    yield from _batches(recipe)
    yield from kind.check_objective(recipe)
    yield from check_reference(recipe)
    yield from check_credit(recipe)
    yield from check_keep(recipe)
    yield from _learning(recipe)
    yield from check_fitting(recipe)
    yield from check_merge(recipe)
    yield from check_computing(recipe)
    yield from _watch(recipe)
    yield from _prompts(recipe)
    yield from check_choice(recipe)
    yield from check_budget(recipe)
    yield from kind.check_parts(recipe)
    for place, own in own_parts(recipe):
        yield from check_own(place, own)
    yield from _rewards(recipe)
    yield from check_trackers(recipe)


def _model(recipe: Recipe) -> Iterator[RecipeError]:
    model, kind = recipe.model, kind_of(recipe)
    folder, fitting = Path(model).expanduser(), kinds_of_model(model)
    accepted = f"{', '.join(names.MODELS)}, a hub id owner/name, or a folder with model_index.json or, of a language "
    accepted += "model, config.json, gguf:FILE, or random:NAME (docs/large.md)"
    if problem := gguf_problem(model):
        yield RecipeError("model", f"got {model!r}, {problem[0]}", problem[1])
    elif problem := random_problem(model):
        yield RecipeError("model", f"got {model!r}, {problem[0]}", problem[1])
    elif other := foreign_model(model):
        yield RecipeError("model", f"got {model!r}, {other[0]}", other[1])
    elif folder.is_dir():
        if not fitting:
            yield RecipeError("model", f"got {model!r}, a folder without {kind.index}", f"accepted: {accepted}")
    elif not (gguf_file(model) or is_random(model) or model in names.MODELS or re.fullmatch(HUB_ID, model)):
        yield wrong_value("model", model, accepted, suggestion=names.closest(model, names.MODELS))
    if recipe.full == (recipe.lora is not None):
        given = "both" if recipe.full else "neither"
        problem = f"{given} of lora and full: true given, accepted: exactly one"
        yield RecipeError("lora", problem, "set lora={rank: 32} or full=true, and the other to null")
    yield from check_freeze(recipe)
    if recipe.lora is not None and recipe.lora.targets == []:
        yield wrong_value("lora.targets", [], "attention, all, match:REGEX, or a list of at least one module name")
    if recipe.lora is not None and isinstance(recipe.lora.targets, str):
        yield from _targets(recipe.lora.targets)
    if fitting and kind not in fitting:
        problem = f"got {model!r}, {fitting[0].words.model}, but the recipe is one for {kind.words.model}"
        yield RecipeError("model", problem, f"give another model, or {fitting[0].words.chosen}")


def _objective(recipe: Recipe) -> Iterator[RecipeError]:
    objective = recipe.objective
    if isinstance(objective, Own):
        return
    if objective.preset not in PRESETS:
        meant = names.closest(objective.preset, PRESETS)
        listed = names.some(objective.preset, PRESETS, "flowrl list presets")
        yield wrong_value("objective.preset", objective.preset, listed, suggestion=meant)
    clip = objective.clip
    if isinstance(clip, list):
        sound = len(clip) == 2 and 0 < clip[0] <= 1 and clip[1] > 0
    else:
        sound = 0 < clip < 1
    if not sound:
        yield wrong_value("objective.clip", clip, "a number in (0, 1), or [low, high] with 0 < low <= 1 and high > 0")
    else:
        yield from _limits(objective)
    if objective.length is not None and objective.aggregate != "constant":
        problem = f"got {objective.length}, but aggregate {objective.aggregate!r} does not divide by a length"
        yield RecipeError("objective.length", problem, "set objective.length=null, or objective.aggregate=constant")


def _limits(objective: ObjectiveKeys) -> Iterator[RecipeError]:
    """Errors of a log-ratio limit inside the clip range."""
    low, high = objective.clip_range
    limit, room = objective.log_ratio_limit, max(math.log1p(high), -math.log1p(-low) if low < 1 else 0.0)
    if limit is not None and limit <= room:
        problem = f"got {limit:g}, accepted: above {room:.2g}, the log-ratio at which objective.clip begins to act"
        yield RecipeError("objective.log_ratio_limit", problem, "raise it, set it to null, or lower objective.clip")


def _batches(recipe: Recipe) -> Iterator[RecipeError]:
    train, advantage = recipe.train, recipe.advantage
    grouped = advantage.baseline not in ("batch", "none", "given")
    scored = recipe.scores_train and train.source == "rollouts"
    if train.group < 2 and scored and (grouped or advantage.scale == "group"):
        chosen = f"baseline {advantage.baseline} with scale {advantage.scale}"
        problem = f"got {train.group}, but advantage {chosen} compares the samples of one prompt"
        remedy = "set train.group to 2 or more, or both advantage.baseline and advantage.scale to batch"
        yield RecipeError("train.group", problem, remedy)
    if train.refill and not grouped:
        problem = f"got {train.refill}, but advantage.baseline {advantage.baseline!r} leaves no group without advantage"
        yield RecipeError("train.refill", problem, "set train.refill=0, or advantage.baseline=group")
    yield from _pool(recipe)
    if train.update_by == "steps":
        if recipe.sampler.tree is None or recipe.sampler.tree.kind != "per_step":
            problem = "got 'steps', but only in a per_step tree does each row have its own step"
            yield RecipeError("train.update_by", problem, "set train.update_by=prompts")
        return
    if train.drawn % train.updates:
        of = "train.prompts" if train.drawn == train.prompts else "train.prompts * train.group / train.keep"
        problem = f"got {train.updates}, but {of} = {train.drawn} does not divide into that many updates"
        divisors = [d for d in range(1, train.drawn + 1) if train.drawn % d == 0]
        yield RecipeError("train.updates", problem, f"accepted: {', '.join(map(str, divisors))}")
        return
    rows = train.drawn * train.group * contributions(recipe)
    for name, limit, what in (
        ("micro_batch", rows // train.updates, "rows of an update"),
        ("rollout_batch", rows, "rows of an iteration"),
    ):
        value = getattr(train, name)
        if isinstance(value, int) and value > limit:
            problem = f"got {value}, accepted: at most the {limit} {what}"
            yield RecipeError(f"train.{name}", problem, f"lower it, or set train.{name}=null for all at once")


def _targets(targets: str) -> Iterator[RecipeError]:
    accepted = "attention, all, match:REGEX, or a list of module names"
    yield from check_pattern("lora.targets", targets, ("attention", "all"), accepted)


def _pool(recipe: Recipe) -> Iterator[RecipeError]:
    """What does not go with groups of several prompts."""
    train = recipe.train
    if train.pool == 1:
        return
    if train.prompts % train.pool:
        problem = f"got {train.pool}, accepted: a divisor of train.prompts = {train.prompts}"
        yield RecipeError("train.pool", problem, "change one of them")
    for place, found in (
        ("train.refill", bool(train.refill)),
        ("train.budget", train.budget is not None),
        ("sampler.tree", recipe.sampler.tree is not None),
        ("advantage.kind", isinstance(recipe.advantage, Own)),
    ):
        if found:
            problem = (
                f"got {train.pool}, but with {place} prompts do not stay beside each other, or are compared elsewhere"
            )
            yield RecipeError("train.pool", problem, f"set train.pool=1, or leave {place} out")


def _learning(recipe: Recipe) -> Iterator[RecipeError]:
    train = recipe.train
    if not all(0 <= beta < 1 for beta in train.betas):
        yield wrong_value("train.betas", train.betas, "two numbers in [0, 1)")
    if train.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        problem = "got 'adamw_8bit', which needs the package bitsandbytes, and it is not installed"
        yield RecipeError("train.optimizer", problem, "pip install bitsandbytes, or set train.optimizer=adamw")
    total = train.iterations * train.epochs * train.updates
    if train.warmup and train.warmup >= total:
        problem = f"got {train.warmup}, accepted: below the {total} optimizer steps of the run"
        yield RecipeError("train.warmup", problem, "lower it or raise train.iterations")
    baseline = recipe.advantage.baseline
    if recipe.advantage.trim and baseline not in ("group", "batch", "none", "given"):
        problem = (
            f"got {recipe.advantage.trim}, but baseline {baseline} already determines which samples are in the mean"
        )
        yield RecipeError("advantage.trim", problem, "set advantage.trim=0")
    if baseline == "pass_at_k":
        yield from _pass_at_k(recipe)


def _pass_at_k(recipe: Recipe) -> Iterator[RecipeError]:
    advantage, group = recipe.advantage, recipe.train.group
    if advantage.k > group:
        problem = f"got {advantage.k}, accepted: at most train.group = {group}"
        yield RecipeError("advantage.k", problem, "lower it, or raise train.group")
    if advantage.scale not in ("group", "none"):
        problem = f"got {advantage.scale!r}, but baseline pass_at_k has a scale of its own"
        yield RecipeError("advantage.scale", problem, "set advantage.scale=group to divide by it, or none")


def _watch(recipe: Recipe) -> Iterator[RecipeError]:
    own = [rule.alarm for rule in recipe.watch.rules]
    known = [*ALARMS, *own]
    for name in recipe.watch.ignore:
        if name not in known:
            yield wrong_value("watch.ignore", name, ", ".join(known), suggestion=names.closest(name, known))
    for name in own:
        if name in ALARMS or own.count(name) > 1:
            yield RecipeError("watch.rules", f"two alarms would be called {name!r}", "rename the function")
            break
    if recipe.watch.kl_to_base is not None and recipe.full:
        problem = (
            f"got {recipe.watch.kl_to_base:g}, but full: true leaves no base (it is the model without its adapters)"
        )
        yield RecipeError("watch.kl_to_base", problem, "set watch.kl_to_base=null, or train a lora")
    if recipe.watch.on_hack == "rollback" and recipe.prompts.heldout is None:
        problem = "got 'rollback', but without held-out prompts the best witness is unknown"
        yield RecipeError("watch.on_hack", problem, "set prompts.heldout, or watch.on_hack=stop")


def _prompts(recipe: Recipe) -> Iterator[RecipeError]:
    prompts = recipe.prompts
    for name in ("train", "heldout"):
        source = getattr(prompts, name)
        if source is None or source in names.WORLD_PROMPTS or Path(source).exists():
            continue
        if names.to_be_fetched(source, prompts.source):
            continue  # a plan is made without it; `flowrl run` says how to get it
        looks_like_path = source.endswith((".txt", ".jsonl")) or source.startswith((".", "/", "~"))
        worlds = {known.split("/")[0] for known in names.WORLD_PROMPTS}
        if looks_like_path or source.split("/")[0] in worlds:
            yield _no_source(f"prompts.{name}", source)
    if prompts.limit is not None and prompts.limit < recipe.train.prompts:
        problem = f"got {prompts.limit}, but an iteration draws train.prompts = {recipe.train.prompts} distinct prompts"
        yield RecipeError("prompts.limit", problem, "raise it or lower train.prompts")
    if prompts.heldout is None and recipe.eval.prompts is not None:
        problem = f"got {recipe.eval.prompts}, but there are no held-out prompts"
        yield RecipeError("eval.prompts", problem, "set prompts.heldout, or eval.prompts=null")


def _no_source(place: str, source: str) -> RecipeError:
    parent = Path(source).expanduser().parent
    beside = [str(parent / p.name) for p in parent.iterdir()] if parent.is_dir() else []
    accepted = f"an existing .txt or .jsonl file, a folder, a `datasets` name, {' or '.join(names.WORLD_PROMPTS)}"
    return wrong_value(place, source, accepted, suggestion=names.closest(source, [*names.WORLD_PROMPTS, *beside]))


def _rewards(recipe: Recipe) -> Iterator[RecipeError]:
    if not recipe.scores_train and not recipe.reads_reference:
        place = f"rewards.{next(iter(recipe.rewards))}.weight"
        remedy = "give one reward a non-zero weight, or set objective.kl=1 to learn from a `reference` alone"
        yield RecipeError(place, "got 0 for every reward, so nothing is trained", remedy)
    best = recipe.eval.best
    if best is not None and best not in recipe.rewards:
        meant = names.closest(best, recipe.rewards)
        yield wrong_value("eval.best", best, ", ".join(recipe.rewards), suggestion=meant)
    for name, spec in recipe.rewards.items():
        yield from check_reward(name, spec)
        yield from _manner(f"rewards.{name}", name, spec, recipe)


def check_reward(name: str, spec: RewardSpec) -> Iterator[RecipeError]:
    """Errors of a reward by itself: its name, what it refers to, its arguments."""
    place = f"rewards.{name}"
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "total":
        accepted = "letters, digits and _, beginning with a letter, but not total"
        yield RecipeError(place, f"got the name {name!r}, accepted: {accepted}", "rename it")
    try:
        entry = names.find(spec.use, names.rewards())
    except names.UserError as error:
        yield RecipeError(f"{place}.use", str(error), "name another reward")
        return
    yield from check_arguments(f"{place}.args", spec.args, entry)


def _manner(place: str, name: str, spec: RewardSpec, recipe: Recipe) -> Iterator[RecipeError]:
    """Contradictions in how a reward counts and is run."""
    if spec.gate is not None:
        others = [other for other in recipe.rewards if other != name]
        if spec.gate.by not in others:
            listed = ", ".join(others) or "none is there"
            remedy = f"accepted is another reward{names.hint(spec.gate.by, others)}: {listed}"
            yield RecipeError(f"{place}.gate.by", f"got {show(spec.gate.by)}", remedy)
        elif spec.weight == 0:
            yield RecipeError(f"{place}.gate", "the reward is a witness (weight 0)", f"remove {place}.gate")
    if spec.shape is not None:
        yield from check_shape(f"{place}.shape", spec.shape)
    if spec.overlap and spec.offload:
        problem = "got true, but a reward that overlaps with drawing has to stay where it is"
        yield RecipeError(f"{place}.offload", problem, f"set {place}.offload or {place}.overlap to false")
    if spec.when == {}:
        yield RecipeError(f"{place}.when", "got no key", f"name a key of the prompts' meta, or remove {place}.when")
