"""With `offload`, the texts of an iteration are encoded by one journey of the encoders, while no denoiser is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from flowrl.contracts import Prompt
from flowrl.policies.hosting import Hosted
from flowrl.policies.pipelines import building
from flowrl.policies.pipelines.encoding import prompt_cache
from flowrl.policies.pipelines.encoding.joining import find_joining
from flowrl.policies.pipelines.teacher import Teacher
from policies_support import SDE, SEED, FamilyPolicy, gap, pictures, scores

UNEQUAL = [Prompt("cat", "a red cat"), Prompt("dogs", "two dogs on a very long road"), Prompt("blue", "blue")]
QWEN = "Qwen2_5_VLForConditionalGeneration"
OTHERS = [Prompt("owl", "an owl"), Prompt("blue", "blue"), Prompt("hen", "a hen that looks at another hen")]


class Journeys:
    """How often each class of module was brought to the device, and which were there together."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.there: set[str] = set()
        self.together: list[set[str]] = []


@contextmanager
def journeys() -> Iterator[Journeys]:
    seen = Journeys()
    with pytest.MonkeyPatch.context() as patch:
        fetch, park = Hosted.fetch, Hosted.park

        def fetched(self: Hosted) -> None:
            name = type(self.module()).__name__
            seen.made[name] += not self.on_device
            seen.there.add(name)
            seen.together.append(set(seen.there))
            fetch(self)

        def parked(self: Hosted) -> None:
            seen.there.discard(type(self.module()).__name__)
            park(self)

        patch.setattr(Hosted, "fetch", fetched)
        patch.setattr(Hosted, "park", parked)
        yield seen


def away(name: str, **options: Any) -> FamilyPolicy:
    return FamilyPolicy(name, device="cpu:0", offload=True, **options)


class Run:
    """The policy of a family away from the device, the same one at home, and the journeys up to its first rollout."""

    def __init__(self, name: str):
        self.plain, self.policy = FamilyPolicy(name, max_rows=2), away(name, max_rows=2)
        with journeys() as self.begun:
            self.policy.prepare(UNEQUAL[0], SDE)

    def check(self, prompts: list[Prompt], *, encoder: str, most: int, within: float = 0.0) -> None:
        """An iteration of these prompts makes this many journeys, and gives the numbers of the plain policy."""
        with journeys() as seen:
            rollout = self.policy.rollout(prompts, group_size=2, plan=SDE, seed=SEED)
            found = torch.cat([scores(self.policy, rollout, rows) for rows in ([4], [1, 2])])
        assert seen.made[encoder] == most
        assert seen.made[type(self.policy.modules["transformer"]).__name__] == most, "the denoiser makes room once"
        expected = self.plain.rollout(prompts, group_size=2, plan=SDE, seed=SEED)
        assert gap(rollout.rollout_logp, expected.rollout_logp) <= within
        assert gap(pictures(rollout), pictures(expected)) <= within
        again = torch.cat([scores(self.plain, expected, rows) for rows in ([4], [1, 2])])
        assert gap(found, again) <= within


@pytest.fixture(scope="module")
def flux() -> Run:
    return Run("flux")


def test_an_iteration_brings_the_encoders_once_and_gives_the_same_numbers(flux: Run) -> None:
    for prompts, journeys_made in ((UNEQUAL, 1), (OTHERS, 1), (UNEQUAL, 0)):
        flux.check(prompts, encoder="T5EncoderModel", most=journeys_made)


@pytest.mark.slow
@pytest.mark.parametrize("name, encoder", [("sd3", "T5EncoderModel"), ("qwen_image", QWEN)])
def test_that_holds_with_guidance_and_with_padding_to_the_longest(name: str, encoder: str) -> None:
    run = Run(name)
    for prompts, journeys_made in ((UNEQUAL, 1), (OTHERS, 1), (UNEQUAL, 0)):
        run.check(prompts, encoder=encoder, most=journeys_made, within=0.0 if name == "sd3" else 2e-6)


def test_encoders_have_the_device_to_themselves(flux: Run) -> None:
    with journeys() as seen:
        flux.policy.rollout([Prompt("new", "never seen")], plan=SDE, seed=SEED)
    for there in (*flux.begun.together, *seen.together):
        assert not {"T5EncoderModel", "FluxTransformer2DModel"} <= there
    assert any("T5EncoderModel" in there for there in flux.begun.together), "the probe encodes too"


def test_what_was_forgotten_is_encoded_again(flux: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "CACHE_BYTES", 1)
    for most in (1, 1):
        prompts = [Prompt("one", "one"), Prompt("six", "six eggs")]
        with journeys() as seen:
            found = flux.policy.rollout(prompts, plan=SDE, seed=SEED)
        assert seen.made["T5EncoderModel"] > most, "two texts do not fit, so that the rollout encodes again"
        assert torch.equal(found.rollout_logp, flux.plain.rollout(prompts, plan=SDE, seed=SEED).rollout_logp)


def numbered(word: str, number: int) -> list[Prompt]:
    return [Prompt(f"{word} {i}", f"{word} {i}") for i in range(number)]


def encoded_bytes(policy: FamilyPolicy) -> int:
    encoder = policy._working_copy.encoder
    assert encoder is not None
    return encoder.kept.size


def test_encoders_that_have_come_encode_what_is_coming(flux: Run) -> None:
    prompts = numbered("fox", 6)
    with building.looking_ahead(flux.policy, lambda now: prompts[3:]):
        for start, journeys_made in ((0, 1), (3, 0)):
            flux.check(prompts[start : start + 3], encoder="T5EncoderModel", most=journeys_made)
    flux.check(numbered("elk", 3), encoder="T5EncoderModel", most=1)
    flux.check(numbered("elk", 4), encoder="T5EncoderModel", most=1)  # nobody said that the fourth is coming


def test_what_is_coming_takes_no_room_of_what_is_needed(flux: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoded_bytes(flux.policy)
    flux.policy.encode_first(numbered("ant", 1), SDE.num_steps)
    each, prompts = encoded_bytes(flux.policy) - before, numbered("bee", 12)
    limit = 5 * each
    monkeypatch.setattr(prompt_cache, "CACHE_BYTES", limit)
    rollouts, made = [prompts[i : i + 2] for i in range(0, 12, 2)], []
    for number, now in enumerate(rollouts):
        coming = [prompt for later in rollouts[number + 1 :] for prompt in later]
        with building.looking_ahead(flux.policy, lambda _, coming=coming: coming), journeys() as seen:
            rollout = flux.policy.rollout(now, group_size=2, plan=SDE, seed=SEED)
            scores(flux.policy, rollout, [0, 3])
        made.append(seen.made["T5EncoderModel"])
        assert encoded_bytes(flux.policy) <= limit
    assert made == [1, 0, 1, 0, 1, 0], "two and two find room, a fifth is of no use to the third rollout alone"
    with building.looking_ahead(flux.policy, lambda _: numbered("cow", 9)), journeys() as seen:
        flux.policy.rollout(numbered("dog", 7), plan=SDE, seed=SEED)  # more than there is room for, and all are drawn
    assert seen.made["T5EncoderModel"] > 1 and encoded_bytes(flux.policy) <= limit


def test_who_looks_by_other_calls_and_references_look_ahead_too() -> None:
    policy = away("flux", look_call={"guidance_scale": 1.0})
    policy.teachers = [Teacher(away("flux"))]
    everyone = [policy, policy.looks, policy.teachers[0].policy]
    before = [passes.coming for passes in everyone]
    with building.looking_ahead(policy, lambda now: OTHERS):
        assert all(list(passes.coming(UNEQUAL)) == OTHERS for passes in everyone)
    assert [passes.coming for passes in everyone] == before


def test_frozen_weights_are_never_copied_back_and_what_learns_stays() -> None:
    layer = torch.nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    hosted = Hosted(layer, torch.device("cpu"))
    place, before = layer.weight.data_ptr(), layer.weight.clone()
    for _ in range(2):
        hosted.park()
        assert layer.weight.data_ptr() == place
        assert torch.equal(layer.weight, before)
        hosted.fetch()
        for parameter in layer.parameters():  # as on a device of its own, what is there is another tensor
            parameter.data = parameter.data.clone() + 1
    hosted.park()
    assert torch.equal(layer.weight, before)
    assert layer.bias.data_ptr() != place
    assert not torch.equal(layer.bias, torch.zeros(4))


# ---------------------------------------------------------------------- how prompts alone make a call of several


def padded(texts: Any, *, pad: float = 0.0, mask: bool = True) -> Any:
    """Codes padded to the longest of the call, and a mask that is left out where it would be all ones."""
    longest = max(map(len, texts))
    code = torch.full((len(texts), longest, 2), pad)
    valid = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        code[row, : len(text)] = torch.tensor([[ord(c), ord(c) ** 0.5] for c in text])
        valid[row, : len(text)] = True
    return code, (None if valid.all() else valid) if mask else None


def test_codes_and_masks_are_padded_as_the_encoder_does() -> None:
    joining = find_joining(padded, ["one", "a", "longer ones"])
    assert joining is not None
    assert joining.ways == ("rows", "mask:0")
    for texts, at in ((["four", "seventh"], [1, 0, 1]), (["two", "six"], [0, 1, 1])):
        found = joining([padded([text]) for text in texts], at)
        expected = padded([texts[i] for i in at])
        assert torch.equal(found[0], expected[0])
        assert found[1] is expected[1] is None or torch.equal(found[1], expected[1])


def test_padding_that_means_something_is_not_made_up() -> None:
    assert find_joining(lambda texts: padded(texts, pad=7.0), ["one", "a", "longer ones"]) is None
    assert find_joining(lambda texts: padded(texts)[0].flatten(), ["one", "a", "longer ones"]) is None


def test_a_row_that_depends_on_the_others_is_not_encoded_alone() -> None:
    def mean(texts: Any) -> torch.Tensor:
        code = padded([text.ljust(12) for text in texts])[0]
        return code - code.mean(0, keepdim=True) * (len(texts) > 1)

    assert find_joining(mean, ["one", "a", "longer ones"]) is None
