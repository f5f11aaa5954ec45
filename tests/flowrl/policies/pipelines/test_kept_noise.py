"""The noise that samples came from: what a walk keeps of it, and what is noised by it again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowrl.contracts import Field, Prompt, Rollout, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.walks.given_samples import noise_of, open_noise
from policies_support import PROMPTS, SEED, STEPS, FamilyPolicy, gap, pictures
from samplers.plan import Plan

KEPT = Plan(STEPS, (), (), levels=(0.7, 1), keep_noise=True)
OWN = View("noised", own_noise=True)
UNEQUAL = [PROMPTS[0], Prompt("long", "a much longer text about three dogs beside a red cat")]


@pytest.fixture(scope="module")
def flux() -> FamilyPolicy:
    return FamilyPolicy("flux", max_rows=3)  # the four rows of a rollout lie in two calls


def fields(policy: FamilyPolicy, rollout: Rollout, rows: list[int]) -> list[Field]:
    found: list[Field] = []
    with torch.no_grad():
        policy.look(rollout, torch.tensor(rows), OWN, found.append)
    return found


def test_the_pipeline_makes_the_picture_of_the_kept_noise(flux: FamilyPolicy) -> None:
    rollout = flux.rollout(UNEQUAL, group_size=2, plan=KEPT, seed=SEED)
    noise = noise_of(rollout)
    assert noise is not None and noise.shape == rollout.replay.clean[0].shape
    for row, prompt in ((2, UNEQUAL[1]), (1, UNEQUAL[0])):
        again = flux.source(
            **flux.family.batched_call([prompt.text]),
            latents=noise[row : row + 1],
            num_inference_steps=STEPS,
            output_type="pt",
            return_dict=False,
        )[0]
        assert gap(again, pictures(rollout)[row : row + 1]) <= 1e-4 < gap(again, pictures(rollout)[row - 1 : row])
    plain = flux.rollout(UNEQUAL, group_size=2, plan=replace(KEPT, keep_noise=False), seed=SEED)
    assert noise_of(plain) is None and torch.equal(pictures(plain), pictures(rollout))


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_sample_is_noised_on_the_line_to_its_own_noise(name: str, flux: FamilyPolicy) -> None:
    policy = flux if name == "flux" else FamilyPolicy(name)
    rollout = policy.rollout(UNEQUAL, group_size=2, plan=KEPT, seed=SEED)
    whole, third = fields(policy, rollout, [0, 1, 2, 3]), fields(policy, rollout, [2])
    for f in third:
        noise, x0 = rollout.replay.initial[0][2:3], rollout.replay.clean[0][2:3]
        assert gap(f.x, (1 - f.level) * x0 + f.level * noise) <= 1e-5 and gap(f.target, noise - x0) <= 1e-5
        beside = torch.cat([w.v for w in whole if w.columns == f.columns])[2:3]
        assert gap(f.v, beside) <= 1e-4 * float(f.v.abs().max())


def test_given_pictures_are_noised_by_the_noise_of_their_files(flux: FamilyPolicy, tmp_path: Path) -> None:
    """Of two prompts the first has both pictures from files, the second one, and one that is drawn beside it."""
    drawn = flux.rollout(UNEQUAL, group_size=2, plan=KEPT, seed=SEED)
    shown, noise = list(pictures(drawn)), noise_of(drawn)
    assert noise is not None
    for i, one in enumerate(noise):
        save_file({"noise": one.contiguous()}, tmp_path / f"{i}.safetensors")
    files = [open_noise(tmp_path / f"{i}.safetensors") for i in range(3)]
    beside = [([1], flux.rollout(UNEQUAL[1:], group_size=1, plan=KEPT, seed=SEED))]
    how = {"plan": KEPT, "seed": SEED, "drawn": beside}
    found = flux.given(UNEQUAL, [shown[:2], shown[2:3]], noise=[files[:2], files[2:]], **how)
    kept = found.replay.initial[0]
    own = beside[0][1].replay.initial[0]
    assert torch.equal(kept[:3], noise[:3]) and torch.equal(kept[3:], own) and torch.equal(own, noise[2:3])
    (third, _) = fields(flux, found, [2])
    assert gap(third.x, (1 - third.level) * found.replay.clean[0][2:3] + third.level * noise[2:3]) <= 1e-6
    with pytest.raises(PolicyError, match="got noise of shape .* for 3 samples, where this pipeline has 4"):
        flux.given(UNEQUAL, [shown[:2], shown[2:3]], noise=[files[:2], []], **{**how, "drawn": beside})


def test_what_is_no_noise_of_a_sample_is_one_line(flux: FamilyPolicy, tmp_path: Path) -> None:
    drawn = flux.rollout(UNEQUAL, group_size=1, plan=KEPT, seed=SEED)
    shown, small = list(pictures(drawn)), torch.zeros(3, 4)
    with pytest.raises(PolicyError, match=r"got noise of shape \[3, 4\] for 2 samples, where this pipeline has 2 of"):
        flux.given(UNEQUAL, [shown[:1], shown[1:]], plan=KEPT, seed=SEED, noise=[[small], [small]])
    with pytest.raises(PolicyError, match=r"got noise of shapes \[3, 4\], \[5\]: give samples of one size"):
        flux.given(UNEQUAL, [shown[:1], shown[1:]], plan=KEPT, seed=SEED, noise=[[small], [torch.zeros(5)]])
    (tmp_path / "text.safetensors").write_text("none")
    save_file({"other": small}, tmp_path / "other.safetensors")
    for name in ("text", "other", "absent"):
        with pytest.raises(PolicyError, match=rf"{name}.safetensors: holds no tensor `noise`"):
            open_noise(tmp_path / f"{name}.safetensors")
    without = flux.rollout(UNEQUAL, group_size=1, plan=replace(KEPT, keep_noise=False), seed=SEED)
    with pytest.raises(PolicyError, match="set objective.loss.own_noise=false"):
        fields(flux, without, [0])


@pytest.mark.parametrize("name", ["flux_img2img", "sd15"])  # of four steps the first of sd15 is at level 0.98
def test_a_walk_that_begins_below_noise_keeps_none(name: str) -> None:
    policy = FamilyPolicy(name)
    rollout = policy.rollout(PROMPTS[:1], group_size=1, plan=replace(KEPT, levels=(0.3,)), seed=SEED)
    assert noise_of(rollout) is None
