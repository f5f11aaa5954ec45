"""Discussions of several roles: what each hears, whose rewards count, and whose weights a row moves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from flowrl.contracts import Drawing, Explored, Rollout, Samples
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.value import ValueObjective
from flowrl.core.update import Settings, update
from flowrl.exports.language import write
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.critic import TokenValues
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.discussion import Discussing, Speakers, credit_of, discussion
from flowrl.policies.roles import add_roles, parameters_by_role
from language_support import PLAN, PROMPTS, model, policy, replayed

NAMES = ["first", "second", "third"]
SHORT = replace(PLAN, max_new_tokens=6)


def speakers(names: Sequence[str] = NAMES, **changes: Any) -> Speakers:
    given: dict[str, Any] = {"rounds": 1, "hear": "before", "ask": "{question};{said}", "line": "{name}={text}\n"}
    return Speakers(names, **given | {"adapters": "names", "share": "all", "discount": 1.0} | changes)


def roles(labels: Sequence[str] = NAMES, *, apart: bool = True) -> LanguagePolicy:
    """A policy with adapters that are no longer the unchanged model, each another one."""
    subject = policy()
    adapters.add_lora(subject.modules, rank=2, alpha=16, targets="all", seed=3)
    subject.roles = labels
    add_roles(subject.modules, labels, 3)
    if apart:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in adapters.trainable_by_name(subject.modules).items():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return subject


def lengths(samples: Samples) -> tuple[dict[str, Tensor], Tensor]:
    assert samples.lengths is not None
    value = samples.lengths.float()
    return {"long": value}, value.double()


def held(subject: LanguagePolicy, who: Speakers, prompts: Any = PROMPTS, group: int = 2, first: int = 5) -> Explored:
    return discussion(subject, Drawing(prompts, group, SHORT, 7, first), lengths, speakers=who)


def shown(subject: LanguagePolicy, rollout: Rollout, row: int) -> str:
    return subject.tokenizer.decode(rollout.replay.prompts[row])


@pytest.mark.parametrize(("hear", "number"), [("before", [0, 1, 2, 3, 4, 5]), ("rounds", [0, 0, 0, 3, 3, 3])])
def test_each_is_shown_what_was_said_before_and_nothing_else(hear: str, number: list[int]) -> None:
    subject = roles()
    rollout = held(subject, speakers(hear=hear, rounds=2)).rollout
    texts = rollout.samples.texts
    assert texts is not None and rollout.roles is not None
    for row in range(len(texts)):
        prompt, begin, at = PROMPTS[row // 12], row - row % 6, row % 6
        heard = "".join(f"{NAMES[i % 3]}={texts[begin + i]}\n" for i in range(number[at]))
        expected = f"{prompt.text};{heard}" if heard else prompt.text
        assert expected in shown(subject, rollout, row)
        assert rollout.samples.prompts[row] is prompt and int(rollout.samples.group[row]) == row // 12
    assert rollout.roles.tolist() == [0, 1, 2] * 12


def test_what_is_said_depends_on_no_other_prompt_and_each_role_draws_with_its_own_adapter() -> None:
    subject, who = roles(), speakers()
    whole, alone = held(subject, who).rollout, held(subject, who, PROMPTS[2:]).rollout
    assert whole.samples.texts is not None and whole.samples.texts[12:] == alone.samples.texts
    seen = replayed(subject, whole, [[17, 3, 1], [0, 2], [4, *range(5, 17)]])
    torch.testing.assert_close(seen.logp.where(whole.mask, 0.0), whole.rollout_logp, atol=1e-5, rtol=0)
    whole.replay.roles = torch.zeros(18, dtype=torch.int64)  # who spoke matters
    other = replayed(subject, whole, [list(range(18))])
    gap = (other.logp - whole.rollout_logp).abs().where(whole.mask, 0.0).amax(1)
    assert (gap[0::3] < 1e-5).all() and (gap[1::3] > 1e-3).any() and (gap[2::3] > 1e-3).any()


def test_a_form_is_filled_once() -> None:
    prompt = replace(PROMPTS[0], text="what is {said}?", messages=({"role": "user", "content": "what is {said}?"},))
    asked = speakers(line="{text}").asked(prompt, 1, ["{question}"])
    assert asked.text == "what is {said}?;{question}" and asked.messages[-1]["content"] == asked.text
    only = speakers(ask={"third": "{said}{question}"})
    assert only.asked(prompt, 1, ["a"]) is prompt and only.asked(prompt, 2, ["a", "b"]).text.startswith(
        "first=a\nsecond"
    )


SHARES = {
    "all": lambda s, t, a, d: s[t, a] + sum(d ** (u - t) * s[u].mean() for u in range(t + 1, 3)),
    "own": lambda s, t, a, d: sum(d ** (u - t) * s[u, a] for u in range(t, 3)),
    "team": lambda s, t, a, d: s[2].mean(),
    "last": lambda s, t, a, d: s[2, 1],
}


@pytest.mark.parametrize("share", SHARES)
def test_rewards_reach_those_who_share_them(share: str) -> None:
    d = 0.3 if share in ("all", "own") else 1.0
    who = speakers(["x", "y"], rounds=3, share=share, discount=d)
    scores = torch.rand(2, 4, 3, 2, generator=torch.Generator().manual_seed(1)).double()  # prompt, discussion, ...
    got = row_advantages(
        {"r": scores.flatten().float()},
        torch.arange(2).repeat_interleave(24),
        credit_of(who, 4),
        weights={"r": 1.0},
        baseline="none",
        scale="none",
        combine="sum",
        clip=None,
    ).view(2, 4, 3, 2)
    for p, g, t, a in [(1, 2, 0, 1), (0, 3, 1, 0), (1, 3, 2, 1), (0, 0, 0, 0)]:
        norm = sum(d ** (u - t) for u in range(t, 3)) if share in ("all", "own") else 1.0
        assert float(got[p, g, t, a]) == pytest.approx(float(SHARES[share](scores[p, g], t, a, d)) / norm, abs=1e-5)
    centred = row_advantages(
        {"r": scores.flatten().float()},
        torch.arange(2).repeat_interleave(24),
        credit_of(who, 4),
        weights={"r": 1.0},
        scale="none",
        combine="sum",
        clip=None,
    ).view(2, 4, 3, 2)
    torch.testing.assert_close(centred.mean(1), torch.zeros(2, 3, 2), atol=1e-6, rtol=0)  # each place by itself


def moved(subject: LanguagePolicy, rollout: Rollout, adv: Tensor) -> list[list[Tensor]]:
    """By role, how its parameters were moved by two updates; the weights are put back."""
    parts = parameters_by_role(subject.modules, subject.roles)
    before = [[p.detach().clone() for p in part] for part in parts]
    learner = Learner([p for part in parts for p in part], lr=1e-2, weight_decay=0.0, max_grad_norm=0.05, apart=parts)
    update(subject, learner, rollout, adv, ClippedObjective(0.2, 0.2), Settings(group=2, epochs=2, micro_batch=4))
    change = [[p.detach() - old for p, old in zip(*pair, strict=True)] for pair in zip(parts, before, strict=True)]
    with torch.no_grad():
        for part, old in zip(parts, before, strict=True):
            for parameter, value in zip(part, old, strict=True):
                parameter.copy_(value)
    return change


def test_a_row_moves_the_adapter_of_its_role_alone_and_roles_learn_as_if_each_were_alone() -> None:
    subject = roles()
    rollout = held(subject, speakers()).rollout
    assert rollout.roles is not None
    adv = torch.randn(18, generator=torch.Generator().manual_seed(2))
    together = moved(subject, rollout, adv)
    for role in range(3):
        own = adv.where(rollout.roles == role, 0.0)
        alone = replace(rollout, mask=rollout.mask & (rollout.roles == role)[:, None])
        single = moved(subject, alone, own)
        for other in range(3):
            size = max(float(change.abs().max()) for change in single[other])
            assert size > 1e-3 if other == role else size == 0.0
        for a, b in zip(single[role], together[role], strict=True):
            torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-4)


def test_the_reference_of_all_roles_is_the_model_without_adapters() -> None:
    subject = roles()
    rollout = held(subject, speakers()).rollout
    bare = replayed(policy(), replace(rollout, replay=replace(rollout.replay, roles=None)), [list(range(18))])
    seen = replayed(subject, rollout, [list(range(18))], weights="reference")
    torch.testing.assert_close(seen.logp.where(rollout.mask, 0.0), bare.logp.where(rollout.mask, 0.0))
    assert len(list(subject.trainable())) == 3 * len(list(adapters.trainable(roles(["a"]).modules)))


def test_a_critic_has_values_of_its_own_for_each_role() -> None:
    subject = roles()
    rollout = held(subject, speakers()).rollout
    network = model(1)
    adapters.add_lora({"critic": network}, rank=2, alpha=2, targets="all", seed=0)
    values = TokenValues(network, device="cpu", pad=0, roles=NAMES)
    values.roles = NAMES
    add_roles({"critic": network}, NAMES, 0)
    parts = parameters_by_role(values.modules, NAMES)
    assert len(parts) == 3 and sum(map(len, parts)) == len(list(values.trainable()))
    rollout.value = torch.zeros(rollout.mask.shape)
    rollout.returns = torch.ones(rollout.mask.shape)
    third = replace(rollout, mask=rollout.mask & (rollout.roles == 2)[:, None])
    before = [[p.detach().clone() for p in part] for part in parts]
    learner = Learner(values.trainable(), lr=1e-2, apart=parts)
    update(values, learner, third, torch.zeros(18), ValueObjective(0.5), Settings(group=2, epochs=2))
    differ = [
        [not torch.equal(p, old) for p, old in zip(*pair, strict=True)] for pair in zip(parts, before, strict=True)
    ]
    assert [any(part) for part in differ] == [False, False, True]
    assert not torch.equal(values.heads[2].bias, values.heads[0].bias)


def test_adapters_are_written_and_read_for_each_role(tmp_path: Path) -> None:
    subject, again = roles(), roles(apart=False)
    adapters.save(subject.source, subject.modules, tmp_path)
    adapters.restore(again.source, again.modules, tmp_path)
    for name, value in adapters.trainable_by_name(subject.modules).items():
        assert torch.equal(value, adapters.trainable_by_name(again.modules)[name]), name
    with pytest.raises(PolicyError, match=r"--kind: got merged, .*second, third"):
        write(subject, tmp_path / "merged", "merged")
    rollout = held(subject, speakers()).rollout
    plain = policy(PeftModel.from_pretrained(model(), tmp_path / "third").merge_and_unload().eval())
    seen = replayed(plain, replace(rollout, replay=replace(rollout.replay, roles=None)), [[2, 5], [17]])
    torch.testing.assert_close(
        seen.logp.where(rollout.mask[[2, 5, 17]], 0.0), rollout.rollout_logp[[2, 5, 17]], atol=1e-5, rtol=0
    )


def test_evaluations_hold_the_discussion_and_keep_what_is_said_last() -> None:
    subject = roles()
    whole = held(subject, speakers(), first=0).rollout
    last = Discussing(subject, speakers()).rollout(PROMPTS, group_size=2, plan=SHORT, seed=7)
    assert whole.samples.texts is not None and last.samples.texts == whole.samples.texts[2::3]
    assert last.samples.group.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_discussion_without_room_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(PolicyError, match=r"generation\.max_new_tokens: got 50, .* takes \d+ of the model's 128"):
        discussion(roles(), Drawing(PROMPTS, 2, replace(PLAN, max_new_tokens=50), 0, 0), lengths, speakers=speakers())
