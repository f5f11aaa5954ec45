"""A language model that reads completions and judges them: of transformers, in this process, or behind a server.

The question holds the prompt, what the completion says and, where meta[key] has it, the truth, each quoted and escaped
as data. yes: the probability of "yes" out of yes and no as the first token of the answer, 0 to 1. What is judged is the
whole completion, its thought (inside <think>...</think>: the reward of a thought in Posterior-GRPO, arXiv:2508.05170)
or what stands behind it. A completion without that part, and one that tells the judge what to say, is not asked about:
the first scores 0, the second NaN. Licences are those of the model.
"""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Message, NoTruth, Prompt, Samples
from flowrl.untyped import JSON, Network, Tokenizer
from reward_models.parts.assets import shipped_path
from reward_models.parts.checkpoints import load_pretrained
from reward_models.parts.judge import judging
from reward_models.parts.judge.asking import AsksServer, messages, scatter
from reward_models.parts.judge.openai_client import Answer
from reward_models.parts.judge.words import word_tokens
from reward_models.parts.model import Model
from reward_models.parts.texts import texts_of

QUESTION = 'Task: "{prompt}"\nAnswer: "{answer}"\nIs this answer right and well reasoned? Reply with yes or no.'
WITH_TRUTH = (
    'Task: "{prompt}"\nRight result: "{truth}"\nAnswer: "{answer}"\n'
    "Does this answer reach the right result? Reply with yes or no."
)
PARTS = ("all", "thought", "answer")
FIELDS = ("prompt", "answer", "truth")


@dataclass(frozen=True)
class Reading:
    """What is put before the judge of each sample; its fields are arguments of both judges of texts.

    part: all, thought or answer. question: a text with {answer}, {prompt} and {truth}, of which the first is needed
    (null: one that ships). key: of the meta, the truth (null: the judge is not told).
    """

    reward: str
    part: str
    question: str | None
    key: str | None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"{self.reward}: part={self.part!r}; accepted: {', '.join(PARTS)}")
        named = set(re.findall(r"\{(\w*)\}", self.template))
        if not {"answer"} <= named <= set(FIELDS) or ("truth" in named) != (self.key is not None):
            wanted = "{answer}, {prompt} and, with a key, {truth}"
            raise ValueError(f"{self.reward}: question={self.template!r}; accepted is a text with {wanted}")

    @property
    def template(self) -> str:
        """The question as it is asked, with its fields."""
        return self.question or (QUESTION if self.key is None else WITH_TRUTH)

    def said(self, text: str) -> str | None:
        """The part of a completion that is judged; None where it is not there."""
        if self.part == "all":
            return text if text.strip() else None
        thought, mark, after = text.partition("</think>")
        inside = thought.partition("<think>")[2] if self.part == "thought" else after
        return inside.strip() or None if mark else None

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises NoTruth where the prompt's meta lacks the truth that the judge is to be told."""
        if self.key is not None and self.key not in prompt.meta:
            raise NoTruth(f"{self.reward}: prompt {prompt.text!r} has no {self.key!r} in its meta: add it")

    def asked(self, prompt: Prompt, said: str) -> str:
        """The question about what was said. Raises NoTruth as check_prompt does."""
        self.check_prompt(prompt)
        values = {"prompt": prompt.text, "answer": said}
        if self.key is not None:
            values["truth"] = str(prompt.meta[self.key])
        return re.sub(r"\{(\w+)\}", lambda match: judging.quote(values[match[1]]), self.template)


class text_judge(Model):
    """Score of each completion by a local language model, float32 [B] in [0, 1].

    model: a folder or a model of the hub, with a chat template. mass: yes and no together hold at least this
    probability, or there is no score.
    """

    def __init__(
        self,
        *,
        model: str,
        part: str = "all",
        question: str | None = None,
        key: str | None = None,
        fold: bool = True,
        mass: float = 0.01,
        dtype: str = "auto",
        refuse_orders: bool = True,
    ):
        name = type(self).__name__
        super().__init__()
        self.reading, self.mass, self.refuse_orders = Reading(name, part, question, key), mass, refuse_orders
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Tokenizer = load_pretrained(AutoTokenizer.from_pretrained, shipped_path(model), name)
        load = AutoModelForCausalLM.from_pretrained
        self.model: Network = load_pretrained(load, shipped_path(model), name, dtype=dtype)
        self.last_only = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.yes, self.no = word_tokens(self.tokenizer, name, fold=fold)
        self.freeze()

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises NoTruth where the prompt's meta lacks the truth that the judge is to be told."""
        self.reading.check_prompt(prompt)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """The judge's score of each completion, float32 [B] in [0, 1]; NaN if it gave none."""
        scores, asked = _without_asking(self.reading, samples, self.refuse_orders)
        for i, text in asked:
            logp = self._first_token(text)
            yes, no = (logp[ids].logsumexp(0) for ids in (self.yes, self.no))
            known = torch.logaddexp(yes, no).exp() >= self.mass
            scores[i] = float(torch.sigmoid(yes - no)) if known else math.nan
        return torch.tensor(scores, dtype=torch.float32)

    def _first_token(self, text: str) -> Tensor:
        """Log-probs [V] of the answer's first token, read without padding: no score depends on another's length."""
        ids = _ids(self.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        last = {"logits_to_keep": 1} if self.last_only else {}
        return self.model(input_ids=ids.to(self.device), **last).logits[0, -1].double().log_softmax(-1)


@dataclass(kw_only=True, eq=False)
class server_text_judge(AsksServer):
    """Score of each completion by a language model on an OpenAI-compatible server, float32 [B] in [0, 1].

    logprobs: false takes its yes or no where the server has no log-probabilities (`transformers serve`).
    """

    part: str = "all"
    question: str | None = None
    key: str | None = None
    logprobs: bool = True
    fold: bool = True
    mass: float = 0.01

    def __post_init__(self) -> None:
        self.reading = Reading(type(self).__name__, self.part, self.question, self.key)
        super().__post_init__()
        self.system = judging.TEXT_GUARD if self.guard else None

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises NoTruth where the prompt's meta lacks the truth that the judge is to be told."""
        self.reading.check_prompt(prompt)

    def __call__(self, samples: Samples) -> Tensor:
        """The judge's score of each completion, float32 [B] in [0, 1]; NaN if it gave none."""
        scores, asked = _without_asking(self.reading, samples, self.refuse_orders)
        how: dict[str, JSON] = {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": 20}
        bodies = [{"messages": messages(self.system, text), **(how if self.logprobs else {})} for _, text in asked]
        found = self.ask(bodies, self._probability if self.logprobs else self._word)
        given = scatter(found, [i for i, _ in asked], len(samples))
        return torch.where(given.isnan(), torch.tensor(scores, dtype=torch.float32), given)

    def _word(self, answer: Answer) -> float | str:
        return "the answer was cut off: raise max_tokens" if answer.cut else judging.yes_or_no(answer.text or "")

    def _probability(self, answer: Answer) -> float | str:
        if answer.top is None:
            return "the server sends no log-probabilities: set logprobs: false, or serve with vLLM or SGLang"
        return judging.yes_probability(answer.top, fold=self.fold, mass=self.mass)


def _without_asking(
    reading: Reading, samples: Samples, refuse_orders: bool
) -> tuple[list[float], list[tuple[int, str]]]:
    """Scores [B] of what need not be asked about (0 without the part that is judged, else NaN), and the questions."""
    scores: list[float] = []
    asked: list[tuple[int, str]] = []
    for i, (text, prompt) in enumerate(zip(texts_of(samples, reading.reward), samples.prompts, strict=True)):
        said = reading.said(text)
        scores.append(0.0 if said is None else math.nan)
        if said is not None and not (refuse_orders and _gives_orders(said)):
            asked.append((i, reading.asked(prompt, said)))
    return scores, asked


def _gives_orders(said: str) -> bool:
    """Whether a completion tells the judge what to say; the marks of thought, answer and box are its own."""
    return judging.gives_orders(re.sub(r"</?(?:think|answer)>|<\|(?:begin|end)_of_box\|>", " ", said))


class text_reward_model(Model):
    """A reward model of transformers with a head of one number on a language model, float32 [B], its raw logit.

    model: a folder or a model of the hub that loads as sequence classification with one label (Skywork-Reward,
    ArmoRM-like heads of one number). It reads the prompt and the completion by the chat template of its tokenizer.
    """

    def __init__(self, *, model: str, dtype: str = "auto"):
        name = type(self).__name__
        super().__init__()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer: Tokenizer = load_pretrained(AutoTokenizer.from_pretrained, shipped_path(model), name)
        load = AutoModelForSequenceClassification.from_pretrained
        self.model: Network = load_pretrained(load, shipped_path(model), name, dtype=dtype)
        if self.model.config.num_labels != 1:
            raise ValueError(f"{name}: {model!r} has {self.model.config.num_labels} labels; accepted is a head of one")
        self.freeze()

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """The head's number for each completion, float32 [B]."""
        scores = []
        for text, prompt in zip(texts_of(samples, type(self).__name__), samples.prompts, strict=True):
            chat = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": text}]
            scores.append(float(self.model(input_ids=_ids(self.tokenizer, chat).to(self.device)).logits[0, 0]))
        return torch.tensor(scores, dtype=torch.float32)


def _ids(tokenizer: Tokenizer, chat: Sequence[Message], **how: bool) -> Tensor:
    """Token ids [1, N] of a conversation by the tokenizer's chat template, or a line for each message without one."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(list(chat), return_dict=False, return_tensors="pt", **how)
    return tokenizer("\n".join(message["content"] for message in chat), return_tensors="pt")["input_ids"]
