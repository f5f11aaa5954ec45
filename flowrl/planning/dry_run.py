"""The text of a dry run: what a recipe will do, in words."""

from typing import Any

from flowrl.kinds import kind_of
from flowrl.planning import walks
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.sizes.rewards import on_device, told
from flowrl.planning.sizes.units import size_text
from flowrl.recipe.checks.objectives import CLIPPED, OF_GATES
from flowrl.recipe.keys.phases import phase_at, starts
from flowrl.recipe.keys.reference import ReferenceKeys
from flowrl.recipe.schema import ObjectiveKeys, Recipe
from flowrl.recipe.sections import Own

KEPT_BY = {"magnitude": "are farthest from 0", "smallest": "are nearest to 0", "variance": "differ most"}


def describe(recipe: Recipe, *, num_train: int | None = None, num_heldout: int | None = None) -> str:
    """The text of --dry-run: batches, which steps draw noise and are trained, costs, rewards, output.

    num_train, num_heldout: the numbers of prompts, if they have been read.
    """
    decisions = kind_of(recipe).planning.lines(recipe)
    blocks = [_batches(recipe, num_train, num_heldout), decisions, _costs(recipe), _phases(recipe), _ends(recipe)]
    blocks = [block for block in blocks if block]
    return "\n\n".join("\n".join(block) for block in blocks)


def _batches(recipe: Recipe, num_train: int | None, num_heldout: int | None) -> list[str]:
    whole, recipe = recipe, recipe.parts()[0]
    train, a = recipe.train, arithmetic(recipe)
    learns = f"all weights of the {kind_of(recipe).words.network}"
    if recipe.lora is not None:
        learns = f"LoRA rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g} on {_targets_text(recipe.lora.targets)}"
    micro = "1 part" if a.micro_batches == 1 else f"{a.micro_batches} micro-batches of up to {train.micro_rows} rows"
    passes = "1 pass" if train.epochs == 1 else f"{train.epochs} passes"
    again = f"; groups without advantage are replaced, up to {_count(train.refill, 'time')}" if train.refill else ""
    finished = "" if a.samples == a.rows else f" that give {a.samples} samples"
    heldout = "none" if recipe.prompts.heldout is None else f"{recipe.prompts.heldout}{_number(num_heldout)}"
    chosen = ""
    if recipe.prompts.choose.kind != "shuffle":
        what = recipe.prompts.remember or "the weighted sum of the rewards"
        chosen = f"; chosen by {recipe.prompts.choose.kind}, which remembers {what} of each"
    return [
        f"model       {recipe.model}",
        f"learns      {learns}, lr {train.lr:g} {train.schedule}",
        *([f"{'':<12}merged into the weights during rollouts"] if recipe.rollout.merge is True else []),
        f"prompts     {recipe.prompts.train}{_number(num_train)}; held out: {heldout}{chosen}",
        f"iteration   {train.drawn} prompts x {train.group} samples = {a.rows} rows{finished}, "
        f"{a.rows_at_once} at once{again}",
        f"update      {passes} x {_count(train.updates, 'update')} = {_count(a.optimizer_steps, 'optimizer step')}, "
        f"each on {a.rows_per_update} rows ({_part_of_update(recipe)}) in {micro}",
        f"run         {_count(train.iterations, 'iteration')} = "
        f"{_count(train.iterations * a.optimizer_steps, 'optimizer step')}, {train.iterations * a.samples} samples"
        + (" of the first phase's kind: see phases" if whole.phases else "")
        + (f"; ends after {train.seconds:g} s of training" if train.seconds is not None else ""),
    ]


def _part_of_update(recipe: Recipe) -> str:
    """The part of a rollout that an optimizer step uses, in words."""
    train = recipe.train
    if train.update_by == "prompts":
        return _count(train.drawn // train.updates, "prompt")
    steps = len(walks.walk(recipe, 0).tree(train.group).trained) // train.updates
    return f"{_count(steps, 'step')} of all prompts"


def _costs(recipe: Recipe) -> list[str]:
    first: dict[Any, int] = {}  # the first iteration of each plan: the same plan costs the same
    for i in range(min(recipe.train.iterations, 1000)):
        phase = phase_at(recipe.phases, i) if recipe.phases else 0
        first.setdefault((plan_for(recipe, i), recipe.at(i).objective.kl > 0, phase), i)
    costs = [arithmetic(recipe, i) for i in first.values()]

    def span(name: str) -> str:
        values = [getattr(c, name) for c in costs]
        low, high = min(values), max(values)
        return f"{low}" if low == high else f"{low} to {high}"

    pruned = recipe.sampler.tree is not None and recipe.sampler.tree.width_prune
    pays = [stage.objective.kl > 0 and stage.objective.loss is None for stage in recipe.stages()]
    exact = all(pays) and recipe.train.keep is None and not (recipe.train.drop_silent or pruned)
    words = kind_of(recipe).words
    lines = [
        f"{words.network:<12}{words.costs}",
        f"            rollout {span('rollout_forwards')}, training {'' if exact else 'at most '}"
        f"{span('train_forwards')} with gradient"
        + (f", {_others(recipe)} {span('reference_forwards')}" if any(c.reference_forwards for c in costs) else "")
        + (f", before it {span('corrected_forwards')}" if any(c.corrected_forwards for c in costs) else ""),
    ]
    if any(c.reread_forwards for c in costs):
        lines.append(
            f"{'':<12}no KV cache: each token reads all tokens before it again, {span('reread_forwards')}"
            " more in a rollout, plus the prompt for each"
        )
    if any(c.value_forwards for c in costs):
        lines.append(
            f"            the critic {span('value_forwards')} without gradient, and {span('critic_forwards')} with it"
        )
    if any(c.whole_row_forwards for c in costs):
        lines.append(f"            before it {span('whole_row_forwards')} without gradient, for ratios of whole rows")
    if any(c.decodes for c in costs):
        lines.append(
            f"            training also decodes {span('decodes')} samples with gradient, and computes "
            f"{span('reward_gradients')} gradients of rewards"
        )
    if recipe.train.keep is not None:
        which = f"the best and the worst {recipe.train.keep // 2}"
        if (how := KEPT_BY.get(recipe.train.keep_by)) is not None:
            which = f"the {recipe.train.keep} whose advantages {how}"
        lines.append(f"            trains only {which} of the rows that are compared")
    if recipe.train.drop_silent:
        lines.append("            rows with advantage 0 are left out of the loss; updates share the other rows evenly")
    if (budget := recipe.train.budget) is not None:
        lines.append(
            f"            prompts with less than half of their samples right get more, by {budget.kind}, up to "
            f"{budget.limit} each; the numbers above do not include them"
        )
    if recipe.train.refill:
        lines.append(f"            replacing groups takes at most {recipe.train.refill} more rollouts")
    return [*lines, _objective(recipe), *_reference(recipe), *_curves(recipe)]


def _reference(recipe: Recipe) -> list[str]:
    """What a divergence is measured from, where that is not the model itself, and where nothing else trains."""
    alone = [] if recipe.scores_train else [f"{'':<12}no reward is called: only the divergence trains"]
    told = [f"{'' if i else 'reference':<12}{one}" for i, one in enumerate(recipe.references)]
    told = told if recipe.references != [ReferenceKeys()] else []
    return [*told, *alone] if recipe.reads_reference else []


def _phases(recipe: Recipe) -> list[str]:
    """Each phase, and what all of them take; the rest of the text is about the first."""
    lines, samples, steps = [], 0, 0
    for phase, first in zip(recipe.phases, starts(recipe.phases), strict=True):
        number, one = min(phase.iterations, max(recipe.train.iterations - first, 0)), arithmetic(recipe, first)
        samples, steps = samples + number * one.samples, steps + number * one.optimizer_steps
        lines.append(f"{phase.words(first + 1)} ({number * one.samples} samples)")
    if lines:
        lines.append(f"total: {samples} samples, {_count(steps, 'optimizer step')}")
    return [f"{'' if i else 'phases':<12}{line}" for i, line in enumerate(lines)]


def _curves(recipe: Recipe) -> list[str]:
    """The values that change during the run; the rest of the text shows those of the first iteration."""
    width = max(map(len, recipe.curves), default=0)
    lines = [f"{name:<{width}}  {curve.words()}" for name, curve in recipe.curves.items()]
    return [f"{'' if i else 'curves':<12}{line}" for i, line in enumerate(lines)]


def _others(recipe: Recipe) -> str:
    """Under which other weights there are looks without gradient."""
    loss = recipe.objective.loss
    if loss is None or not loss.reads_old:
        return "reference"
    return "older weights and reference" if loss.reads_reference or recipe.objective.kl > 0 else "older weights"


def _objective(recipe: Recipe) -> str:
    objective = recipe.objective
    chosen = recipe.advantage
    advantage = str(chosen) if isinstance(chosen, Own) else f"baseline {chosen.baseline}, scale {chosen.scale}"
    if chosen.credit.kind != "broadcast":
        advantage += f", credit {chosen.credit.kind}"
    if isinstance(objective, Own):
        return f"objective   {objective}; {advantage}"
    if objective.loss is not None:
        given = ", ".join(f"{name} {value}" for name, value in objective.loss.given.items())
        text = f"objective   {objective.preset}: {objective.loss.kind}{f' ({given})' if given else ''}"
        kl = f", KL {objective.kl:g}" if objective.kl > 0 else ""
        if kind_of(recipe).texts:
            return f"{text}, of {'given texts' if recipe.train.source == 'files' else 'completions'}"
        text = f"{text}{kl}, mean over samples{'' if objective.loss.pulls else ' and levels'};"
        if objective.loss.pulls:
            return f"{text} no advantage"
        return f"{text} {advantage}" if len(text) + len(advantage) < 120 else f"{text}\n{'':<12}{advantage}"
    low, high = objective.clip_range
    parts = [f"{objective.level} ratio{' (centred)' if objective.ratio == 'centred' else ''}"]
    masked = objective.kl_mask is not None
    parts += [f"gate {_gate(objective)}"] if objective.gate != "ppo" else []
    if objective.gate in CLIPPED:
        parts += [f"masked beyond KL {objective.kl_mask:g}" if masked else f"clip -{low:g} +{high:g}"]
    if objective.weight != "none":
        weight = objective.weight
        parts += [f"weights {weight if isinstance(weight, str) else ' '.join(f'{w:g}' for w in weight)}"]
    parts += [f"dual {objective.dual:g}"] if objective.dual is not None else []
    parts += [f"log-ratio within {objective.log_ratio_limit:g}"] if objective.log_ratio_limit is not None else []
    paid = " in the reward" if objective.kl_in == "reward" else ""
    parts += [f"KL {objective.kl:g} ({objective.kl_kind}){paid}"] if objective.kl > 0 else []
    parts += _corrections(objective)
    share = objective.entropy_share
    parts += [f"policy gradient from the top {share:g} of tokens by entropy"] if share is not None else []
    parts += ["only the conditional half of guidance trained"] if objective.guidance_gradient == "conditional" else []
    length = f", length {objective.length}" if objective.length is not None else ""
    text = f"objective   {objective.preset}: {', '.join(parts)}, {objective.aggregate}{length};"
    return f"{text} {advantage}" if len(text) + len(advantage) < 120 else f"{text}\n{'':<12}{advantage}"


def _corrections(objective: ObjectiveKeys) -> list[str]:
    """What is done about who sampled, and about entropy."""
    parts = []
    if (given := objective.correction) is not None:
        bounds = [f"{name} {value:g}" for name in ("low", "high") if (value := getattr(given, name)) is not None]
        rejects = [f"reject {one.by} {one.level}" for one in given.reject]
        words = [*bounds, *rejects, *(["veto"] if given.veto is not None else [])]
        parts.append(f"correction {given.kind}{f' ({chr(44).join(words)})' if words else ''}")
    if (cov := objective.covariance) is not None:
        parts.append(f"covariance {cov.kind} of {cov.share:g}")
    parts += [f"off-policy beyond {objective.off_policy_mask:g}"] if objective.off_policy_mask is not None else []
    parts += [f"entropy {objective.entropy:g}"] if objective.entropy else []
    parts += [f"entropy target {objective.entropy_target:g}"] if objective.entropy_target is not None else []
    return parts


def _gate(objective: ObjectiveKeys) -> str:
    numbers = [f"{name} {getattr(objective, name):g}" for name, gates in OF_GATES.items() if gates == (objective.gate,)]
    return f"{objective.gate} ({', '.join(numbers)})" if numbers else objective.gate


def _ends(recipe: Recipe) -> list[str]:
    lines, evaluation = _rewards(recipe), recipe.eval
    when = [f"every {evaluation.every} iterations"] if evaluation.every else []
    when += [f"every {evaluation.every_seconds:g} s of training"] if evaluation.every_seconds else []
    when += [word for word, on in (("at the start", evaluation.at_start), ("at the end", evaluation.at_end)) if on]
    number = "all" if evaluation.prompts is None else evaluation.prompts
    if recipe.prompts.heldout is not None and when:
        how = kind_of(recipe).planning.eval_words(recipe)
        lines.append(f"eval        {number} held-out prompts {', '.join(when)}, {how}")
    return [*lines, f"output      {recipe.output}"]


def _rewards(recipe: Recipe) -> list[str]:
    """Each reward, how it counts, and the memory of its weights."""
    width, lines = max(len(name) for name in recipe.rewards), []
    for i, (name, spec) in enumerate(recipe.rewards.items()):
        role = f"weight {spec.weight:g}" if spec.weight else "witness"
        weights = told(spec.use, spec.args, spec.device, size_text)
        line = f"{'rewards' if i == 0 else '':<12}{name:<{width}}  {spec.use}, {role}"
        lines.append(f"{line}: {weights}" if weights else line)
    stay, at_work = on_device(recipe.rewards, recipe.device)
    if at_work:
        aside = f", {size_text(at_work - stay)} of them only while scoring" if at_work > stay else ""
        lines.append(f"{'':<12}{size_text(at_work)} of reward models on the run's device{aside}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(number: int | None) -> str:
    return "" if number is None else f" ({number})"


def _targets_text(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else f"{len(targets)} named kinds of layer"
