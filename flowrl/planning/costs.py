"""What a recipe will do, worked out without weights: the plan of each iteration, its arithmetic, the dry-run text.

A recipe with `generation` is a language model's: its plan says how tokens are drawn, its costs are token-forwards.

Costs are counted in denoiser row-forwards: one row of latents through the denoiser once. Classifier-free guidance is
the pipeline's own matter: where it runs two rows or two calls for one latent, the real work is twice these numbers.
"""

import textwrap
from dataclasses import dataclass
from typing import Any

from flowrl.planning import tokens, walks
from flowrl.planning.sizes.rewards import on_device, told
from flowrl.planning.sizes.units import size_text
from flowrl.recipe.schema import Recipe
from samplers.decisions import replay_forwards
from samplers.plan import Tree
from samplers.trees import lines as tree_lines
from samplers.trees import picture


def plan_for(recipe: Recipe, iteration: int) -> Any:
    """What a training iteration, counted from 0, does. Depends on the recipe and the number alone.

    Of a denoising model it is the role of every step (Plan), of a language model how tokens are drawn (Generation).
    """
    return tokens.plan(recipe) if recipe.generation is not None else walks.walk(recipe, iteration)


def eval_plan(recipe: Recipe) -> Any:
    """An evaluation: the pure ODE walk, or tokens at eval.temperature; every sample has its own noise."""
    return tokens.eval_plan(recipe) if recipe.generation is not None else walks.ode(recipe)


@dataclass(frozen=True)
class Arithmetic:
    """Sizes and costs of one iteration. Forwards are denoiser row-forwards, without the doubling of guidance.

    Of a language model they are token-forwards, at most: completions that end early take fewer. Those of the prompts
    come on top.
    """

    samples: int  # finished ones
    rows: int  # trainable chains; in a straight walk they are the samples
    rows_per_update: int
    optimizer_steps: int
    micro_batches: int  # forward-backward parts of one optimizer step, for each trained step
    rows_at_once: int  # of a rollout, at most
    rollout_forwards: int
    train_forwards: int  # with gradient, all epochs; at most: rows without an advantage are skipped unless KL is paid
    reference_forwards: int  # without gradient, once an iteration; 0 when no reference is needed
    whole_row_forwards: int = 0  # without gradient, before those of training, where a ratio needs all steps of a row


def arithmetic(recipe: Recipe, iteration: int = 0) -> Arithmetic:
    """The arithmetic of an iteration.

    What the samples of a prompt share costs one row, in the rollout, and in training one a micro-batch. Rows
    are cut into updates and micro-batches in order, prompt by prompt.
    """
    train = recipe.train
    if recipe.generation is not None:
        return _of_tokens(recipe)
    tree = walks.walk(recipe, iteration).tree(train.group)
    rows = train.prompts * len(tree.rows)
    per_update = rows // train.updates
    by_step = train.update_by == "steps"
    one_pass = replay_forwards(tree, train.prompts, train.updates, train.micro_batch, by_step=by_step)
    reference = replay_forwards(tree, train.prompts, 1, train.micro_batch)
    in_two_passes = recipe.objective.level != "token" and len(tree.trained) > 1  # see backward.py
    return Arithmetic(
        samples=train.prompts * len(tree.leaves),
        rows=rows,
        rows_per_update=per_update,
        optimizer_steps=train.epochs * train.updates,
        micro_batches=-(-per_update // (train.micro_batch or per_update)),
        rollout_forwards=train.prompts * sum(len(front.units) for front in tree.fronts),
        train_forwards=train.epochs * one_pass,
        reference_forwards=reference if recipe.objective.kl > 0 else 0,
        whole_row_forwards=train.epochs * one_pass if in_two_passes else 0,
        rows_at_once=_at_once(recipe, max(part.rows for part in tree.passes())),
    )


def _at_once(recipe: Recipe, rows_per_prompt: int) -> int:
    """Rows that one call of a rollout holds at most: whole prompts, or a part of one."""
    train = recipe.train
    limit = train.rollout_batch or train.prompts * rows_per_prompt
    if limit < rows_per_prompt:
        return limit
    return min(limit // rows_per_prompt, train.prompts) * rows_per_prompt


def _of_tokens(recipe: Recipe) -> Arithmetic:
    train = recipe.train
    rows = train.prompts * train.group
    per_update = rows // train.updates
    return Arithmetic(
        samples=rows,
        rows=rows,
        rows_per_update=per_update,
        optimizer_steps=train.epochs * train.updates,
        micro_batches=-(-per_update // (train.micro_batch or per_update)),
        rows_at_once=_at_once(recipe, train.group),
        **tokens.forwards(recipe),
    )


def describe(recipe: Recipe, *, num_train: int | None = None, num_heldout: int | None = None) -> str:
    """The text of --dry-run: batches, which steps draw noise and learn, costs, rewards, output.

    num_train and num_heldout are the numbers of prompts, where they have been read.
    """
    blocks = [_batches(recipe, num_train, num_heldout), _steps(recipe), _costs(recipe), _ends(recipe)]
    return "\n\n".join("\n".join(block) for block in blocks)


def _batches(recipe: Recipe, num_train: int | None, num_heldout: int | None) -> list[str]:
    train, a = recipe.train, arithmetic(recipe)
    learns = f"all weights of the {'model' if recipe.generation is not None else 'denoiser'}"
    if recipe.lora is not None:
        learns = f"LoRA rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g} on {_listed(recipe.lora.targets)}"
    micro = "1 part" if a.micro_batches == 1 else f"{a.micro_batches} micro-batches of up to {train.micro_batch} rows"
    passes = "1 pass" if train.epochs == 1 else f"{train.epochs} passes"
    again = f"; groups without advantage are drawn anew, up to {_count(train.refill, 'time')}" if train.refill else ""
    finished = "" if a.samples == a.rows else f" that lead to {a.samples} samples"
    heldout = "none" if recipe.prompts.heldout is None else f"{recipe.prompts.heldout}{_number(num_heldout)}"
    return [
        f"model       {recipe.model}",
        f"learns      {learns}, lr {train.lr:g} {train.schedule}",
        f"prompts     {recipe.prompts.train}{_number(num_train)}; held out: {heldout}",
        f"iteration   {train.prompts} prompts x {train.group} samples = {a.rows} rows{finished}, "
        f"{a.rows_at_once} at once{again}",
        f"update      {passes} x {_count(train.updates, 'update')} = {_count(a.optimizer_steps, 'optimizer step')}, "
        f"each on {a.rows_per_update} rows ({_part_of_update(recipe)}) in {micro}",
        f"run         {_count(train.iterations, 'iteration')} = "
        f"{_count(train.iterations * a.optimizer_steps, 'optimizer step')}, {train.iterations * a.samples} samples"
        + (f"; ends after {train.seconds:g} s of training" if train.seconds is not None else ""),
    ]


def _part_of_update(recipe: Recipe) -> str:
    """What an optimizer step takes of a rollout, in words."""
    train = recipe.train
    if train.update_by == "prompts":
        return _count(train.prompts // train.updates, "prompt")
    steps = len(walks.walk(recipe, 0).tree(train.group).trained) // train.updates
    return f"{_count(steps, 'step')} of all prompts"


def _steps(recipe: Recipe) -> list[str]:
    if recipe.generation is not None:
        return tokens.lines(recipe)
    sampler, group = recipe.sampler, recipe.train.group
    schedule = "" if sampler.schedule.kind == "own" else f" on a {sampler.schedule.kind} table"
    shared = ", groups share their first latent" if sampler.share_noise else ""
    legend = "● draws noise and is trained   · follows the ODE"
    first = walks.walk(recipe, 0).tree(group)
    legend += "   o draws noise" if "o" in picture(first) else ""
    legend += f"   | {sampler.tail.solver} from here" if sampler.tail is not None else ""
    walk = f"{sampler.steps} by {sampler.step}, noise {sampler.noise:g}{schedule}{shared}"
    lines = [f"steps       {walk}", f"            {legend}"]
    shown = _shown_iterations(recipe)
    width = len(str(shown[-1]))
    lines += [f"            {picture(walks.walk(recipe, i).tree(group))}  iteration {i:>{width}}" for i in shown]
    if len(shown) == 1:
        lines[-1] += " and all others"
    elif shown[-1] < recipe.train.iterations - 1:
        lines.append("            … and so on")
    if recipe.prompts.heldout is not None:
        lines.append(f"            {picture(walks.ode(recipe).tree(1))}  evaluation")
    return [*lines, *_rows_of_tree(first)] if sampler.tree is not None else lines


def _rows_of_tree(tree: Tree) -> list[str]:
    """Rows of the denoiser that a tree takes, step by step, wrapped."""
    lines = ["tree        rows of the denoiser a prompt, at iteration 0"]
    for text in tree_lines(tree):
        lines += [f"            {part}" for part in textwrap.wrap(text, 106)]
    return lines


def _shown_iterations(recipe: Recipe, limit: int = 8) -> list[int]:
    """The iterations at which the plan changes, the first of them."""
    found, before = [], None
    for i in range(min(recipe.train.iterations, 1000)):
        plan = walks.walk(recipe, i)
        if plan != before:
            found.append(i)
        if len(found) == limit:
            break
        before = plan
    return found


def _costs(recipe: Recipe) -> list[str]:
    first: dict[Any, int] = {}  # the first iteration of each plan: the same plan costs the same
    for i in range(min(recipe.train.iterations, 1000)):
        first.setdefault(plan_for(recipe, i), i)
    costs = [arithmetic(recipe, i) for i in first.values()]

    def span(name: str) -> str:
        values = [getattr(c, name) for c in costs]
        low, high = min(values), max(values)
        return f"{low}" if low == high else f"{low} to {high}"

    unit = "denoiser    row-forwards an iteration (guidance, where the pipeline uses it, doubles them)"
    if recipe.generation is not None:
        unit = "model       token-forwards an iteration, at most (completions may end early; prompts come on top)"
    pruned = recipe.generation is None and recipe.sampler.tree is not None and recipe.sampler.tree.width_prune
    exact = recipe.objective.kl > 0 and recipe.train.keep is None and not (recipe.train.drop_silent or pruned)
    lines = [
        unit,
        f"            rollout {span('rollout_forwards')}, training {'' if exact else 'at most '}"
        f"{span('train_forwards')} with gradient"
        + (f", reference {span('reference_forwards')}" if recipe.objective.kl > 0 else ""),
    ]
    if any(c.whole_row_forwards for c in costs):
        lines.append(f"            before it {span('whole_row_forwards')} without gradient, for ratios of whole rows")
    if recipe.train.keep is not None:
        lines.append(
            f"            of rows that are compared, only the best and the worst {recipe.train.keep // 2} are trained"
        )
    if recipe.train.drop_silent:
        lines.append("            rows whose advantage is 0 leave the loss first; updates share out the others")
    if recipe.train.refill:
        lines.append(f"            drawing groups anew takes at most {recipe.train.refill} more rollouts")
    return [*lines, _objective(recipe)]


def _objective(recipe: Recipe) -> str:
    objective = recipe.objective
    low, high = objective.clip_range
    parts = [f"{objective.level} ratio{' (centred)' if objective.ratio == 'centred' else ''}"]
    masked = objective.kl_mask is not None
    parts += [f"left alone beyond KL {objective.kl_mask:g}" if masked else f"clip -{low:g} +{high:g}"]
    if objective.weight != "none":
        weight = objective.weight
        parts += [f"weights {weight if isinstance(weight, str) else ' '.join(f'{w:g}' for w in weight)}"]
    parts += [f"dual {objective.dual:g}"] if objective.dual is not None else []
    parts += [f"log-ratio within {objective.log_ratio_limit:g}"] if objective.log_ratio_limit is not None else []
    parts += [f"KL {objective.kl:g} ({objective.kl_kind})"] if objective.kl > 0 else []
    share = objective.entropy_share
    parts += [f"policy gradient of the top {share:g} of tokens by entropy"] if share is not None else []
    parts += ["guidance trained in its conditional half"] if objective.guidance_gradient == "conditional" else []
    length = f", length {objective.length}" if objective.length is not None else ""
    advantage = f"baseline {recipe.advantage.baseline}, scale {recipe.advantage.scale}"
    text = f"objective   {objective.preset}: {', '.join(parts)}, {objective.aggregate}{length};"
    return f"{text} {advantage}" if len(text) + len(advantage) < 120 else f"{text}\n{'':<12}{advantage}"


def _ends(recipe: Recipe) -> list[str]:
    lines, evaluation = _rewards(recipe), recipe.eval
    when = [f"every {evaluation.every} iterations"] if evaluation.every else []
    when += [f"every {evaluation.every_seconds:g} s of training"] if evaluation.every_seconds else []
    when += [word for word, on in (("at the start", evaluation.at_start), ("at the end", evaluation.at_end)) if on]
    number = "all" if evaluation.prompts is None else evaluation.prompts
    if recipe.prompts.heldout is not None and when:
        lines.append(f"eval        {number} held-out prompts {', '.join(when)}, {eval_words(recipe)}")
    return [*lines, f"output      {recipe.output}"]


def _rewards(recipe: Recipe) -> list[str]:
    """Each reward, how it counts, and what its weights take."""
    width, lines = max(len(name) for name in recipe.rewards), []
    for i, (name, spec) in enumerate(recipe.rewards.items()):
        role = f"weight {spec.weight:g}" if spec.weight else "witness"
        weights = told(spec.use, spec.args, spec.device, size_text)
        line = f"{'rewards' if i == 0 else '':<12}{name:<{width}}  {spec.use}, {role}"
        lines.append(f"{line}: {weights}" if weights else line)
    stay, at_work = on_device(recipe.rewards, recipe.device)
    if at_work:
        aside = f", {size_text(at_work - stay)} of them only while they score" if at_work > stay else ""
        lines.append(f"{'':<12}{size_text(at_work)} of reward models on the run's device{aside}")
    return lines


def eval_words(recipe: Recipe) -> str:
    """How an evaluation samples, in words."""
    return (
        tokens.words(tokens.eval_plan(recipe))
        if recipe.generation is not None
        else f"{walks.ode(recipe).num_steps} ODE steps"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(number: int | None) -> str:
    return "" if number is None else f" ({number})"


def _listed(targets: str | list[str]) -> str:
    return targets if isinstance(targets, str) else f"{len(targets)} named kinds of layer"
