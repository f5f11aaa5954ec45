"""`flowrl check` of a recipe that draws by merged weights: the gap is shown, and one that is too large is named."""

import pytest

from flowrl.checking.check import check
from flowrl.checking.proofs import bench as bench_module
from flowrl.checking.proofs import common
from flowrl.checking.proofs.proof import ProofResult
from flowrl.recipe.load import load

FEW = ["sampler.steps=3", "sampler.window={kind: first, size: 2}", "eval.steps=2", "train.prompts=2", "train.group=4"]


def result(*overrides: str) -> ProofResult:
    recipe = load("tiny_flow_grpo", [*FEW, "train.updates=1", "rollout.merge=true", *overrides])
    return next(f for f in check(recipe, rows=8) if isinstance(f, ProofResult) and f.title == common.MOVED.title)


def test_merged_weights_draw_what_trains_and_a_gap_is_named(monkeypatch: pytest.MonkeyPatch):
    held = result()
    assert held.held is True and "a tenth of the clip range is" in held.measured
    own = bench_module.build_policy

    def build(recipe):
        policy = own(recipe)
        for layer in (m for m in policy.modules["transformer"].modules() if hasattr(m, "get_delta_weight")):
            layer.get_delta_weight = lambda name, delta=layer.get_delta_weight: 3 * delta(name)  # 0 until it moved
        return policy

    monkeypatch.setattr(bench_module, "build_policy", build)
    planted = result()
    assert planted.held is False and "|log ratio| up to" in planted.measured and "rollout.merge=false" in planted.remedy
