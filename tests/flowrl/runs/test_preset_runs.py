"""Every preset trains the denoising steps of a real pipeline: ratio 1 at first, gradients of whole rows later."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli_support import quiet
from flowrl.build import build_policy
from flowrl.contracts import Prompt, View
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.planning.costs import plan_for
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.recipe.load import load
from flowrl.recipe.presets import DENOISING
from flowrl.runs.start import run
from policies_support import scores, shake

BASE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SMALL = ["train.prompts=2", "train.group=4", "eval.at_start=false", "eval.at_end=false", "eval.every=null"]
SMALL += ["rewards.shapes={use: jpeg_compressibility}"]  # never ties, as a checker's scores may


def trained(folder: Path, preset: str, *more: str) -> list[dict[str, float]]:
    """The metrics of the iterations, two where nothing else is said."""
    overrides = [f"output={folder}", f"objective.preset={preset}", *SMALL, "train.iterations=2", *more]
    run(load(str(BASE), overrides), quiet())
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


ALIKE = {"dance", "branch", "g2rpo", "cps"}  # other numbers in the places of grpo's and mixgrpo's
NOISED = {name for name, values in DENOISING.items() if "loss" in values["objective"]}  # no ratio: test_noised_runs.py


@pytest.mark.parametrize("preset", [name for name in DENOISING if name not in ALIKE | NOISED])
def test_every_preset_runs_with_ratio_one(preset: str, tmp_path: Path):
    for metrics in trained(tmp_path / "run", preset):
        assert metrics["replay_gap_max"] == 0.0 and metrics["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0


def test_silent_groups_are_drawn_anew_on_the_pipeline(tmp_path: Path):
    """Exact match, 0 or 1, often ties within two samples: rows of several rollouts are then replayed together."""
    more = ["rewards.shapes={use: shapes_strict}", "train.refill=3", "train.group=2", "train.micro_batch=3"]
    for metrics in trained(tmp_path / "run", "dapo", *more):
        assert 2 < metrics["groups/drawn"] <= 8 and 0 < metrics["groups/kept"] <= 2
        assert metrics["groups/zero_variance"] == pytest.approx(1 - metrics["groups/kept"] / metrics["groups/drawn"])
        assert metrics["replay_gap_max"] < 1e-6  # 0 at the batch shapes of the rollouts
        assert metrics["grad_norm"] > 0 and metrics["active_rows"] == 1.0


class Fixed:
    """The tests' pipeline, a rollout of eight rows of two steps, and gradients of losses on it."""

    def __init__(self) -> None:
        recipe = load(str(BASE), SMALL)
        self.policy = build_policy(recipe)
        assert isinstance(self.policy, PipelinePolicy)
        prompts = [Prompt(text, text) for text in ("a red circle", "two blue squares")]
        self.rollout = self.policy.rollout(prompts, group_size=4, plan=plan_for(recipe, 0), seed=0)
        self.adv = torch.linspace(-1.0, 1.0, 8)
        shake(self.policy.modules, 0.01)  # else the gradient of LoRA's inner factor is 0

    def gradient(self, objective: ClippedObjective, micro: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
        mask = self.rollout.mask
        loss = StepLoss(self.rollout, self.adv, objective, objective.weights(mask), weights(mask))
        for rows in torch.arange(8).split(micro):
            backward(self.policy, rows, loss)
        return self.taken(), loss.total

    def taken(self) -> Tensor:
        """The gradient that the parameters hold, which they lose."""
        parameters = list(self.policy.trainable())
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return found


@pytest.fixture(scope="module")
def fixed() -> Fixed:
    return Fixed()


GSPO = ClippedObjective(1e-4, 1.4e-4, level="seq_mean", aggregate="seq_mean_mean")


def test_the_gradient_of_a_sequence_of_steps(fixed: Fixed):
    """GSPO, eq. 10: the mean over rows of -A s times the gradient of the mean log-prob, where s is not clipped."""
    d = (scores(fixed.policy, fixed.rollout) - fixed.rollout.rollout_logp).mean(1)
    clipped = ((fixed.adv > 0) & (d.expm1() > 1.4e-4)) | ((fixed.adv < 0) & (d.expm1() < -1e-4))
    assert 0 < clipped.sum() < 8
    factor = (-fixed.adv * d.exp()).where(~clipped, 0.0) / 8 / fixed.rollout.rollout_logp.shape[1]
    fixed.policy.look(
        fixed.rollout, torch.arange(8), View(), lambda seen: (factor[seen.rows, None] * seen.logp).sum().backward()
    )
    wanted = fixed.taken()
    grad, metrics = fixed.gradient(GSPO)
    assert metrics["clip_frac"] == pytest.approx(float(clipped.float().mean()))
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-7 * float(wanted.abs().max()))
    assert (fixed.gradient(replace(GSPO, level="token"))[0] - wanted).norm() > 0.05 * wanted.norm()


@pytest.mark.parametrize("level", ["seq_mean", "seq_token", "seq_sum"])
def test_micro_batches_of_steps_change_nothing(level: str, fixed: Fixed):
    whole, metrics = fixed.gradient(replace(GSPO, level=level))
    parts, found = fixed.gradient(replace(GSPO, level=level), micro=3)
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    for name in ("loss", "ratio", "clip_frac", "abs_log_ratio_max"):
        assert float(found[name]) == pytest.approx(float(metrics[name]), rel=1e-4, abs=1e-7)
