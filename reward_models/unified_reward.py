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

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.judge import judging, unified
from reward_models.parts.judge.asking import ServerJudge, image_part, messages
from reward_models.parts.judge.openai_client import Answer

PROMPTS = {"point": unified.POINT, "acs": unified.ACS}


@dataclass(kw_only=True, eq=False)
class unified_reward(ServerJudge):
    """UnifiedReward's point score of each sample, float32 [B] in [0, 1]; a video's is the mean over its frames."""

    model: str = "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"
    mode: str = "acs"
    prompt: str | None = None
    compatible: bool = False
    guard: bool = False
    frames: int | None = 4
    max_side: int | None = 512

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.mode not in PROMPTS:
            accepted = ", ".join(PROMPTS)
            raise ValueError(f"{name}: mode={self.mode!r}; accepted are {accepted}; pairs: use pairwise_judge")
        prompt = PROMPTS[self.mode] if self.prompt is None else self.prompt
        self._template = judging.check_template(name, "prompt", prompt)
        super().__post_init__()

    def __call__(self, samples: Samples) -> Tensor:
        """The score of each sample, float32 [B] in [0, 1]; NaN if any of its frames got none."""
        views = self.views(samples)
        texts = [judging.fill_template(self._template, prompt.text) for prompt in samples.prompts]
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
