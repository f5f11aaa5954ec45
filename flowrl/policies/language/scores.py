"""What a look at completions finds: log-probs, divergences from a teacher, entropies of each token's distribution."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from flowrl.contracts import View
from flowrl.policies.language.drawing.decoding import teacher_forced
from flowrl.policies.language.drawing.heads import Head, head_of
from flowrl.policies.language.media.inputs import Inputs
from flowrl.untyped import LanguageModel
from samplers.tokens import CHUNK, Logits, token_entropy, token_kl, token_logp

Found = tuple[Tensor, Tensor | None, Tensor | None]  # log-probs, divergence, entropy, [r, K] each


class Scores:
    """Looks of one model. pad: what rows are filled up with. precision: of what is found. reference: within it, the
    model, where it is its own teacher, is the reference. alone: each row goes through the model by itself."""

    def __init__(
        self,
        model: LanguageModel,
        pad: int,
        precision: torch.dtype,
        reference: Callable[[], AbstractContextManager[None]],
        alone: bool,
    ):
        self.model, self.pad, self.precision, self.reference, self.alone = model, pad, precision, reference, alone
        self._heads: dict[bool, Head | None] = {}  # of the model (True), and of another that teaches

    def at(
        self,
        prompts: Sequence[list[int]],
        tokens: Tensor,
        length: Tensor,
        rows: Tensor,
        scale: float,
        view: View,
        teacher: LanguageModel,
        inputs: Sequence[Inputs] | None = None,
    ) -> Found:
        """What is found of rows int64 [r], 0 beyond the longest of those that go through the model together.

        prompts: ids of each row of all; tokens int64 [R, K], of which length int64 [R] count. scale: of the logits.
        view: its weights are those that the model has now. teacher: what a divergence is measured from. inputs: the
        media of each row of all; None where the model reads text alone.
        """
        parts = rows.split(1) if self.alone else [rows]
        found = [
            self._part(
                [prompts[i] for i in part.tolist()],
                tokens[part],
                length[part],
                scale,
                view,
                teacher,
                None if inputs is None else [inputs[i] for i in part.tolist()],
            )
            for part in parts
        ]
        kl, entropy = (_joined([part[i] for part in found]) for i in (1, 2))
        return torch.cat([part[0] for part in found]), kl, entropy

    def _part(
        self,
        prompts: list[list[int]],
        tokens: Tensor,
        length: Tensor,
        scale: float,
        view: View,
        teacher: LanguageModel,
        inputs: list[Inputs] | None,
    ) -> Found:
        width = int(length.max())

        def logits_of(model: LanguageModel, other: bool = False) -> Logits:
            size = len(prompts) * width * model.config.get_text_config().vocab_size
            head = self._head(model, prompts[0], None if inputs is None else inputs[0]) if size > CHUNK else None
            trains = head is not None and any(weight.requires_grad for weight in head.module.parameters())
            head = None if other and trains else head  # it is the reference's only within `reference`
            return teacher_forced(model, prompts, tokens, length, pad=self.pad, head=head, inputs=inputs)

        kl = entropy = None
        logits = logits_of(teacher if view.weights == "reference" else self.model)
        logp = token_logp(logits, tokens[:, :width].to(self.model.device), scale, self.precision)
        if view.exact_kl:
            with torch.no_grad(), self.reference():
                reference = logits_of(teacher, other=True)
            kl = token_kl(logits, reference, scale, self.precision, kind=view.kl_kind, mix=view.kl_mix)
        if view.entropy:
            entropy = token_entropy(logits, scale, self.precision)
        beyond = (0, tokens.shape[1] - width)
        kl, entropy = (None if value is None else nn.functional.pad(value, beyond) for value in (kl, entropy))
        return nn.functional.pad(logp, beyond), kl, entropy

    def _head(self, model: LanguageModel, ids: list[int], inputs: Inputs | None) -> Head | None:
        """What makes a model's logits of its last states; None where that is not all. It is tried once."""
        own = model is self.model
        if own not in self._heads:
            self._heads[own] = head_of(model, ids, inputs)
        return self._heads[own]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
