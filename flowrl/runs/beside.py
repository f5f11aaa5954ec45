"""What stands beside the objective of an iteration: terms over right answers, an expert's, pairs, earlier samples."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.build import remembered
from flowrl.contracts import ALONE, Objective, Prompt, Ranks, Rollout
from flowrl.core.objectives.terms import policy_share
from flowrl.core.objectives.texts import TextLikelihood, TextPairs
from flowrl.core.ranked import OwnPart, own_rollout
from flowrl.core.replay import SampleStore
from flowrl.core.terms import Term
from flowrl.planning.costs import plan_for
from flowrl.policies.language.completions import Completions, plain_rows, rollout_of
from flowrl.reading import pairs
from flowrl.reading.prompt_lines import PromptError
from flowrl.recipe.schema import Recipe
from flowrl.scoring.scorer import Scorer

TermsOf = Callable[[Rollout, dict[str, Tensor], Tensor], Sequence[Term]]


def main_coef(recipe: Recipe) -> float:
    """The coefficient of the objective itself."""
    expert = getattr(recipe.objective, "expert", None)
    return 1.0 if expert is None else policy_share(expert.coef)


@dataclass
class Beside:
    """What a run keeps for its terms: by their file, prompts with an expert's answers or pairs, and the store."""

    shown: Mapping[str, Sequence[Prompt]]
    store: SampleStore | None


def beside(recipe: Recipe) -> Beside:
    """Both as the recipe says. Raises PromptError for a file that is not as it has to be."""
    given = next((part.train.store for part in recipe.parts() if part.train.store is not None), None)
    store = None if given is None else SampleStore(given.size, given.age, given.by, given.keep)
    shown: dict[str, Sequence[Prompt]] = {}
    for part in recipe.parts():
        for name, number in (("expert", 1), ("pairs", 2)):
            if (term := getattr(part.objective, name, None)) is not None:
                shown[term.source] = _texts(term.source, number)
    return Beside(shown, store)


def _texts(source: str, number: int) -> Sequence[Prompt]:
    """The prompts of a file with so many texts each."""
    read = pairs.load(source)
    texts = pairs.samples_of(read[0])[0]
    if len(texts) != number or not all(isinstance(text, str) for text in texts):
        accepted = "prompt and completion" if number == 1 else "prompt, chosen and rejected"
        raise PromptError(f"{source}: has other columns; accepted: {accepted}, texts")
    return read


def terms_of(
    recipe: Recipe,
    policy: Any,
    scorer: Scorer,
    kept: Beside,
    objective: Objective,
    iteration: int,
    ranks: Ranks = ALONE,
) -> TermsOf | None:
    """What gives the terms of an iteration, counted from 0, and puts its samples into the store; None without any.

    ranks: who iterate together; each has the whole store."""
    right, expert, pairwise = (getattr(recipe.objective, name, None) for name in ("right", "expert", "pairs"))
    stored = recipe.train.store
    store = None if stored is None else kept.store  # a phase without one leaves what is kept alone
    if right is None and expert is None and pairwise is None and store is None:
        return None

    def of_file(given: Any) -> Rollout:
        chosen = chosen_prompts(kept.shown[given.source], given.prompts, recipe.seed, iteration)
        texts = [pairs.samples_of(prompt)[0] for prompt in chosen]
        return policy.given(chosen, texts, plan=plan_for(recipe, iteration))

    def terms(rollout: Rollout, rewards: dict[str, Tensor], adv: Tensor) -> list[Term]:
        made = []
        if right is not None:
            value = remembered(recipe, scorer, rewards, rollout.samples)
            rows = ((value >= right.least).cpu() & rollout.mask.any(1)).nonzero()[:, 0]
            made.append(Term("right", TextLikelihood(right.phi), right.coef, policy, rollout, rows))
        if expert is not None:
            given, rows = of_file(expert), torch.arange(expert.prompts)
            made.append(Term("expert", TextLikelihood(expert.phi), expert.coef, policy, given, rows, own=False))
        if pairwise is not None:
            given, rows = of_file(pairwise), torch.arange(2 * pairwise.prompts)
            parts = {name: getattr(pairwise, name) for name in ("beta", "pair", "bco", "likelihood")}
            made.append(Term("pairs", TextPairs(**parts), pairwise.coef, policy, given, rows, own=False))
        if store is not None and stored is not None:
            again = store.draw(stored.draw, recipe.seed, iteration)
            if again:
                held = rollout_of(again, plan_for(recipe, iteration), policy.pad)
                values = torch.tensor([sample["adv"] for sample in again])
                rows = torch.arange(len(again))
                made.append(Term("store", objective, stored.coef, policy, held, rows, own=False, adv=values))
            if adv.ndim == 2:
                raise ValueError("train.store: advantages of single decisions are not stored; set train.store=null")
            if (rows := _plain_rows(rollout, adv, ranks)) is not None:
                store.add(rows, adv, iteration)
        return made

    return terms


def _plain_rows(rollout: Rollout, adv: Tensor, ranks: Ranks) -> list[dict[str, Any]] | None:
    """The rows as a store keeps them, nothing in the place of those without an advantage; None where they are of
    several draws."""
    if isinstance(rollout.replay, Completions):
        return plain_rows(rollout)
    if not isinstance(rollout.replay, OwnPart):
        return None
    own, whole = own_rollout(rollout), [dict[str, Any]() for _ in adv]
    mine = [] if own is None else zip(rollout.replay.rows.tolist(), plain_rows(own), strict=True)
    for part in ranks.gather({i: row for i, row in mine if adv[i]}):
        for i, row in part.items():
            whole[i] = row
    return whole


def chosen_prompts(shown: Sequence[Prompt], number: int, seed: int, iteration: int) -> list[Prompt]:
    """The prompts of an iteration from a file: passes through all of them, each in a new order, by the seed alone."""
    chosen = []
    for place in range(iteration * number, (iteration + 1) * number):
        epoch, offset = divmod(place, len(shown))
        order = list(range(len(shown)))
        random.Random(f"{seed}/expert {epoch}").shuffle(order)
        chosen.append(shown[order[offset]])
    return chosen
