"""A reward of noisy latents: what a planted rule teaches it, and the command from samples to a guided evaluation."""

import json
from pathlib import Path

import pytest
import torch

from cli_support import call
from flowrl.names import UserError
from flowrl.preferences.latent import Group, fit
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load


def planted(prompts: int, tied: bool = False) -> list[Group]:
    """Groups of three whose reward is the second feature less the fourth, the harder to see the more noise there is."""
    generator, groups = torch.Generator().manual_seed(0), []
    for i in range(prompts):
        clean = torch.randn(3, 5, generator=generator)
        for level in (0.1, 0.9):
            x = clean + 2 * level * torch.randn(3, 5, generator=generator)
            rewards = clean[:, 1] - clean[:, 3] if not tied else torch.zeros(3)
            groups.append(Group(x * torch.tensor([1, 10, 1, 10, 0.0]), rewards, level, f"picture {i}"))
    return groups


def test_it_learns_what_decides_and_tells_how_well_at_each_level() -> None:
    reward, result = fit(planted(60), steps=300)
    assert result.heldout == 72 and result.prompts == 60 and result.pairs == 216
    assert result.by_level["0-0.25"] >= 0.85 > result.by_level["0.75-1"]
    x = torch.zeros(3, 5)
    x[1, 1], x[2, 3] = 10, 10
    values = reward(x, torch.full((3,), 0.1))
    assert values[1] > values[0] + 0.1 and values[2] < values[0] - 0.1
    assert torch.equal(reward(x[2:], torch.tensor([0.1])), values[2:])


@pytest.mark.parametrize("groups", [planted(5), planted(40, tied=True)])
def test_too_few_groups_that_differ_are_refused(groups: list[Group]) -> None:
    with pytest.raises(UserError, match="at least 16 such prompts"):
        fit(groups)


def test_samples_become_a_reward_that_guides(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = ["eval.steps=3", "eval.prompts=4", "eval.batch=60", "threads=1"]
    given = ["--number", 40, "--group", 3, "--levels", 1, "--output", tmp_path / "out"]
    code, out, _ = call(capsys, monkeypatch, "train-latent-reward", "quickstart", *small, *given, columns=300)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert code == 0 and f"of {card['heldout']} held out it orders {card['accuracy']:.3f}" in out
    assert (
        card["model"] == "shapes-flux"
        and card["rewards"] == {"shapes": 1.0}
        and list(card["blocks"]) == ["transformer"]
    )
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["card.json", "latent_reward.safetensors"]
    scores = []
    for more in ([], [f"sampler.guide={{path: {tmp_path / 'out'}, weight: 30}}"]):
        file = tmp_path / f"{len(scores)}.json"
        code, out, _ = call(capsys, monkeypatch, "eval", "quickstart", *small, *more, "--output", file, columns=300)
        told = json.loads(file.read_text())
        assert code == 0 and ("guided by" in told["sampling"]) == bool(more)
        scores.append(told["scores"]["shapes"])
    assert scores[0] != scores[1]
    code, _, err = call(capsys, monkeypatch, "train-latent-reward", "quickstart", "--output", tmp_path / "out")
    assert code == 2 and "holds a reward already" in err
    code, _, err = call(capsys, monkeypatch, "train-latent-reward", "tiny_lm_grpo", "--output", tmp_path / "lm")
    assert code == 2 and "has no noisy latents" in err


def test_a_guide_that_is_no_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="a file; accepted: the folder that flowrl train-latent-reward wrote"):
        load("quickstart", [f"sampler.guide.path={tmp_path / 'file'}"])
    with pytest.raises(RecipeError, match="a number in \\(0, 1\\)"):
        load("quickstart", [f"sampler.guide={{path: {tmp_path}, below: 1}}"])
