"""Tiny random language models for tests, with the arithmetic world's tokenizer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import LogProbs, Prompt, Rollout, View
from flowrl.core.learning.learner import Learner
from flowrl.core.update import Settings, update
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.worlds.arithmetic.model import make_model, make_tokenizer
from samplers.tokens import Generation

PROMPTS = [Prompt("a", "12+345"), Prompt("b", "7*8"), Prompt("c", "999-11+123456")]
PLAN = Generation(12)
STOP = [3, *range(8, 110, 5)]


def model(seed: int = 0, *, sharp: float = 4.0) -> Any:
    """A random Qwen2 whose distributions are uneven, and which ends completions of every length."""
    torch.manual_seed(seed)
    made = make_model(make_tokenizer(), width=32, layers=2).eval()
    with torch.no_grad():
        made.model.norm.weight.mul_(sharp)
    made.generation_config.eos_token_id = STOP
    return made


def gradient_of(
    subject: LanguagePolicy, rollout: Rollout, adv: Tensor, objective: Any, settings: Settings
) -> tuple[Tensor, dict[str, float]]:
    """The gradients of all updates one behind another, and the metrics; under a reference whose log-probs lie
    0.1 * (1 + number of the row) below those of the policy."""
    seen: list[Tensor] = []
    learner = Learner(subject.trainable(), lr=1e-9, max_grad_norm=None)
    step, look = learner.step, subject.look

    def noted() -> Any:
        seen.extend(p.grad.flatten().clone() for p in learner.parameters)
        return step()

    def shifted(rollout: Rollout, rows: Tensor, view: View, visit: Any, **how: Any) -> None:
        if view.weights != "reference":
            return look(rollout, rows, view, visit, **how)

        def lowered(s: LogProbs) -> None:
            visit(replace(s, logp=s.logp.detach() - 0.1 * (1 + s.rows[:, None])))

        return look(rollout, rows, replace(view, weights="current"), lowered, **how)

    learner.step, subject.look = noted, shifted
    metrics = update(subject, learner, rollout, adv, objective, settings)
    return torch.cat(seen), metrics


def policy(made: Any = None, **options: Any) -> LanguagePolicy:
    """The model, by default a random one, as a policy."""
    return LanguagePolicy(model() if made is None else made, make_tokenizer(), **options)


def replayed(subject: LanguagePolicy, rollout: Rollout, parts: Sequence[Sequence[int]], **options: Any) -> LogProbs:
    """The scores of these parts of the rows, put together in row order, without gradient."""
    scores: list[LogProbs] = []
    for part in parts:
        subject.look(rollout, torch.tensor(part), View(**options), scores.append)
    order = torch.cat([s.rows for s in scores]).argsort()

    def joined(values: list[Tensor | None]) -> Any:
        return None if values[0] is None else torch.cat([v.detach() for v in values if v is not None])[order]

    return LogProbs(order, scores[0].columns, joined([s.logp for s in scores]), joined([s.kl for s in scores]))


def alone(made: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Logits [K, V] that each token was drawn from, one sequence, no padding, no cache, one forward a token."""
    rows = []
    for k in range(len(tokens)):
        ids = torch.tensor([[*prompt, *tokens[:k]]])
        with torch.no_grad():
            rows.append(made(input_ids=ids, use_cache=False).logits[0, -1])
    return torch.stack(rows)
