"""Plans and costs of a language model's recipe, and their lines in a dry run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flowrl.kinds.language import section_of
from flowrl.known.language import LANGUAGE
from flowrl.planning.costs import Arithmetic
from flowrl.recipe.checks.roles import contributions
from flowrl.recipe.checks.views import paired_view, scored_view
from flowrl.recipe.schema import Recipe
from samplers.tokens import Generation

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.planning.sizes.flops import Flops
    from flowrl.planning.sizes.memory import Sizes

KNOWN: Sequence[str] = tuple(LANGUAGE)  # models on a hub whose configs ship


def plan(recipe: Recipe, iteration: int) -> Generation:
    """How the tokens of a training iteration are drawn; the same in every iteration."""
    given = section_of(recipe)
    force = None if given.force is None else (given.force.text, given.force.left)
    return replace(_plain(recipe), temperature=given.temperature, force=force, precision=recipe.rollout.dtype)


def eval_plan(recipe: Recipe) -> Generation:
    """How the tokens of an evaluation are drawn: at eval.temperature, else as in training."""
    given, heat = section_of(recipe), recipe.eval.temperature
    return replace(_plain(recipe), temperature=given.temperature if heat is None else heat)


def _plain(recipe: Recipe) -> Generation:
    """How tokens are drawn, at temperature 1."""
    given = section_of(recipe)
    names = ("max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty")
    return Generation(**{name: getattr(given, name) for name in names})


def group_plan(recipe: Recipe) -> Generation:
    """As in training: greedy completions of one prompt would be identical."""
    return plan(recipe, 0)


def reference_plan(recipe: Recipe) -> Generation:
    """Greedy decoding."""
    return replace(eval_plan(recipe), temperature=0.0)


def starts(plan: Generation, group: int) -> list[int]:
    """0 for every sample: a prompt has one greedy completion."""
    return [0] * group


def check(recipe: Recipe) -> None:
    """Nothing to check: every token that is drawn is trained."""


def arithmetic(recipe: Recipe, iteration: int) -> Arithmetic:
    """The arithmetic of an iteration, in token-forwards, at most.

    The exact divergence recomputes the reference's distributions in every replay: they are too large to keep.
    """
    train, objective = recipe.train, recipe.objective
    said, more = contributions(recipe), 1.0 if train.expand is None else train.expand.most
    rows = train.drawn * train.group * said
    per_update = rows // train.updates
    longest = section_of(recipe).max_new_tokens + further_tokens(recipe)
    drawn = rows * longest
    critic = recipe.critic
    fits = 0 if critic is None else (critic.epochs or train.epochs)
    greedy = train.drawn * section_of(recipe).max_new_tokens if recipe.advantage.baseline == "given" else 0
    passes = 1 + (train.epochs if objective.kl_kind in ("exact", "forward", "jsd") else 0)
    beside, compared = _beside(recipe)
    looked = passes * drawn if objective.kl > 0 else drawn if _compared(recipe) else 0
    apart = recipe.rollout.dtype is not None or recipe.rollout.engine is not None
    again = objective.correction is not None or apart
    seen = drawn if scored_view(recipe) is not None else 0  # once more, beside other pictures
    further, clean = _viewed(recipe)
    rollout = (
        round(more * (train.drawn * (tokens_of_prompt(recipe) * said + (further + clean) * longest) + greedy))
        if train.source == "rollouts"
        else 0
    )
    return Arithmetic(
        samples=rows,
        rows=rows,
        rows_per_update=per_update,
        optimizer_steps=train.epochs * train.updates,
        micro_batches=-(-per_update // (train.micro_rows or per_update)),
        rows_at_once=min(train.rollout_batch or rows, rows),
        rollout_forwards=rollout,
        reread_forwards=0 if recipe.rollout.engine is not None else _reread(recipe, rollout, longest),
        train_forwards=train.epochs * (drawn + beside * longest),
        reference_forwards=looked + compared * longest,
        value_forwards=0 if critic is None else drawn,
        critic_forwards=fits * drawn,
        corrected_forwards=(drawn if again else 0) + seen,
    )


def _reread(recipe: Recipe, tokens: int, longest: int) -> int:
    """Tokens that are read again where a model has no cache and draws so many in rows of `longest`; 0 where it has one.

    Token k of a row reads the k - 1 before it; those of the prompt are left out, as they are elsewhere.
    """
    from flowrl.planning.sizes.reading_again import reads_again  # transformers is slow to import

    return tokens * (longest - 1) // 2 if not recipe.rollout.cache or reads_again(recipe.model) else 0


def _viewed(recipe: Recipe) -> tuple[int, int]:
    """Of each prompt the samples that are drawn beside its group, and those of it that are scored once more."""
    views = recipe.views.values()
    return sum(v.beside for v in views), sum(v.draws for v in views if v.scored == "clean")


def _views(recipe: Recipe) -> list[str]:
    """Lines about pictures that are changed."""
    found = []
    for name, view in recipe.views.items():
        how = ", ".join(f"{n} {value if isinstance(value, str) else f'{value:g}'}" for n, value in view.given.items())
        what = f"view {name} ({view.kind}{', ' + how if how else ''})"
        if view.draws:
            then = "scored once more without it" if view.scored == "clean" else "trained as they were drawn"
            found.append(f"            {what}: {view.draws} of the {recipe.train.group} samples of a prompt, {then}")
        if view.beside:
            found.append(f"            {what}: {view.beside} further samples of a prompt, scored and not trained")
        if name == scored_view(recipe):
            found.append(f"            {what}: every row is looked at once more, without gradient")
        if name == paired_view(recipe):
            found.append(f"            {what}: two of the five rows of a prompt")
    return found


def further_tokens(recipe: Recipe) -> int:
    """By how many tokens a correction may exceed the limit of a completion."""
    again = section_of(recipe).again
    return (again.tokens or 256) if again is not None and again.kind == "corrections" else 0


def tokens_of_prompt(recipe: Recipe) -> int:
    """Tokens that are computed for a prompt's samples, at most; of a tree that parts by itself, if none ends early."""
    given, group = section_of(recipe), recipe.train.group
    limit, tree, again = given.max_new_tokens, given.tree, given.again
    if tree is not None and tree.kind == "treepo":
        segment, live, total = tree.segment or 512, min((tree.roots or [2, 8])[1], group), 0
        for begin in range(0, limit, segment):
            total += live * min(segment, limit - begin)
            live = min(live * (tree.width or 2), group)
        return total
    if tree is not None and tree.kind == "deepsearch":
        return group * (tree.width or 8) * limit
    if again is not None and again.kind == "hints":
        return group * limit * (1 + len(again.shares or [0.25, 0.5, 0.75]))
    if again is not None and again.kind == "values":
        states = min(again.steps or 20, limit if again.segment is None else -(-limit // again.segment))
        return group * limit + (1 + group * (states - 1)) * (again.continuations or 9) * limit
    return group * (limit + further_tokens(recipe))


def _parts(recipe: Recipe) -> list[str]:
    """Lines about completions that are drawn in more than one go."""
    given, group = section_of(recipe), recipe.train.group
    found = []
    if given.tree is not None:
        total = tokens_of_prompt(recipe)
        share = total / (group * given.max_new_tokens)
        found.append(
            f"            {group} of a prompt by a tree ({given.tree.kind}): up to {total:,} tokens are computed, "
            f"{share:.2f} of those of independent ones"
        )
    if given.again is not None:
        what = {
            "hints": "groups without a right one are drawn anew with hints",
            "corrections": "wrong ones are corrected",
            "values": f"{given.again.continuations or 9} continuations from the begin of each step give its value",
        }
        found.append(f"            {what[given.again.kind]}: up to {tokens_of_prompt(recipe):,} tokens of a prompt")
    if (roles := recipe.roles) is not None:
        rounds = f"{roles.rounds} round{'s' if roles.rounds > 1 else ''}"
        found.append(
            f"            discussions of {', '.join(roles.names)} in {rounds}, an adapter for each of the "
            f"{roles.adapters}; {roles.contributions} rows of each"
        )
    if recipe.train.expand is not None:
        most = recipe.train.expand.most
        found.append(f"            up to {most:g} times as many prompts, so that enough of them have an advantage")
    if recipe.train.resample is not None:
        found.append(f"            drawn anew from the samples of an iteration, by {recipe.train.resample.by}")
    if given.force is not None:
        found.append(f"            with {given.force.left} tokens left, {given.force.text!r} is given")
    return found


def _compared(recipe: Recipe) -> bool:
    """Whether a loss of whole texts reads the reference."""
    loss = recipe.objective.loss
    return loss is not None and loss.reads_reference


def _beside(recipe: Recipe) -> tuple[int, int]:
    """Rows of the terms beside the objective in an iteration, and those of them that the reference looks at."""
    objective, store = recipe.objective, recipe.train.store
    expert, pairs, right = (getattr(objective, name, None) for name in ("expert", "pairs", "right"))
    answers = recipe.train.drawn * recipe.train.group if right is not None else 0  # at most: if all of them are right
    compared = 2 * pairs.prompts if pairs is not None else 0
    stored = store.draw if store is not None else 0
    compared += stored if objective.kl > 0 else 0
    rows = (expert.prompts if expert is not None else 0) + stored + answers
    return rows + (2 * pairs.prompts if pairs is not None else 0), compared


def eval_forwards(recipe: Recipe) -> int:
    """One forward per token, at the length limit, and those of tokens that are read again."""
    longest = section_of(recipe).max_new_tokens
    tokens = longest * contributions(recipe)
    return tokens + _reread(recipe, tokens, longest)


def lines(recipe: Recipe) -> list[str]:
    """What a dry run says about how tokens are drawn."""
    given = section_of(recipe)
    chat = {"auto": "the tokenizer's chat template, if it has one", True: "the chat template", False: "no template"}
    message = "" if given.system is None else " and a system message"
    critic = recipe.critic
    own = [] if critic is None else [_critic(recipe)]
    more = recipe.advantage.baseline == "given"
    apart = [] if recipe.rollout.dtype is None else [f"{'':<12}drawn by a copy of the model in {recipe.rollout.dtype}"]
    engine = recipe.rollout.engine
    if engine is not None:
        apart += [f"{'':<12}drawn by {engine.use} at {', '.join(engine.urls)}; its log-probs are corrected for"]
    apart += [f"{'':<12}each row alone, the same bits in any batch"] if recipe.rollout.batch_invariant else []
    if recipe.rollout.cache == "static":
        apart += [f"{'':<12}keys and values in buffers of fixed size (rollout.cache), one compiled step a token"]
    talks = recipe.environment is not None
    return [
        f"tokens      {words(plan(recipe, 0))}; every one of them {'that the model draws ' if talks else ''}is trained",
        *_environment(recipe),
        *(["            and of each prompt one greedy completion, whose reward is the baseline"] if more else []),
        *_parts(recipe),
        *_views(recipe),
        f"            {chat[given.chat_template]}{message}",
        *own,
        *apart,
    ]


def _environment(recipe: Recipe) -> list[str]:
    """What the model talks to, in words."""
    given = recipe.environment
    if given is None:
        return []
    what = f"tools {', '.join(spec.use for spec in given.tools)}" if given.use is None else given.use
    most = f"{given.turns} turn{'s' if given.turns > 1 else ''}"
    each = "" if given.turn_tokens is None else f" of at most {given.turn_tokens} tokens"
    late = "" if given.deadline is None else f", {given.deadline:g} s each"
    return [
        f"environment {what}; up to {most} of the model{each}, {given.workers} conversations answered at once{late}",
        f"{'':<12}the limit of tokens holds for what is drawn and shown in all turns together",
    ]


def _critic(recipe: Recipe) -> str:
    """A critic in words."""
    critic, train = recipe.critic, recipe.train
    assert critic is not None
    of = {"copy": f"a copy of {recipe.model}", "model": str(critic.path)}
    learns = of.get(critic.use, f"a copy of {recipe.model} with adapters of rank {critic.rank}")
    steps = (critic.epochs or train.epochs) * (critic.updates or train.updates)
    first = f"; the first {critic.warmup} iterations fit it alone" if critic.warmup else ""
    return f"critic      {learns}, lr {critic.lr:g}, {steps} optimizer steps an iteration{first}"


def words(plan: Generation) -> str:
    """A plan in words."""
    how = f"temperature {plan.temperature:g}" if plan.temperature else "greedy"
    cuts = [f"top {plan.top_k}"] if plan.top_k is not None else []
    cuts += [f"nucleus {plan.top_p:g}"] if plan.top_p < 1 else []
    cuts += [f"min p {plan.min_p:g}"] if plan.min_p > 0 else []
    cuts = cuts if plan.temperature else []
    cuts += [f"repetition penalty {plan.repetition_penalty:g}"] if plan.repetition_penalty != 1 else []
    return ", ".join([f"at most {plan.max_new_tokens} new tokens", how, *cuts])


def sizes(recipe: Recipe, prompts: "Sequence[Prompt]") -> "Sizes | None":
    """Parameters and memory by phase; None where no config of the model is at hand."""
    from flowrl.planning.sizes import language  # transformers is slow to import

    given = section_of(recipe)
    return language.sizes(recipe, prompts, given.max_new_tokens + further_tokens(recipe), given.processor)


def flops(recipe: Recipe, prompts: "Sequence[Prompt]") -> "Flops | None":
    """Floating-point operations of an iteration; None where they are not known."""
    from flowrl.planning.sizes import language_flops

    given = section_of(recipe)
    return language_flops.flops(recipe, prompts, given.max_new_tokens + further_tokens(recipe), given.processor)


def eval_words(recipe: Recipe) -> str:
    """How the tokens of an evaluation are drawn."""
    return words(eval_plan(recipe))
