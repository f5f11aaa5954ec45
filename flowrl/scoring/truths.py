"""Whether prompts say what rewards of texts have to know of them, tried before weights are loaded.

A rule that ships is asked about an empty text: it reads the truth in any case, and has nothing to score. A reward that
would have to ask a model says by a method `check_prompt(prompt)` whether a prompt will do. Rewards of the user's own
are not called for nothing; they may have that method. What is found is `NoTruth`; other errors are left to the first
call.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from flowrl import names
from flowrl.contracts import NoTruth, Prompt, Samples
from flowrl.recipe.keys.rewards import fits
from flowrl.scoring.runners import RewardRunner
from flowrl.scoring.scorer import Scorer

FIRST = 32  # prompts that are tried in any case, beside one of each set of columns


def check_truths(scorer: Scorer, prompts: Sequence[Prompt], source: str | None) -> None:
    """Raises UserError for a prompt that lacks what a required reward, which is asked about it, has to know.

    Tried are the first prompts that each reward is asked about, and one of each set of columns. source: where they are
    from, as it is told.
    """
    for name, runner in scorer.rewards.items():
        if not runner.spec.required:
            continue
        for prompt in _tried(prompt for prompt in prompts if fits(runner.spec.when, prompt.meta)):
            try:
                _try(runner, prompt)
            except NoTruth as error:
                place = f"rewards.{name}: of {source}, {error}"
                raise names.UserError(f"{place}; or ask it about fewer prompts by rewards.{name}.when") from error
            except Exception:  # noqa: BLE001 - a reward that fails otherwise says so when it is called
                break


def _tried(prompts: Iterable[Prompt]) -> Iterable[Prompt]:
    seen: set[frozenset[str]] = set()
    for number, prompt in enumerate(prompts):
        listed = getattr(prompt.meta, "names", None)  # without marking the columns as read
        columns = frozenset(prompt.meta if listed is None else listed())
        if number < FIRST or columns not in seen:
            yield prompt
        seen.add(columns)


def _try(runner: RewardRunner, prompt: Prompt) -> None:
    check = getattr(runner.call, "check_prompt", None)
    if check is not None:
        check(prompt)
    elif isinstance(runner.call, partial) and not names.is_dotted(runner.spec.use):
        none = torch.zeros(1, dtype=torch.int64)
        runner.call(Samples([prompt], none, texts=[""], lengths=none, truncated=none.bool()))
