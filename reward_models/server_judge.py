"""Any vision-language model behind an OpenAI-compatible server as the judge (vLLM, SGLang, `transformers serve`).

mode yes: VQAScore (arXiv 2404.01291), the probability of "yes" to "Does this figure show CAPTION?", out of yes and no,
from the log-probabilities of the first token; 0..1. Where a server has none (`transformers serve`), logprobs: false
takes the word itself, 1 or 0. mode rubric: a JSON object of numbers, their mean scaled to 0..1. mode unified:
UnifiedReward's point score over 5, 0.2..1. Licences are those of the model that is served.

Published mistakes that it avoids: a failed or unreadable answer is NaN, never 0 or a mean; captions are quoted and
escaped data, a system message says so, and one that tells the judge what to say is not asked about; pictures travel as
lossless PNG; one event loop serves all calls; every wait has a limit. `flowrl-toolkit[judge]` brings the client.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flowrl.contracts import Samples
from flowrl.untyped import JSON
from reward_models.parts.judge import judging, rubrics, unified
from reward_models.parts.judge.asking import ServerJudge, image_part, messages, scatter
from reward_models.parts.judge.openai_client import Answer

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
MODES = ("yes", "rubric", "unified")


@dataclass(kw_only=True, eq=False)
class server_judge(ServerJudge):
    """Score of each sample by a vision-language model on an OpenAI-compatible server, float32 [B] in [0, 1]."""

    mode: str = "yes"
    question: str = QUESTION
    rubric: Mapping[str, str] | None = None
    scale: Sequence[float] = (1, 5)
    logprobs: bool = True
    fold: bool = True
    mass: float = 0.01
    structured: bool = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.mode not in MODES:
            raise ValueError(f"{name}: mode={self.mode!r}; accepted are {', '.join(MODES)}")
        judging.check_template(name, "question", self.question)
        self._rubric = rubrics.check_rubric(name, self.rubric, self.scale)
        super().__post_init__()

    def __call__(self, samples: Samples) -> Tensor:
        """The judge's score of each sample, float32 [B] in [0, 1]; NaN if it gave none."""
        views = self.views(samples)
        asked = [i for i, view in enumerate(views) if view is not None]
        bodies = [self._body(samples.prompts[i].text, self.urls(views[i] or [])) for i in asked]
        return scatter(self.ask(bodies, self._reading()), asked, len(samples))

    def _body(self, caption: str, urls: Sequence[str]) -> dict[str, JSON]:
        if self.mode == "rubric":
            text, how = self._rubric.question(caption), {"response_format": self._rubric.schema()}
            how = how if self.structured else {}
        elif self.mode == "unified":
            text, how = judging.fill_template(unified.POINT, caption), {}
        else:
            text = judging.fill_template(self.question, caption)
            how = {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20} if self.logprobs else {}
        return {"messages": messages(self.system, *map(image_part, urls), text), **how}

    def _reading(self) -> Callable[[Answer], float | str]:
        if self.mode == "yes" and self.logprobs:
            return self._probability
        read = {
            "yes": lambda text: judging.yes_or_no(text or ""),
            "rubric": self._rubric.score,
            "unified": unified.point,
        }
        return lambda answer: "the answer was cut off: raise max_tokens" if answer.cut else read[self.mode](answer.text)

    def _probability(self, answer: Answer) -> float | str:
        if answer.top is None:
            return "the server sends no log-probabilities: set logprobs: false, or serve with vLLM or SGLang"
        value = judging.yes_probability(answer.top, fold=self.fold, mass=self.mass)
        tokens = ", ".join(repr(token) for token, _ in answer.top[:5])
        return (
            f"yes and no are not likely enough to tell: the first tokens are {tokens}" if math.isnan(value) else value
        )
