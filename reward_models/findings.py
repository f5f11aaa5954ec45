"""How well a reasoning about an X-ray keeps to the radiologist's findings, by a judge behind a server: RadRScore.

ChestX-Reasoner (arXiv:2504.20930) asks a language model for three shares: completeness, how many of the findings the
reasoning has; factuality, how many of its steps agree with the report; effectiveness, how many of its steps are those
of the reference. The score is their mean. The published evaluation first has a model list the findings of both texts,
in five requests; here the data set's annotation lists them, and one request counts. Neither pictures nor the report's
own mistakes are known to the judge. `flowrl-toolkit[judge]` brings the client.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from flowrl.untyped import JSON
from reward_models.parts.judge import judging
from reward_models.parts.judge.asking import AsksServer, messages, scatter
from reward_models.parts.judge.openai_client import Answer
from reward_models.parts.texts import THOUGHT, texts_of, truth_of_any_kind

COUNTS = ("recalled", "steps", "correct", "effective")
QUESTION = """Report of a chest X-ray: "{report}"
Findings that a radiologist notes on the way to the answer, one a line:
{findings}
Reasoning of a model: "{thought}"
Count, and answer with one JSON object of four whole numbers and with nothing else:
{{"recalled": how many of those findings the reasoning states, in whatever words,
"steps": how many distinct steps (a finding, or a conclusion from some) the reasoning has,
"correct": how many of its steps agree with the report, where what the report does not name is normal,
"effective": how many of its steps are supported by those findings}}"""


@dataclass(kw_only=True, eq=False)
class radiology_reasoning(AsksServer):
    """RadRScore of the first <think>...</think> of each completion, float32 [B] in [0, 1]; NaN if the judge gave none.

    findings, report: keys of the prompt's meta, a list of texts and a text. structured: the server is told the form of
    the answer. A completion without a thought scores 0 and is not asked about. Raises ValueError for a prompt that
    lacks its findings or report.
    """

    findings: str = "findings"
    report: str = "report"
    structured: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.system = judging.TEXT_GUARD if self.guard else None

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises NoTruth where the prompt's meta lacks its findings or the report."""
        _listed(prompt, self.findings)
        truth_of_any_kind(prompt, self.report)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B]."""
        texts = texts_of(samples, self.name)
        listed = [_listed(prompt, self.findings) for prompt in samples.prompts]
        reports = [str(truth_of_any_kind(prompt, self.report)) for prompt in samples.prompts]
        thoughts = [found[1].strip() if (found := THOUGHT.search(text)) else "" for text in texts]
        asked = [i for i, thought in enumerate(thoughts) if thought and not self._orders(thought)]
        kept: list[Mapping[str, float]] = []  # of answers that can be used, in their order

        def keep(answer: Answer) -> float | str:
            if answer.cut:
                return "the answer was cut off: raise max_tokens"
            counts = judging.rubric(answer.text or "", COUNTS, (0, 10_000))
            if counts is None:
                return f"the answer is no such object: {answer.text!r:.200}"
            kept.append(counts)
            return 0.0

        found = self.ask([self._body(reports[i], listed[i], thoughts[i]) for i in asked], keep)
        counts = iter(kept)
        shares = [
            v if math.isnan(v) else self._share(next(counts), len(listed[i])) for i, v in zip(asked, found, strict=True)
        ]
        silent = torch.tensor([not thought for thought in thoughts])
        return scatter(shares, asked, len(samples)).masked_fill(silent, 0.0)

    def _share(self, counts: Mapping[str, float], number: int) -> float:
        """The mean of the three shares; NaN, and recorded, for counts that cannot be."""
        steps, parts = counts["steps"], (counts["correct"], counts["effective"])
        if counts["recalled"] > number or max(parts) > steps or any(value % 1 for value in counts.values()):
            return self.note_missing("the counts cannot be", f"{dict(counts)} of {number} findings")
        return (counts["recalled"] / number + (sum(parts) / steps if steps else 0.0)) / 3

    def _orders(self, thought: str) -> bool:
        if not (self.refuse_orders and judging.gives_orders(thought)):
            return False
        self.note_missing("the thought gives orders", f"{thought!r:.200}")
        return True

    def _body(self, report: str, findings: list[str], thought: str) -> dict[str, JSON]:
        lines = "\n".join(f'- "{judging.quote(finding)}"' for finding in findings)
        text = QUESTION.format(report=judging.quote(report), findings=lines, thought=judging.quote(thought))
        return {"messages": messages(self.system, text), **({"response_format": _form()} if self.structured else {})}


def _form() -> dict[str, JSON]:
    """The form of the answer, for servers with structured output."""
    number = {"type": "integer", "minimum": 0}
    form = {"type": "object", "properties": dict.fromkeys(COUNTS, number), "required": list(COUNTS)}
    return {"type": "json_schema", "json_schema": {"name": "counts", "schema": form | {"additionalProperties": False}}}


def _listed(prompt: Prompt, key: str) -> list[str]:
    listed = truth_of_any_kind(prompt, key)
    if not isinstance(listed, list) or not listed or not all(isinstance(finding, str) for finding in listed):
        raise NoTruth(f"prompt {prompt.text!r}: {key}={listed!r:.80} in its meta; accepted is a list of texts")
    return listed
