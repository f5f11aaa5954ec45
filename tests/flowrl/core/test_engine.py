"""Drawing and scoring a group is one call, which says what it drew with and how long it took."""

from typing import Any, cast

import pytest
import torch

from flowrl.contracts import Policy, Prompt, Rollout, Samples
from flowrl.core.engine import Clock, LocalEngine, chosen_blocks


class Recorder:
    """A policy that keeps what its rollouts were asked for, and gives a sample for each prompt."""

    def rollout(self, prompts: list[Prompt], **how: Any) -> Rollout:
        self.how = how
        how["progress"](len(prompts))
        samples = Samples(prompts, torch.arange(len(prompts)), texts=[p.text for p in prompts])
        how["finished"](samples)
        return Rollout(samples, torch.zeros(len(prompts), 2), torch.ones(len(prompts), 2, dtype=torch.bool), None)


def test_a_draw_is_rolled_out_scored_and_credited():
    policy, phases, counted, early = Recorder(), [], [], []

    def score(samples: Samples) -> dict[str, torch.Tensor]:
        return {"length": torch.tensor([float(len(text)) for text in samples.texts or ()])}

    def advantage(rewards: dict[str, torch.Tensor], rollout: Rollout) -> tuple[torch.Tensor, dict[str, float]]:
        return rewards["length"] - 2.0, {"seen": float(rollout.mask.sum())}

    engine = LocalEngine(
        cast(Policy, policy), "plan", 5, 3, score, advantage, Clock(phases.append), counted.append, early.append
    )
    draw = engine.draw([Prompt("a", "x"), Prompt("b", "four")], 7)
    assert {name: policy.how[name] for name in ("plan", "seed", "group_size", "first")} == {
        "plan": "plan",
        "seed": 5,
        "group_size": 3,
        "first": 7,
    }
    assert draw.adv.tolist() == [-1.0, 2.0] and draw.metrics == {"seen": 4.0} and draw.num_prompts == 2
    assert phases == ["rollout", "score"] == list(engine.clock.seconds)
    assert counted == [2] and early == [draw.rollout.samples]
    engine.advantage = lambda rewards, rollout: (torch.zeros(2, 3), {})
    with pytest.raises(ValueError, match=r"accepted: \[2\], one a row, or \[2, 2\], one a decision"):
        engine.draw([Prompt("a", "x"), Prompt("b", "y")], 0)


def test_a_share_of_the_prompts_is_drawn_anew_and_pairs_stay_together():
    drawn = [chosen_blocks(10, 0.25, 1, f"{first}") for first in range(400)]
    assert {len(chosen) for chosen in drawn} == {2, 3} and len({tuple(sorted(c)) for c in drawn}) > 100
    assert sum(map(len, drawn)) / 4000 == pytest.approx(0.25, abs=0.02)
    assert drawn[7] == chosen_blocks(10, 0.25, 1, "7")
    paired = [chosen_blocks(7, 0.5, 2, f"{first}") for first in range(20)]
    assert all((i ^ 1) in chosen or i == 6 for chosen in paired for i in chosen) and {6} < set().union(*paired)
    assert chosen_blocks(5, 1.0, 2, "x") == set(range(5)) and chosen_blocks(5, 0.0, 2, "x") == set()
