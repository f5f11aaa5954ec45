"""What a run reads before it loads weights: its prompts, checked against the model, the plan and the rewards.

diffusers and transformers are loaded here only if unavoidable, since a dry run prints its plan without them.
"""

from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.names import UserError, to_be_fetched
from flowrl.planning.loss_trials import try_losses
from flowrl.planning.sizes.calls import check_arguments
from flowrl.planning.sizes.rewards import absent
from flowrl.policies.devices import device_of
from flowrl.reading import columns, pairs
from flowrl.reading import prompts as prompt_files
from flowrl.reading.cursor import Cursor
from flowrl.reading.prompt_lines import PromptError
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.rewards import fits
from flowrl.recipe.making import Bound, build_part
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own
from flowrl.scoring.gates import check_prompts


def load_prompts(recipe: Recipe, source: str, split: str, limit: int | None, *, online: bool = True) -> list[Prompt]:
    """The prompts of a source for the recipe's model; online: whether a hub may be asked what the model takes.

    Raises PromptError if they do not fit it.
    """
    if line := prompt_files.missing_sources([source], recipe.prompts.source):
        raise PromptError(line)
    kind = kind_of(recipe)
    arguments = kind.prompt_arguments(recipe.model, online=online)
    columns = recipe.prompts.columns
    loaded = prompt_files.load(source, split=split, limit=limit, arguments=arguments, columns=columns)
    if problem := kind.refuse_prompts(loaded, recipe.model):
        raise PromptError(f"{source}: {problem}")
    return loaded


def unread_columns(recipe: Recipe, prompts: list[Prompt]) -> str | None:
    """One line about the columns of these prompts that nothing has read so far; see columns.py."""
    known = kind_of(recipe).prompt_arguments(recipe.model, online=False)
    line = columns.unread_columns(prompts, known)
    if known and "image" not in known and any(prompt.media for prompt in prompts):
        rewards_only = "prompts: the pipeline takes no image; the pictures of the prompts are there for rewards alone"
        return rewards_only if line is None else f"{rewards_only}. {line}"
    return line


def read_prompts(recipe: Recipe, *, online: bool = False) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts (none without a source), after the pipeline's arguments have been checked.

    online: see `load_prompts`. Raises RecipeError for arguments that a local pipeline does not take and for what does
    not fit the number of trained steps, UserError if the prompts do not suffice.
    """
    _check_devices(recipe)
    _check_calls(recipe)
    kind_of(recipe).planning.check(recipe)
    try_losses(recipe)
    return _train_prompts(recipe, online), _heldout_prompts(recipe, online)


def phase_prompts(recipe: Recipe, train: list[Prompt], *, online: bool = False) -> list[list[Prompt]]:
    """The training prompts of each phase, of which those with the recipe's own sources have `train` itself.

    Raises like `read_prompts`.
    """
    own = recipe.prompts.train, recipe.prompts.limit, recipe.train.source, recipe.train.group
    found = []
    for part in recipe.parts():
        source = part.prompts.train, part.prompts.limit, part.train.source, part.train.group
        found.append(train if source == own else _train_prompts(part, online))
    return found


def planned_prompts(recipe: Recipe) -> tuple[list[Prompt] | None, list[Prompt] | None, list[str]]:
    """Like read_prompts, for a dry run: None instead of published prompts that are missing, and a line on each."""
    _check_devices(recipe)
    _check_calls(recipe)
    kind_of(recipe).planning.check(recipe)
    try_losses(recipe)
    source, files = recipe.prompts, absent(recipe.rewards)
    train = None if to_be_fetched(source.train, source.source) else _train_prompts(recipe)
    heldout = None if to_be_fetched(source.heldout, source.source) else _heldout_prompts(recipe)
    missing_line = prompt_files.missing_sources([source.train, source.heldout, *files.values()], source.source)
    others = [f"{place}: {f}, not here" for place, f in files.items() if not to_be_fetched(f, source.source)]
    return train, heldout, [*([missing_line] if missing_line else []), *others]


def overlap(train: list[Prompt], heldout: list[Prompt]) -> str | None:
    """One line about held-out prompts whose text is also trained on, with the same media; None if nothing is held out.

    Texts are compared in lower case, with single spaces and without closing punctuation; media by their paths.
    """
    if not heldout:
        return None
    known = {(_plain(prompt.text), prompt.media) for prompt in train}
    both = sum((_plain(prompt.text), prompt.media) in known for prompt in heldout)
    if not both:
        return f"none of the {len(heldout)} held-out prompts is among the training prompts"
    return (
        f"{both} of the {len(heldout)} held-out prompts ({both / len(heldout):.0%}) are among the training prompts "
        "too: their scores say little about new prompts"
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?")


def _check_devices(recipe: Recipe) -> None:
    """Raises PolicyError for a device, of the run or of a reward, that this machine does not have."""
    device_of(recipe.device)
    for name, spec in recipe.rewards.items():
        device_of(spec.device or "cpu", f"rewards.{name}.device")


def _check_calls(recipe: Recipe) -> None:
    """Raises RecipeError for arguments of a rollout or a look that the model's pipeline does not take."""
    check_arguments(recipe.model, recipe.pipeline)
    if recipe.sampler.look:
        check_arguments(recipe.model, recipe.sampler.look, "sampler.look")


def _heldout_prompts(recipe: Recipe, online: bool = False) -> list[Prompt]:
    """The held-out prompts; none without a source."""
    source = recipe.prompts
    if source.heldout is None:
        return []
    return load_prompts(recipe, source.heldout, "heldout", recipe.eval.prompts, online=online)


def _train_prompts(recipe: Recipe, online: bool = False) -> list[Prompt]:
    """The training prompts, checked to suffice for an iteration and for the recipe's rewards."""
    source, train_keys = recipe.prompts, recipe.train
    if train_keys.reads_files:
        train = _given_prompts(recipe)
    else:
        train = load_prompts(recipe, source.train, "train", source.limit, online=online)
    if problem := kind_of(recipe).refuse_views(train, recipe):
        raise PromptError(problem)
    if len(train) < recipe.train.drawn:
        raise UserError(
            f"train.prompts: got {recipe.train.prompts}, but {source.train} holds {len(train)}; lower train.prompts"
        )
    if train_keys.source != "files":
        check_prompts(recipe.rewards, train, source.train)
    if recipe.reads_reference:
        _check_taught(recipe, train)
    prompt_cursor(recipe, train)
    return train


def _check_taught(recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises RecipeError for a prompt that no reference looks at."""
    asked = [one.when for one in recipe.references]
    for prompt in prompts:
        if not any(fits(when, prompt.meta) for when in asked):
            held = ", ".join(f"{key}={value!r}"[:40] for key, value in prompt.meta.items()) or "nothing"
            problem = (
                f"none of them takes the prompt {prompt.text!r} of {recipe.prompts.train}, whose meta holds {held}"
            )
            raise RecipeError("reference", problem, "widen a reference's `when`, or add one without")


def _given_prompts(recipe: Recipe) -> list[Prompt]:
    """The training prompts that come with their samples: as many each as train.group, or fewer where some are drawn."""
    source, group = recipe.prompts, recipe.train.group
    if line := prompt_files.missing_sources([source.train], source.source):
        raise PromptError(line)
    train = pairs.load(source.train, limit=source.limit)
    if problem := kind_of(recipe).refuse_prompts(train, recipe.model):
        raise PromptError(f"{source.train}: {problem}")
    number = len(pairs.samples_of(train[0])[0])
    if recipe.train.share is not None:
        if number >= group:
            problem = (
                f"got {group}, but {source.train} has {number} samples for each prompt, beside which some are drawn"
            )
            raise UserError(f"train.group: {problem}; set train.group={number + 1} or more")
    elif number != group:
        problem = f"got {group}, but {source.train} has {number} samples for each prompt"
        raise UserError(f"train.group: {problem}; set train.group={number}")
    loss = None if isinstance(recipe.objective, Own) else recipe.objective.loss
    for asked, column, read in (
        (loss and loss.own_noise, "noise", pairs.noise_of),
        (loss and loss.gap, "rewards", pairs.rewards_of),
    ):
        without = next((prompt for prompt in train if asked and read(prompt) is None), None)
        if without is not None:
            key = f"objective.loss.{'own_noise' if column == 'noise' else 'gap'}"
            problem = f"{source.train} has no column `{column}` for {without.text[:80]!r}"
            raise UserError(f"{key}: {problem}; write pairs with `flowrl pairs`, or set {key}=null")
    return train


def prompt_cursor(recipe: Recipe, train: list[Prompt]) -> Cursor:
    """The draw of training prompts, from its start. Raises PromptError if they lack a key to balance or order by."""
    source = recipe.prompts
    how = {"seed": recipe.seed, "balance": source.balance, "shuffle": source.shuffle}
    if source.choose.kind == "shuffle":
        return Cursor(train, **how)
    chosen = build_part("choice", source.choose)
    if isinstance(chosen, Bound):
        return Cursor(train, choose=chosen.function, arguments=chosen.arguments, **how)
    return Cursor(train, choose=chosen, **how)
