"""A vision-language model of transformers as the judge, in this process.

mode yes: VQAScore (arXiv 2404.01291): 'Does this figure show "CAPTION"? Please answer yes or no.', and the probability
of yes out of yes and no as the first token of the answer; 0..1. All tokens that read yes or no without case and blanks
count (fold: false: exactly Yes and No). mode rubric: a JSON object of numbers, their mean scaled to 0..1. Licences are
those of the model; that of the default is on its page (Apache-2.0 as far as we know, it could not be looked up).

Published mistakes that it avoids: logits are read at the end of the prompt without padding, so that no sample's number
depends on its neighbours; an answer that is not exactly the requested JSON is NaN, never 0; a caption can neither end
its quotation nor spell control tokens such as <image>. The question stays as published, without a system message;
guard: true adds one that says that captions are data (always so in mode rubric).
"""

import inspect
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.untyped import JSON, Network
from reward_models.parts.assets import shipped_path
from reward_models.parts.checkpoints import load_pretrained
from reward_models.parts.judge import judging, rubrics
from reward_models.parts.judge.asking import Judge, View, messages, scatter
from reward_models.parts.judge.words import word_tokens
from reward_models.parts.model import Model

NAME = "vlm_judge"
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


class vlm_judge(Judge, Model):
    """Score of each sample by a local vision-language model, float32 [B] in [0, 1]; no gradient.

    model: a folder, a model of the hub, or shapes-vlm, which ships.
    """

    def __init__(
        self,
        *,
        model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        mode: str = "yes",
        question: str = QUESTION,
        rubric: Mapping[str, str] | None = None,
        scale: Sequence[float] = (1, 5),
        fold: bool = True,
        mass: float = 0.01,
        guard: bool | None = None,
        refuse_orders: bool = True,
        frames: int | None = 8,
        max_tokens: int = 256,
        dtype: str = "auto",
        template: Mapping[str, JSON] | None = None,
    ):
        if mode not in ("yes", "rubric"):
            raise ValueError(f"{NAME}: mode={mode!r}; accepted are yes, rubric")
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"{NAME}: dtype={dtype!r}; accepted are auto, float32, bfloat16, float16")
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"{NAME}: max_tokens={max_tokens!r}; accepted is 1 or more")
        guarded = mode == "rubric" if guard is None else guard
        super().__init__(frames=frames, guard=guarded, refuse_orders=refuse_orders)
        self.mode, self.mass, self.max_tokens = mode, mass, max_tokens
        self.question = judging.check_template(NAME, "question", question)
        self.rubric, self.template = rubrics.check_rubric(NAME, rubric, scale), dict(template or {})
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = load_pretrained(AutoProcessor.from_pretrained, shipped_path(model), NAME)
        if getattr(self.processor, "chat_template", None) is None or not hasattr(self.processor, "image_processor"):
            raise ValueError(f"{NAME}: {model!r} has no chat template for pictures; accepted is a chat model that sees")
        load = AutoModelForImageTextToText.from_pretrained
        self.model: Network = load_pretrained(load, shipped_path(model), NAME, dtype=dtype)
        self.last_only = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.yes, self.no = word_tokens(self.processor.tokenizer, NAME, fold=fold)
        self.freeze()

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """The judge's score of each sample, float32 [B] in [0, 1]; NaN if it gave none."""
        views = self.views(samples)
        asked = [i for i, view in enumerate(views) if view is not None]
        prompts = [self._inputs(views[i] or [], samples.prompts[i].text) for i in asked]
        scores = [math.nan] * len(asked)
        for alike in _by_shape(prompts):
            joined = {key: torch.cat([prompts[k][key] for k in alike]).to(self.device) for key in prompts[alike[0]]}
            for k, score in zip(alike, self._scores(joined), strict=True):
                scores[k] = score
        return scatter(scores, asked, len(samples))

    def yes_probability(self, logits: Tensor) -> Tensor:
        """P(yes) / (P(yes) + P(no)) of first-token logits [N, V], float32 [N]; NaN where both hold less than mass."""
        logp = logits.double().log_softmax(-1)
        yes, no = logp[:, self.yes].logsumexp(-1), logp[:, self.no].logsumexp(-1)
        share = torch.sigmoid(yes - no)
        return share.where(torch.logaddexp(yes, no).exp() >= self.mass, torch.nan).float()

    def _scores(self, joined: dict[str, Tensor]) -> list[float]:
        """The scores of prompts of one length, batched without padding."""
        if self.mode == "yes":
            last = {"logits_to_keep": 1} if self.last_only else {}
            shares = self.yes_probability(self.model(**joined, **last).logits[:, -1]).tolist()
            vague = "yes and no are not likely enough to tell", f"together less than mass={self.mass:g}"
            return [self.note_missing(*vague) if math.isnan(share) else share for share in shares]
        drawn = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        written = self.model.generate(**joined, max_new_tokens=self.max_tokens, **drawn)
        texts = self.processor.batch_decode(written[:, joined["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = [(self.rubric.score(text), text) for text in texts]
        return [self.note_missing("the answer is no score", f"{t!r:.200}") if math.isnan(s) else s for s, t in scores]

    def _inputs(self, view: View, caption: str) -> dict[str, Tensor]:
        """The model's inputs for one sample: pictures first, placed by its chat template."""
        text = self.rubric.question(caption) if self.mode == "rubric" else judging.fill_template(self.question, caption)
        chat = messages(None, *({"type": "image", "image": picture} for picture in view), text)
        if self.system is not None:  # in parts, as templates of processors want it
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        inputs = self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **self.template
        )
        dtype = self.model.dtype
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items() if isinstance(v, Tensor)}


def _by_shape(prompts: Sequence[dict[str, Tensor]]) -> list[list[int]]:
    """Positions of prompts whose tensors have equal shapes, so that they can be batched as they are."""
    by_shape: dict[tuple, list[int]] = {}
    for k, prompt in enumerate(prompts):
        by_shape.setdefault(tuple((key, tuple(value.shape)) for key, value in sorted(prompt.items())), []).append(k)
    return list(by_shape.values())
