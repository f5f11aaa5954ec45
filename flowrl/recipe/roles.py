"""The keys of several adapters of one language model that answer a prompt together; and what of them cannot work."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show, wrong_value

if TYPE_CHECKING:
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe

QUESTION, SAID, TEXT = "{question}", "{said}", "{text}"
TAKEN = ("default", "reference")  # how adapters of a single policy are called


class Roles(Strict):
    """Several LoRA adapters of one model that speak in turn about a prompt, and are trained in one run.

    names: who speaks, in this order, `rounds` times. hear: what is shown of what was said, all that was said before
    (before) or what was said in earlier rounds (rounds), so that those of a round speak independently. ask: what is
    then asked, a text with {question} and {said}, or a mapping of names to such texts (others are asked the question
    alone). line: of each contribution in {said}, a text with {text}, and {name} where it should be. adapters: each of
    the names has one, or each of the rounds, which its speakers share (MAPoRL's code).

    A contribution is one trained row, scored by the rewards like any completion, and compared with what the same
    speaker said in the same round of other discussions of the prompt; train.group counts discussions. share: whose
    rewards it gets, its own and those of the speaker's later rounds (own), its own and the means over all speakers in
    later rounds (all, as MAPoRL, arXiv:2502.18439), the mean over the speakers of the last round (team), or that of
    what is said last (last). discount: of own and all, what a later round counts by; they are divided by the sum of the
    discounts. Evaluations hold a discussion and score what is said last.
    """

    names: list[str] = key(..., "a list of two or more different words", min_length=2)
    rounds: int = key(1, "a whole number >= 1", ge=1)
    hear: Literal["before", "rounds"] = key("before", "before or rounds")
    ask: str | dict[str, str] = key(
        "{question}\n\nSo far was said:\n{said}\nWeigh this, and answer the question yourself.",
        "a text with {question} and {said}, or a mapping of names to such texts",
    )
    line: str = key("{name}: {text}\n", "a text with {text} in it")
    adapters: Literal["names", "rounds"] = key("names", "names or rounds")
    share: Literal["own", "all", "team", "last"] = key("all", "own, all, team or last")
    discount: float = key(1.0, "a number in [0, 1]", ge=0, le=1)

    @property
    def contributions(self) -> int:
        """How often something is said in a discussion."""
        return len(self.names) * self.rounds

    @property
    def labels(self) -> list[str]:
        """The names of the adapters, of which the first is that of a single policy."""
        return self.names if self.adapters == "names" else [f"round_{i + 1}" for i in range(self.rounds)]


def contributions(recipe: "Recipe") -> int:
    """Rows of a sample of train.group: what is said in a discussion, or one completion."""
    return 1 if recipe.roles is None else recipe.roles.contributions


def check_roles(recipe: "Recipe", given: "GenerationKeys") -> Iterator[RecipeError]:
    """Everything about roles that cannot work."""
    roles = recipe.roles
    if roles is None:
        return
    yield from _names(roles)
    yield from _texts(roles)
    if recipe.lora is None:
        problem = "given, but full: true trains one set of weights, and each role has adapters of its own"
        yield RecipeError("roles", problem, "set lora={rank: 32} and full=false")
    elif recipe.lora.begun is not None:
        problem = f"got {show(recipe.lora.init)} beside roles, whose adapters all begin as the unchanged model"
        yield RecipeError("lora.init", problem, "set lora.init=default")
    if roles.adapters == "rounds" and roles.rounds == 1:
        yield RecipeError("roles.adapters", "got 'rounds', but there is one round", "set roles.rounds=2 or more")
    if roles.share in ("team", "last") and roles.discount != 1.0:
        problem = f"got {roles.discount:g}, which share {roles.share!r} does not read"
        yield RecipeError("roles.discount", problem, "remove roles.discount")
    yield from _others(recipe, given)


def _names(roles: Roles) -> Iterator[RecipeError]:
    accepted = "two or more different words of letters, digits and _"
    if len(set(roles.names)) < len(roles.names) or not all(name.isidentifier() for name in roles.names):
        yield wrong_value("roles.names", roles.names, accepted)
    if taken := [name for name in roles.names if name.startswith(TAKEN)]:
        yield wrong_value("roles.names", roles.names, f"{accepted} that do not begin like {taken[0]!r}")


def _texts(roles: Roles) -> Iterator[RecipeError]:
    asked: Mapping[str, str] = roles.ask if isinstance(roles.ask, dict) else {"": roles.ask}
    for name, text in asked.items():
        place = f"roles.ask.{name}" if name else "roles.ask"
        if name and name not in roles.names:
            yield RecipeError(place, f"{name!r} does not speak", f"accepted: {', '.join(roles.names)}")
        if QUESTION not in text or SAID not in text:
            yield wrong_value(place, text, "a text with {question} and {said} in it")
    if TEXT not in roles.line:
        yield wrong_value("roles.line", roles.line, "a text with {text} in it")


def _others(recipe: "Recipe", given: "GenerationKeys") -> Iterator[RecipeError]:
    """Keys that do not go along with rows of several roles."""
    train, objective = recipe.train, recipe.objective
    beside = {f"generation.{name}": getattr(given, name) for name in ("tree", "again", "force", "partial")}
    beside |= {f"train.{name}": getattr(train, name) for name in ("budget", "store", "resample")}
    beside |= {"train.skip_truncated": train.skip_truncated or None}
    beside |= {"train.pool": train.pool if train.pool > 1 else None}
    beside |= {f"objective.{name}": getattr(objective, name, None) for name in ("loss", "right", "expert", "pairs")}
    rollout = recipe.rollout
    beside |= {"environment": recipe.environment, "rollout.engine": rollout.engine}
    beside |= {"rollout.dtype": rollout.dtype, "rollout.batch_invariant": rollout.batch_invariant or None}
    beside |= {"reference.use": "lora" if any(one.use == "lora" for one in recipe.references) else None}
    beside |= {"train.source": "files" if train.reads_files else None}
    for place, value in beside.items():
        if value is not None:
            problem = f"got {show(value)} beside roles, which hold discussions and train all that is said in them"
            yield RecipeError(place, problem, f"remove {place}, or set roles=null")
    credit = getattr(getattr(recipe.advantage, "credit", None), "kind", "broadcast")
    if credit not in ("broadcast", "reward_to_go", "gae"):
        problem = f"got {credit!r} beside roles, accepted: broadcast, reward_to_go or gae"
        yield RecipeError("advantage.credit.kind", problem, "set advantage.credit=broadcast")
    if getattr(recipe.advantage, "baseline", None) == "given":
        problem = "got 'given' beside roles, and a greedy completion is no discussion"
        yield RecipeError("advantage.baseline", problem, "set advantage.baseline=group")
