"""A critic over tokens: a causal language model whose last hidden state says, by a linear head, what is to come."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from flowrl.contracts import Progress, Rollout, Valued, View, Visit
from flowrl.policies import adapters
from flowrl.policies.language.drawing.decoding import whole_rows
from flowrl.policies.language.drawing.forwards import arguments_of, forward_arguments
from flowrl.policies.language.media.features import kept_features
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.language.policy import Completions
from flowrl.policies.roles import head_of, speaking
from flowrl.untyped import LanguageModel


class TokenValues:
    """Values of the tokens of `LanguagePolicy`'s rollouts, before each is drawn.

    model: a causal language model with the same tokens, in evaluation mode; head: from its hidden state to one number.
    It begins at 0: the values of an untrained critic are all 0, and repeat under every seed. roles: the labels of
    several policies, each of which has a head of its own and, where the model has adapters, one of these.
    """

    whole_rows = True

    def __init__(self, model: LanguageModel, *, device: torch.device | str, pad: int, roles: Sequence[str] = ()):
        width = model.config.get_text_config().hidden_size
        self.model, self.pad = model.to(device), pad
        self.heads = [nn.Linear(width, 1, device=device, dtype=torch.float32) for _ in roles or ("",)]
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.roles: Sequence[str] = ()  # of adapters of the model
        self.modules: dict[str, nn.Module] = {"critic": self.model}
        self.modules |= {head_of(i): head for i, head in enumerate(self.heads)}

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """Hands the values of all tokens of `rows` to `visit`, as `Valued`; 0 beyond the longest row.

        In one block for each role.
        """
        trajectory: Completions = rollout.replay
        for role, part in trajectory.by_role(rows):
            with speaking({"critic": self.model}, self.roles, role):
                self._look(trajectory, part, self.heads[role], visit, progress)

    def _look(
        self, trajectory: Completions, rows: Tensor, head: nn.Module, visit: Visit, progress: Progress | None
    ) -> None:
        length, tokens = trajectory.length[rows], trajectory.tokens[rows]
        prompts = [trajectory.prompts[i] for i in rows.tolist()]
        inputs = trajectory.inputs_of(rows)
        value = head(self._hidden(prompts, tokens, length, inputs).float())[..., 0]
        if progress is not None:
            progress(int(length.sum()))
        value = nn.functional.pad(value, (0, tokens.shape[1] - value.shape[1]))
        visit(Valued(rows, torch.arange(tokens.shape[1]), value))

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        return adapters.trainable(self.modules)

    def _hidden(self, prompts: list[list[int]], tokens: Tensor, length: Tensor, inputs: list[Inputs] | None) -> Tensor:
        """The last hidden states [r, T, D] of the positions that each of the first T = max(length) tokens follows."""
        width = int(length.max())
        ids, attention, shown = whole_rows(self.model, prompts, tokens, length, self.pad, inputs)
        known = forward_arguments(self.model)
        given: dict[str, object] = {"use_cache": False, "output_hidden_states": True}
        given |= arguments_of(self.model, attention, ids.shape[1], shown, known)
        if "logits_to_keep" in known:
            given["logits_to_keep"] = 1
        with kept_features(self.model, () if shown is None else shown.pieces):
            return self.model(input_ids=ids, **given).hidden_states[-1][:, -width:]
