"""UnifiedReward (arXiv 2503.05236) behind an OpenAI-compatible server: vLLM or SGLang serving its weights.

Weights: CodeGoat24/UnifiedReward-7b-v1.5 and -qwen-7b speak `mode: point`, "Final Score: x" from 1 to 5, the reward is
x / 5; UnifiedReward-2.0-* speak `mode: acs`, scores for alignment, coherence and style from 1 to 5, the reward is
(mean - 1) / 4. The code is MIT; the licence of the weights stands on their pages. The Think models compare pairs: see
pairwise_judge.

Published mistakes that it avoids: an answer without a score is NaN, where flow_grpo and verl-omni put 0 and Pref-GRPO
the mean of the batch; the first three numbers of any text are no scores; a second "Final Score", as of an echoed
caption, makes the answer void. `compatible: true` repeats what flow_grpo and verl-omni do with the text of an answer.
A failed request stays NaN in any case.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.untyped import JSON
from reward_models.parts.judge import judging, unified
from reward_models.parts.judge.asking import ServerJudge, image_part, messages
from reward_models.parts.judge.openai_client import Answer, JudgeServer

PROMPTS = {"point": unified.POINT, "acs": unified.ACS}


class unified_reward(ServerJudge):
    """UnifiedReward's point score of each sample, float32 [B] in [0, 1]; a video's is the mean over its frames."""

    def __init__(
        self,
        *,
        base_url: str | Sequence[str],
        model: str = "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b",
        mode: str = "acs",
        prompt: str | None = None,
        compatible: bool = False,
        guard: bool = False,
        refuse_orders: bool = True,
        frames: int | None = 4,
        max_side: int | None = 512,
        max_tokens: int = 512,
        extra_body: Mapping[str, JSON] | None = None,
        api_key_env: str | None = None,
        concurrency: int = 16,
        retries: int = 4,
        backoff: float = 0.5,
        timeout: float = 60.0,
        limit: float = 600.0,
    ):
        name = "unified_reward"
        if mode not in PROMPTS:
            raise ValueError(f"{name}: mode={mode!r}; accepted are {', '.join(PROMPTS)}; pairs: use pairwise_judge")
        self.prompt = judging.check_template(name, "prompt", PROMPTS[mode] if prompt is None else prompt)
        self.mode, self.compatible = mode, compatible
        server = JudgeServer(
            name, base_url, model, api_key_env=api_key_env, concurrency=concurrency, retries=retries, backoff=backoff,
            timeout=timeout, limit=limit,
        )  # fmt: skip
        super().__init__(
            server, frames=frames, guard=guard, refuse=refuse_orders, max_side=max_side, max_tokens=max_tokens,
            extra_body=extra_body,
        )  # fmt: skip

    def __call__(self, samples: Samples) -> Tensor:
        """The score of each sample, float32 [B] in [0, 1]; NaN if any of its frames got none."""
        views = self.views(samples)
        texts = [judging.fill_template(self.prompt, prompt.text) for prompt in samples.prompts]
        bodies = [
            {"messages": messages(self.system, image_part(url), text)}
            for view, text in zip(views, texts, strict=True)
            for url in self.urls(view or [])
        ]
        answered = iter(self.ask(bodies, self._score))
        scores = [[next(answered) for _ in view or ()] for view in views]
        means = [sum(each) / len(each) if each else torch.nan for each in scores]
        return torch.tensor(means, dtype=torch.float32)

    def _score(self, answer: Answer) -> float | str:
        read = unified.point if self.mode == "point" else unified.acs
        if answer.cut and not self.compatible:
            return "the answer was cut off: raise max_tokens"
        return read(answer.text, compatible=self.compatible)
