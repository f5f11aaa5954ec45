"""Pictures from elsewhere: how they are encoded, what a look at them shows, and which pipelines are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Field, Prompt, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.arguments import open_pixels
from flowrl.policies.pipelines.encoding import encodings
from flowrl.policies.pipelines.encoding.encodings import fitted
from policies_support import PROMPTS, SEED, STEPS, FamilyPolicy, gap
from policies_support import pictures as pictures_of
from samplers.plan import Plan

PLAN = Plan(STEPS, (), (), levels=(0.7, 1))
UNEQUAL = [PROMPTS[0], Prompt("long", "a much longer text about three dogs beside a red cat")]


def handed_over(policy: FamilyPolicy, state: Tensor, prompt: Prompt) -> Tensor:
    """The code that the pipeline hands its autoencoder for a finished state."""
    seen: list[Tensor] = []
    own = policy.source.vae.decode

    def decode(code: Tensor, *args: Any, **more: Any) -> Any:
        seen.append(code)
        return own(code, *args, **more)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(policy.source.vae, "decode", decode)
        policy.decode([prompt], state, plan=PLAN, seed=SEED)
    return seen[0]


@pytest.mark.parametrize("name", ["flux", "sd3", "sd15", "qwen_image", "wan", "ltx"])
def test_the_third_sample_of_unequal_prompts_is_its_own_picture(name: str) -> None:
    policy = FamilyPolicy(name)
    drawn = policy.rollout(UNEQUAL, group_size=2, plan=PLAN, seed=SEED)
    shown = list(pictures_of(drawn))
    found = policy.given(UNEQUAL, [shown[:2], shown[2:]], plan=PLAN, seed=SEED)
    state = found.replay.clean[0]
    assert state.shape == drawn.replay.clean[0].shape and found.mask.shape == (4, 2) and found.mask.all()
    assert found.replay.levels == drawn.replay.levels and found.samples.group.tolist() == [0, 0, 1, 1]
    alone = policy.given(UNEQUAL[1:], [shown[2:3]], plan=PLAN, seed=SEED).replay.clean[0]
    assert torch.equal(state[2:3], alone) and gap(state[2:3], state[1:2]) > 1e-2
    pixels = shown[2] * 2 - 1
    vae = policy.source.vae
    with torch.no_grad():
        given = pixels.movedim(0, 1)[None] if pixels.dim() == 4 else pixels[None]
        code = vae.encode(given[:, :, None] if name == "qwen_image" else given).latent_dist.mode()
    assert gap(handed_over(policy, state[2:3], UNEQUAL[1]), code) <= 1e-5


def test_given_samples_stand_before_those_that_were_drawn() -> None:
    """Of three prompts the second comes with two pictures, so that one is drawn for it, and three for the others."""
    policy, texts = FamilyPolicy("flux"), [UNEQUAL[0], UNEQUAL[1], Prompt("third", "a cat")]
    three = policy.rollout([texts[0], texts[2]], group_size=3, plan=PLAN, seed=SEED)
    one = policy.rollout([texts[1]], group_size=1, plan=PLAN, seed=SEED)
    shown = list(pictures_of(policy.rollout(texts[:1], group_size=2, plan=PLAN, seed=SEED, first=9)))
    drawn = [([0, 2], three), ([1], one)]
    found = policy.given(texts, [[], shown, []], plan=PLAN, seed=SEED, drawn=drawn)
    clean, apart = found.replay.clean[0], three.replay.clean[0]
    assert found.step_stats["given"][:, 1].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0] and found.mask.shape == (9, 2)
    assert torch.equal(clean[:3], apart[:3]) and torch.equal(clean[6:], apart[3:])
    assert torch.equal(clean[5], one.replay.clean[0][0]) and torch.equal(found.samples.images[3:5], torch.stack(shown))
    alone = policy.given([texts[1]], [shown], plan=PLAN, seed=SEED).replay.clean[0]
    assert torch.equal(clean[3:5], alone) and found.samples.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    looks: list[Field] = []
    with torch.no_grad():
        policy.look(found, torch.tensor([5]), View("noised"), looks.append)
        assert looks[0].x.shape[0] == 1 and torch.equal(looks[0].x0[0], clean[5])


def test_a_look_at_samples_that_come_back_is_that_at_drawn_ones() -> None:
    policy = FamilyPolicy("flux")
    drawn = policy.rollout(UNEQUAL, group_size=2, plan=PLAN, seed=SEED)
    shown = list(pictures_of(drawn))
    found = policy.given(UNEQUAL, [shown[:2], shown[2:]], plan=PLAN, seed=SEED)
    found.replay.clean = drawn.replay.clean
    for rows in ([0, 1, 2, 3], [2]):
        looks: list[list[Field]] = [[], []]
        with torch.no_grad():
            for rollout, fields in zip((drawn, found), looks, strict=True):
                policy.look(rollout, torch.tensor(rows), View("noised"), fields.append)
        for a, b in zip(*looks, strict=True):
            assert a.level == b.level and torch.equal(a.x, b.x) and torch.equal(a.v, b.v)


def test_pictures_are_scaled_and_cut_in_their_middle() -> None:
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1
    assert torch.equal(fitted(wide, (3, 8, 8)), torch.ones(3, 8, 8))
    half = fitted(wide, (3, 4, 4))
    assert half.shape == (3, 4, 4) and float(half[:, :, 1:3].min()) > 0.99
    with pytest.raises(PolicyError, match="got a picture where this pipeline makes video of 5 frames"):
        fitted(wide, (5, 3, 8, 8))


def test_an_encoding_that_does_not_come_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FamilyPolicy("sd3")
    monkeypatch.setattr(encodings, "_scalings", lambda pipe: [("doubled", lambda code: 2 * code)])
    with pytest.raises(PolicyError, match=r"encoded \(as doubled, as it is\) come back at -?[0-9.]+ dB"):
        policy.given(PROMPTS[:1], [[torch.rand(3, 16, 16)]], plan=PLAN, seed=SEED)


def test_a_layout_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FamilyPolicy("flux")
    monkeypatch.setattr(encodings, "_packings", lambda pipe: [("as it is", lambda code: code)])
    with pytest.raises(PolicyError, match=r"no known encoding gives states of its shape \[16, 16\]"):
        policy.given(PROMPTS[:1], [[torch.rand(3, 16, 16)]], plan=PLAN, seed=SEED)


def test_steps_that_are_drawn_take_no_pictures() -> None:
    policy = FamilyPolicy("flux")
    with pytest.raises(PolicyError, match="choose an objective that noises samples"):
        policy.given(PROMPTS[:1], [[torch.rand(3, 16, 16)]], plan=Plan(STEPS, (0,), (0,)), seed=SEED)


def test_files_are_opened_as_pixels(tmp_path: Path) -> None:
    Image.new("RGBA", (5, 3), (255, 0, 51, 255)).save(tmp_path / "a.png")
    pixels = open_pixels(tmp_path / "a.png")
    assert pixels.shape == (3, 3, 5) and pixels[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    frames = [Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(1, 4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_pixels(tmp_path / "a.gif").shape == (3, 3, 4, 4)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(PolicyError, match=r"b\.png: cannot be opened"):
        open_pixels(tmp_path / "b.png")
