"""Centred ratios, weighted steps and selected rows on the steps of a real pipeline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli_support import quiet
from flowrl.build import build_objective, build_policy
from flowrl.contracts import LogProbs, Prompt, View
from flowrl.core.backward import StepLoss, backward, with_step_weights
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.planning.costs import plan_for
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.recipe.load import load
from flowrl.runs.start import run
from policies_support import shake

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
SMALL = ["train.prompts=2", "train.group=4", "eval.at_start=false", "eval.at_end=false", "eval.every=null"]
SMALL += ["sampler.window={kind: all}", "rewards.shapes={use: jpeg_compressibility}"]
GUARD = ["objective={preset: guard, clip: 2.0e-6}"]


class Fixed:
    """A policy after a small move, and what it drew before it: eight rows of five steps."""

    def __init__(self) -> None:
        recipe = load(BASE, [*SMALL, *GUARD])
        self.objective = build_objective(recipe)
        self.policy = build_policy(recipe)
        assert isinstance(self.policy, PipelinePolicy)
        prompts = [Prompt(text, text) for text in ("a red circle", "two blue squares")]
        self.rollout = self.policy.rollout(prompts, group_size=4, plan=plan_for(recipe, 0), seed=0)
        self.adv = torch.linspace(-1.0, 1.0, 8)
        self.before = self.scores()
        shake(self.policy.modules, 0.01)

    def scores(self) -> dict[str, Tensor]:
        """logp and centred, [R, K]."""
        found = {name: torch.zeros_like(self.rollout.rollout_logp) for name in ("logp", "centred")}

        def visit(score: LogProbs) -> None:
            for name, values in found.items():
                values[score.rows[:, None], score.columns[None]] = getattr(score, name).detach()

        with torch.no_grad():
            self.policy.look(self.rollout, torch.arange(8), View(centred=True), visit)
        return found

    def gradient(self, objective: ClippedObjective, micro: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
        mask, rows = self.rollout.mask, torch.arange(8)
        adv = with_step_weights(self.adv, objective, self.rollout, rows)
        loss = StepLoss(self.rollout, adv, objective, objective.weights(mask), weights(mask))
        for part in rows.split(micro):
            backward(self.policy, part, loss)
        parameters = list(self.policy.trainable())
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return found, loss.total


@pytest.fixture(scope="module")
def fixed() -> Fixed:
    return Fixed()


def test_nothing_has_moved_at_first(fixed: Fixed):
    assert torch.equal(fixed.before["centred"], torch.zeros(8, 5))
    torch.testing.assert_close(fixed.before["logp"], fixed.rollout.rollout_logp, rtol=0, atol=1e-6)


def test_the_two_log_ratios_differ_by_the_divergence_of_every_step(fixed: Fixed):
    """centred - (logp - rollout_logp) = KL >= 0, and step_stats say the std that makes log-ratios alike."""
    after = fixed.scores()
    kl = after["centred"] - (after["logp"] - fixed.rollout.rollout_logp)
    assert (kl > -1e-6).all() and kl.max() > 1e-5
    std, dt = fixed.rollout.step_stats["std"], fixed.rollout.step_stats["dt"]
    assert (dt < 0).all() and float(-dt[0].sum()) < 1.0
    spread = (after["centred"] * std).square().mean(0).sqrt()
    plain = after["centred"].square().mean(0).sqrt()
    assert spread.max() / spread.min() < plain.max() / plain.min()


def test_guard_is_its_formula(fixed: Fixed):
    """Sum over decisions of max(-A r, -A clip r) / |dt|, by their number, with r = exp(centred std)."""
    r = (fixed.scores()["centred"].double() * fixed.rollout.step_stats["std"]).exp()
    a = fixed.adv[:, None].double()
    wanted = torch.maximum(-a * r, -a * r.clamp(1 - 2e-6, 1 + 2e-6)) / fixed.rollout.step_stats["dt"].abs()
    grad, metrics = fixed.gradient(fixed.objective)
    assert float(metrics["loss"]) == pytest.approx(float(wanted.mean()), abs=3e-7)  # of numbers near 5 that cancel
    assert 0 < metrics["clip_frac"] < 1 and grad.norm() > 0


@pytest.mark.parametrize("more", [{}, {"level": "seq_mean"}, {"kl_mask": 1e-5}, {"weight": "noise", "ratio": "plain"}])
def test_micro_batches_change_nothing(more: dict, fixed: Fixed):
    objective = replace(fixed.objective, **more)
    whole, metrics = fixed.gradient(objective)
    parts, found = fixed.gradient(objective, micro=3)
    assert (parts - whole).norm() < 1e-4 * whole.norm()
    for name in ("loss", "ratio", "clip_frac"):
        assert float(found[name]) == pytest.approx(float(metrics[name]), rel=1e-4, abs=1e-6)


def test_a_rollout_without_means_is_refused(fixed: Fixed):
    keeps, fixed.policy.keep_means = fixed.policy.keep_means, False
    rollout = fixed.policy.rollout(
        [Prompt("a", "a red circle")], group_size=2, plan=plan_for(load(BASE, SMALL), 0), seed=0
    )
    fixed.policy.keep_means = keeps
    with pytest.raises(ValueError, match="kept no means"):
        fixed.policy.look(rollout, torch.arange(2), View(centred=True), lambda seen: None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective={preset: tempflow, clip: 1.0e-4}", "sampler.tree={kind: per_step}", "train.keep=2"],
        ["objective={preset: branch, weight: noise}", "sampler.tree={kind: branch, splits: [0, 2]}", "train.keep=2"],
        [*GUARD, "train.refill=1", "train.keep=2"],
        ["objective={kl_mask: 1.0e-5, kl: 0.01, kl_kind: exact_dt}", "train.keep=2"],
    ],
    ids=["tempflow", "branch", "guard refilled", "dppo"],
)
def test_runs(overrides: list[str], tmp_path: Path):
    more = [
        "sampler.steps=4",
        f"output={tmp_path / 'run'}",
        *SMALL,
        "train.iterations=1",
        "train.updates=2",
        "train.micro_batch=3",
    ]
    run(load(BASE, [*more, *overrides]), quiet())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    keeps = any("keep" in override for override in overrides)
    for metrics in lines:
        assert metrics["replay_gap_max"] < 1e-6 and metrics["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0
        assert (metrics["active_rows"] < 1) == keeps
