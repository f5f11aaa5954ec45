"""Copies in another precision, rows alone, distributions that never stand whole, and what is read of a vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl.contracts import LogProbs, View
from flowrl.core.backward import StepLoss, backward, fill_old, with_step_weights
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.correction import Correction
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.mismatch import mismatch
from flowrl.policies import adapters
from flowrl.policies.language import scores
from flowrl.policies.language.drawing.forwards import left_padded
from flowrl.policies.language.drawing.heads import head_of
from flowrl.policies.language.drawing.low_precision import merged
from language_support import PLAN, PROMPTS, model, policy, replayed
from samplers import tokens as maths
from samplers.tokens import token_entropy, token_kl

ROWS = list(range(9))


def with_lora(made=None, moved: float = 0.2, **options):
    subject = policy(made, **options)
    adapters.add_lora(subject.modules, rank=4, alpha=8, targets="all")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in subject.model.named_parameters():
        if "lora_B" in name:
            parameter.data += moved * torch.randn(parameter.shape, generator=generator)
    return subject


def test_a_copy_in_another_precision_draws_and_the_model_stays():
    subject = with_lora()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    found = {}
    for precision in (None, *maths.PRECISIONS):
        rollout = subject.rollout(PROMPTS, group_size=3, plan=replace(PLAN, precision=precision), seed=4)
        fill_old(subject, rollout, torch.arange(9))
        found[precision] = mismatch(rollout.old_logp, rollout.rollout_logp, rollout.mask)
    assert found[None]["max"] < 1e-5
    sizes = {precision: float(values["mean_abs"]) for precision, values in found.items()}
    assert 1e-5 < sizes["float16"] < sizes["bfloat16"] / 4 and sizes["bfloat16"] < 0.1 > sizes["int8"] > 1e-4
    assert all(0.9 < float(values["ess"]) <= 1 + 1e-6 for values in found.values())
    after = subject.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_adapters_are_merged_into_the_copy_as_they_are_now():
    subject = with_lora()
    ids, attention = left_padded([[5, 6, 7, 9]], 0, torch.device("cpu"))
    for _ in range(2):
        twin = merged(subject.model)
        given = dict(input_ids=ids, attention_mask=attention)
        torch.testing.assert_close(twin(**given).logits, subject.model(**given).logits, rtol=1e-4, atol=1e-4)
        assert not any("lora" in name for name, _ in twin.named_parameters())
        assert not any(parameter.requires_grad for parameter in twin.parameters())
        for parameter in subject.trainable():
            parameter.data += 0.05


def test_a_row_alone_is_the_same_bits_in_every_batch():
    subject = with_lora(batch_invariant=True)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=4)
    lone = subject.rollout(PROMPTS[2:], group_size=1, plan=PLAN, seed=4, first=1)
    width = int(lone.samples.lengths[0])
    assert torch.equal(lone.replay.tokens[0, :width], rollout.replay.tokens[7, :width])
    assert torch.equal(lone.rollout_logp[0, :width], rollout.rollout_logp[7, :width])
    whole = replayed(subject, rollout, [ROWS]).logp
    assert torch.equal(whole, replayed(subject, rollout, [[8, 2], [0, 7, 1], [3, 4, 5, 6]]).logp)
    assert torch.equal(whole[7, :width], replayed(subject, lone, [[0]]).logp[0, :width])
    batched = with_lora()
    mask = rollout.mask
    torch.testing.assert_close(replayed(batched, rollout, [ROWS]).logp[mask], whole[mask], rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most distributions over a vocabulary that any result of an operation holds."""

    most = 0

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.shape[-1:] == (self.vocabulary,):
                self.most = max(self.most, value.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("full", [False, True])
def test_distributions_never_stand_whole(full: bool, monkeypatch):
    """With the divergence from the base and the entropy: values and gradients are those of whole logits."""
    subject = with_lora()
    if full:
        adapters.train_full(subject.modules)
    rollout = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=4)
    view, found = View(exact_kl=True, entropy=True), []

    def visit(seen: LogProbs) -> None:
        total = (seen.logp + seen.kl * 2 - seen.entropy)[rollout.mask].sum()
        total.backward()
        gradients = [parameter.grad.clone() for parameter in subject.trainable()]
        subject.model.zero_grad()
        found.append([x.detach() for x in (seen.logp, seen.kl, seen.entropy)] + gradients)

    vocabulary = subject.model.config.vocab_size
    whole = 9 * rollout.mask.shape[1]
    sizes = []
    for chunk in (2**24, vocabulary * 7):
        for module in (maths, scores):
            monkeypatch.setattr(module, "CHUNK", chunk)
        with Largest(vocabulary) as seen:
            subject.look(rollout, torch.arange(9), view, visit)
        sizes.append(seen.most)
    for one, other in zip(*([x[rollout.mask] for x in part[:3]] + part[3:] for part in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    width = subject.model.config.hidden_size  # rows of the head's weights
    assert sizes[0] >= whole and sizes[1] == (whole if full else width)  # a head that trains is not the reference's


def test_a_head_is_taken_for_one_only_where_logits_are_nothing_else():
    made = model()
    assert head_of(made, [5, 6, 7]) is not None
    plain = made.forward
    made.__class__ = type("Capped", (type(made),), {"forward": lambda self, **given: _doubled(plain(**given))})
    assert head_of(made, [5, 6, 7]) is None


def _doubled(output):
    output.logits = output.logits * 2
    return output


def test_divergences_of_a_vocabulary():
    """Each by the sum of its definition; jsd goes to the two others as its mix goes to the ends."""
    generator = torch.Generator().manual_seed(3)
    logits, other = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    p, q = (x / 0.7 for x in (logits, other))
    p, q = p.softmax(-1)[1, 2], q.softmax(-1)[1, 2]
    m = 0.3 * q + 0.7 * p
    want = {
        "exact": (p * (p / q).log()).sum(),
        "forward": (q * (q / p).log()).sum(),
        "jsd": 0.3 * (q * (q / m).log()).sum() + 0.7 * (p * (p / m).log()).sum(),
    }
    for kind, value in want.items():
        got = token_kl(logits, other, 0.7, torch.float64, kind=kind, mix=0.3)
        torch.testing.assert_close(got[1, 2], value)
    near = token_kl(logits, other, 0.7, torch.float64, kind="jsd", mix=1e-6)
    torch.testing.assert_close(
        near / 1e-6, token_kl(logits, other, 0.7, torch.float64, kind="forward"), rtol=1e-3, atol=0
    )


def test_the_gradient_of_an_entropy_is_finite_where_a_probability_is_0():
    logits = torch.tensor([[[0.0, 1.0, -1e4, 2.0]]], requires_grad=True)
    entropy = token_entropy(logits, 1.0)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    p = logits.detach().softmax(-1)
    want = -p * (p.clamp(min=1e-30).log() + entropy.detach()[..., None])
    torch.testing.assert_close(gradient, want)
    with torch.no_grad():
        torch.testing.assert_close(token_entropy(logits, 1.0), entropy.detach())


def test_a_corrected_loss_is_the_same_in_any_cut():
    """Through an int8 rollout: gradients of the whole update and of single rows."""
    subject = with_lora()
    rollout = subject.rollout(PROMPTS, group_size=3, plan=replace(PLAN, precision="int8"), seed=4)
    adv = torch.linspace(-1, 1, 9)
    fill_old(subject, rollout, torch.arange(9))
    objective = ClippedObjective(0.2, 0.2, correction=Correction("mis", high=1.01), entropy=0.1)
    weighed, metrics = objective.weigh(rollout, adv)
    assert 0 < metrics["correction/rejected"] < 1
    assert weighed.mask.sum() < rollout.mask.sum() and objective.weights(weighed.mask).sum() == pytest.approx(1)
    gradients = []
    for parts in ([ROWS], [[i] for i in ROWS]):
        spread = with_step_weights(adv, objective, weighed, torch.arange(9))
        loss = StepLoss(weighed, spread, objective, objective.weights(weighed.mask), weights(weighed.mask))
        for part in parts:
            backward(subject, torch.tensor(part), loss)
        gradients.append([parameter.grad.clone() for parameter in subject.trainable()])
        subject.model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
