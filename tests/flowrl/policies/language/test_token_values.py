"""Values of tokens: rows of unequal lengths, together and alone, and gradients under any micro-batch."""

import torch
from torch import Tensor

from flowrl.contracts import Valued, View
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.value import ValueObjective
from flowrl.policies import adapters
from flowrl.policies.language.critic import TokenValues
from language_support import PLAN, PROMPTS, alone, model, policy


def critic() -> TokenValues:
    made = TokenValues(model(3), device="cpu", pad=0)
    adapters.train_full({"critic": made.model})
    torch.manual_seed(5)
    torch.nn.init.normal_(made.heads[0].weight)
    return made


def test_values_are_those_of_each_row_alone() -> None:
    """The value before a token reads the prompt and what was drawn before it, and nothing behind."""
    drawn, values = policy().rollout(PROMPTS, group_size=2, plan=PLAN, seed=1), critic()
    assert len(set(drawn.samples.lengths.tolist())) > 2
    seen: list[Valued] = []
    with torch.no_grad():
        values.look(drawn, torch.arange(6), View(states="valued"), seen.append)
        for row in (2, 3, 5):
            trajectory, length = drawn.replay, int(drawn.replay.length[row])
            for k in range(length):
                ids = torch.tensor([[*trajectory.prompts[row], *trajectory.tokens[row, :k].tolist()]])
                hidden = values.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
                torch.testing.assert_close(seen[0].value[row, k], values.heads[0](hidden)[0], rtol=1e-4, atol=1e-5)


def gradient(values: TokenValues, micro: int) -> Tensor:
    drawn = policy().rollout(PROMPTS, group_size=2, plan=PLAN, seed=1)
    drawn.value = torch.zeros_like(drawn.rollout_logp)
    drawn.returns = torch.linspace(-1, 1, drawn.value.numel()).reshape(drawn.value.shape)
    objective = ValueObjective(None)
    loss = StepLoss(drawn, drawn.returns[:, 0], objective, objective.weights(drawn.mask), weights(drawn.mask))
    for rows in torch.arange(6).split(micro):
        backward(values, rows, loss)
    found = torch.cat([p.grad.flatten() for p in values.trainable() if p.grad is not None])
    for parameter in values.trainable():
        parameter.grad = None
    return found


def test_micro_batches_of_rows_give_the_same_gradient() -> None:
    values = critic()
    whole = gradient(values, 6)
    assert (gradient(values, 2) - whole).abs().max() < 1e-6 * whole.abs().max().clamp(min=1)
    assert (gradient(values, 5) - whole).abs().max() < 1e-6 * whole.abs().max().clamp(min=1)


def test_squares_are_those_of_the_distribution_that_was_drawn_from() -> None:
    network = model()
    drawn = policy(network, keep_squares=True, max_rows=4).rollout(PROMPTS, group_size=2, plan=PLAN, seed=1)
    for row in (2, 5):
        length, trajectory = int(drawn.samples.lengths[row]), drawn.replay
        logits = alone(network, trajectory.prompts[row], trajectory.tokens[row, :length].tolist())
        found = drawn.step_stats["squares"][row, :length]
        torch.testing.assert_close(found, logits.softmax(-1).square().sum(-1), rtol=1e-4, atol=1e-5)
