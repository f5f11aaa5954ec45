"""Numbers of a recipe that change as a run goes: their values, their way through a file, and what is refused."""

from pathlib import Path

import pytest

from flowrl.recipe.changes import changes
from flowrl.recipe.curves import Curve
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import dump, load

CURVES = [
    "objective.kl={0: 0, 50: 0.04, 60: 0.01}",
    "objective.clip={10: [1.0e-4, 2.0e-4], 30: [3.0e-4, 2.0e-4]}",
    "train.lr={by: updates, points: {0: 1.0e-4, 8: 3.0e-4}}",
    "train.updates=2",
]


def test_a_curve_is_linear_between_its_points_and_flat_outside():
    curve = Curve(((10, 1.0), (20, 3.0), (24, 2.0)))
    counts = (0, 10, 15, 20, 22, 24, 1000)
    assert [curve.at(count, 0) for count in counts] == [1.0, 1.0, 2.0, 3.0, 2.5, 2.0, 2.0]
    by_updates = Curve(curve.points, "updates")
    assert by_updates.at(0, 22) == 2.5 and by_updates.at(22, 0) == 1.0


def test_a_recipe_at_an_iteration_has_constants():
    recipe = load("tiny_flow_grpo", CURVES)
    assert (recipe.objective.kl, recipe.train.lr) == (0.0, 1e-4)  # those of the beginning
    third = recipe.at(25)
    assert not third.curves and third.objective.kl == pytest.approx(0.02)
    assert third.objective.clip_range == pytest.approx((2.5e-4, 2e-4))
    assert third.train.lr == 3e-4 and recipe.at(25, 4).train.lr == pytest.approx(2e-4)
    assert third.sampler is recipe.sampler and third.rewards == recipe.rewards
    assert recipe.at(2).train.lr == pytest.approx(2e-4)  # after four updates
    plain = load("tiny_flow_grpo")
    assert plain.at(25) is plain and plain.stages() == [plain]


def test_numbers_of_an_own_objective_follow_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "curved_gate.py").write_text(
        "import torch\n"
        "def gate(seen, batch, *, slope: float = 1.0, times: int = 1):\n"
        "    return -torch.sigmoid(slope * (seen.logp - batch.rollout_logp)) * batch.adv\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "objective={kind: curved_gate.gate, slope: {0: 1, 10: 3}}"
    recipe = load("tiny_flow_grpo", [own])
    assert [recipe.at(i).objective.args["slope"] for i in (0, 5, 99)] == [1.0, 2.0, 3.0]
    assert recipe.curves["objective.slope"].points == ((0, 1.0), (10, 3.0)) and "10: 3.0" in dump(recipe)
    with pytest.raises(RecipeError, match="objective.times: got 1.0, accepted: a whole number"):
        load("tiny_flow_grpo", [own, "objective.times={0: 1, 10: 3}"])


def test_a_curve_comes_back_from_a_file(tmp_path: Path):
    recipe = load("tiny_flow_grpo", CURVES)
    file = tmp_path / "again.yaml"
    file.write_text(dump(recipe))
    again = load(str(file))
    assert again == recipe and again.curves == recipe.curves and again != load("tiny_flow_grpo", CURVES[:3])
    assert load(str(file), ["objective.kl.50=0.03"]).at(50).objective.kl == 0.03


@pytest.mark.parametrize(
    ("override", "place", "told"),
    [
        ("objective.kl={0: 0, 50: -1}", "objective.kl.50", "got -1, accepted: a number >= 0"),
        ("objective.kl={0: 0, 5: .nan}", "objective.kl.5", "accepted: a number >= 0"),
        ("objective.kl={5: 0, 2: 0.1}", "objective.kl", "a point at 2 after one at 5"),
        ("objective.kl={0: 0.1}", "objective.kl", "at least two points"),
        ("objective.kl={0: 0, a: 1}", "objective.kl", "a point at 'a'"),
        ("objective.kl={by: epochs, points: {0: 1, 1: 2}}", "objective.kl", "{by: updates, points: "),
        ("objective.kl={by: updates, points: {0: 1, 1: 2}, x: 1}", "objective.kl", "{by: updates, points: "),
        ("objective.kl_mask={0: null, 5: 1.0e-5}", "objective.kl_mask", "got the point None"),
        ("objective.clip={0: 0.1, 5: [0.1, 0.2]}", "objective.clip", "all as numbers, or as equal lists"),
        ("objective.clip={0: 0.1, 5: 1.5}", "objective.clip", "got 1.5, accepted: a number in (0, 1)"),
        ("sampler.noise={0: 0.7, 5: 0}", "sampler.noise", "got 0, but"),
        ("train.group={0: 4, 5: 8}", "train.group", "accepted: a whole number >= 1"),
    ],
)
def test_what_no_run_could_follow_is_refused(override: str, place: str, told: str):
    with pytest.raises(RecipeError) as error:
        load("tiny_flow_grpo", [override])
    assert error.value.place == place and told in str(error.value)


def test_a_recipe_is_checked_at_every_point():
    with pytest.raises(RecipeError) as error:
        load("tiny_lm_grpo", ["objective.kl_kind=exact_dt", "objective.kl={0: 0, 40: 0, 50: 0.1}"])
    assert error.value.place == "objective.kl_kind" and "`generation` makes tokens" in str(error.value)


def test_a_changed_curve_is_one_change():
    before, now = load("tiny_flow_grpo"), load("tiny_flow_grpo", ["objective.kl={0: 0, 50: 0.1}"])
    assert changes(before, now) == {"objective.kl": [0.0, {0: 0.0, 50: 0.1}]}
    later = load("tiny_flow_grpo", ["objective.kl={by: updates, points: {0: 0, 50: 0.1}}"])
    assert changes(now, later) == {"objective.kl": [{0: 0.0, 50: 0.1}, {"by": "updates", "points": {0: 0.0, 50: 0.1}}]}
