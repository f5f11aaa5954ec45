"""Courses on a common axis, and what may be said of two variants: values known in closed form."""

import math
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compare_support import planted
from flowrl.compare import collect, curves, verdict
from flowrl.compare.collect import EvaluationPoint, RunOutcome
from flowrl.compare.curves import Comparison
from flowrl.report.numerals import MeanWithError

LINE = [(0.0, 1.0), (2.0, 2.0), (6.0, 0.0)]


def done(variant: str, seed: int, marks: list[tuple[float, float]]) -> RunOutcome:
    return RunOutcome(
        variant, seed, Path(), None, None, [EvaluationPoint(i, x, None, {"fit": y}) for i, (x, y) in enumerate(marks)]
    )


def of(**values: list[float]) -> Comparison:
    return Comparison("seconds", "fit", 1.0, {name: dict(enumerate(v)) for name, v in values.items()}, [])


@pytest.mark.parametrize(
    ("x", "value"), [(0, 1.0), (0.5, 1.25), (2, 2.0), (3, 1.5), (6, 0.0), (-0.1, None), (6.1, None)]
)
def test_a_course_is_linear_between_evaluations_and_ends_with_them(x: float, value: float | None):
    assert curves.value_at(LINE, x) == (None if value is None else pytest.approx(value))
    assert curves.value_at([], x) is None


def test_a_band_reaches_as_far_as_all_seeds_do():
    found = curves.mean_curve("a", [LINE, [(0.0, 3.0), (4.0, 3.0)]], more=[2.0, 5.0])
    assert (found.points[0][0], found.points[-1][0]) == (0.0, 4.0)
    assert dict(found.points)[2.0] == MeanWithError(
        2.5, pytest.approx(0.5), 2
    )  # 2 and 3: standard deviation over root two
    assert found.points[-1][1] == MeanWithError(2.0, pytest.approx(1.0), 2)


def test_runs_are_compared_where_the_shortest_ends():
    runs = [done("a", 0, [(0, 0), (10, 1)]), done("a", 1, [(0, 0), (8, 1)]), done("b", 0, [(0, 0), (4, 1)])]
    runs += [done("b", 1, [(0, 0)]), RunOutcome("b", 2, Path(), None, "stopped", [])]  # one evaluation is no course
    found = curves.compare_reward(runs, "seconds", "fit")
    assert found is not None and found.end == 4
    assert found.values == {"a": {0: pytest.approx(0.4), 1: pytest.approx(0.5)}, "b": {0: 1.0}}
    assert found.mean("a") == MeanWithError(pytest.approx(0.45), pytest.approx(0.05), 2)
    assert curves.compare_reward(runs, "calls", "fit") is None


def test_shared_seeds_are_compared_pair_by_pair():
    found = verdict.paired_difference("a", "b", {0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.58, 2: 0.82, 3: 0.1})
    assert found is not None and found.paired and found.number == 3
    assert found.value == pytest.approx(0.1) and found.error == pytest.approx(0.02 / math.sqrt(3))
    theirs = stats.ttest_rel([0.5, 0.7, 0.9], [0.4, 0.58, 0.82])
    assert found.p_value == found.corrected == pytest.approx(theirs.pvalue) == pytest.approx(0.0131, abs=1e-4)
    assert found.significant  # 0.1 is 8.7 standard errors
    assert found.sentence() == "a is ahead of b by 0.100 ±\N{NO-BREAK SPACE}0.012 (3 shared seeds, p = 0.013)"


def test_other_seeds_are_compared_by_welch():
    a, b = {0: 1.0, 1: 1.2, 2: 1.4}, {5: 0.0, 6: 0.6}
    found = verdict.paired_difference("a", "b", a, b)
    theirs = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    assert found is not None and not found.paired and found.number == 2
    assert found.value / found.error == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.booleans(),
)
def test_nobody_is_ahead_inside_the_error_bars(x: list[float], y: list[float], shared: bool):
    found = verdict.paired_difference("a", "b", dict(enumerate(x)), dict(enumerate(y, 0 if shared else 10)))
    assert found is not None and found.significant == (found.error > 0 and found.p_value <= 0.05)
    assert not found.significant or abs(found.value) > 1.95 * found.error
    assert ("cannot be told apart" in found.sentence()) != found.significant
    ahead = "a is ahead of b" if found.value > 0 else "b is ahead of a"
    assert (ahead in found.sentence()) == found.significant


def test_one_seed_gives_no_verdict():
    assert verdict.paired_difference("a", "b", {0: 1.0}, {0: 0.0}) is None
    assert verdict.paired_difference("a", "b", {0: 1.0, 1: 1.0}, {2: 0.0}) is None
    assert verdict.headline(of(a=[1.0], b=[0.0])).startswith("With one seed per variant there is no error bar")
    assert "nothing to compare" in verdict.headline(of(a=[1.0, 2.0]))


def test_the_headline_says_what_can_be_told_and_what_not():
    level = of(a=[0.5, 0.7], b=[0.6, 0.5])
    assert verdict.headline(level) == "No pair of the 2 variants can be told apart with 2 seeds."
    ahead = of(a=[0.90, 0.92, 0.94], b=[0.10, 0.13, 0.15], c=[0.80, 0.99, 0.90])
    assert verdict.headline(ahead) == (
        "a has the highest mean and is ahead of b; it cannot be told apart from c. Of 3 pairs, 2 can be told apart."
    )
    assert [d.significant for d in verdict.differences(ahead)] == [True, True, False]


def test_p_values_are_corrected_for_all_pairs_by_holms_rule():
    assert verdict.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert verdict.holm([0.6, 0.5]) == [1.0, 1.0] and verdict.holm([]) == []
    four = verdict.differences(of(a=[0.5, 0.7, 0.9], b=[0.4, 0.58, 0.82], c=[0.45, 0.9, 0.8], d=[0.6, 0.6, 0.9]))
    assert [d.pairs for d in four] == [6] * 6 and not any(d.significant for d in four)
    (pair,) = (d for d in four if (d.first, d.second) == ("a", "b"))
    assert pair.p_value == pytest.approx(0.0131, abs=1e-4)  # alone a would be ahead of b
    assert pair.corrected == pytest.approx(6 * pair.p_value) and "p = 0.078 for 6 pairs" in pair.sentence()


def test_a_standard_error_of_0_tells_nothing():
    for a, b in (([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]), ([0.7, 0.8, 0.9], [0.4, 0.5, 0.6])):
        found = verdict.paired_difference("a", "b", dict(enumerate(a)), dict(enumerate(b)))
        assert found is not None and found.error == 0 and not found.significant
        assert "a standard error of 0 says nothing" in found.sentence()
    tiny = verdict.paired_difference("a", "b", {0: 0.0, 1: 0.0}, {2: 0.0, 3: 2.4e-93})  # squares of it are 0
    assert tiny is not None and not tiny.significant
    apart = verdict.paired_difference("a", "b", {0: 1.0, 1: 1.0}, {2: 0.0, 3: 0.0})
    assert apart is not None and not apart.significant


@pytest.mark.parametrize("seeds", [3, 5])
def test_among_seven_equal_variants_at_most_one_table_in_twenty_claims_anything(seeds: int):
    """A seed's luck is shared by all variants, and each has a spread of its own. 400 tables: the bound is 5 % and three
    standard errors of a share of that size."""
    draw, tables, claims, ahead = numpy.random.default_rng(0), 400, 0, 0
    for _ in range(tables):
        values = draw.normal(size=seeds) + draw.normal(size=(7, seeds)) * draw.uniform(0.2, 1.0, size=(7, 1))
        table = of(**{f"v{i}": row for i, row in enumerate(values.tolist())})
        claims += any(d.significant for d in verdict.differences(table))
        ahead += "is ahead" in verdict.headline(table)
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)
    assert ahead <= claims <= bound * tables


def test_a_large_true_difference_is_found_among_seven():
    draw, found = numpy.random.default_rng(1), 0
    for _ in range(50):
        values = draw.normal(size=5) + 0.2 * draw.normal(size=(7, 5))
        values[3] += 2.0
        table = of(**{f"v{i}": row for i, row in enumerate(values.tolist())})
        found += verdict.headline(table).startswith("v3 has the highest mean and is ahead of")
    assert found >= 49


def test_time_and_calls_are_what_the_iterations_before_took(tmp_path: Path):
    run = planted(tmp_path / "run", 4, {0: 0.5, 3: 0.6, 5: 0.8}, each=2.0, calls=10)
    found = collect.read_outcome("a", 4, run)
    assert [(m.iteration, m.seconds, m.calls) for m in found.points] == [(0, 0, 0), (3, 6, 54), (5, 10, 90)]
    assert found.curve("calls", "shapes") == [
        (0, pytest.approx(0.5)),
        (54, pytest.approx(0.6)),  # of 10 forwards in an iteration four have a gradient, and count three
        (90, pytest.approx(0.8)),
    ]
    assert found.median("time_rollout") == 1.0 and found.problem is None
    (run / "summary.json").unlink()
    assert collect.read_outcome("a", 4, run).problem == "stopped after iteration 5"
    assert collect.read_outcome("a", 4, run, "it broke").problem == "it broke"
    assert collect.read_outcome("a", 4, tmp_path / "none").problem == "not started"


def test_the_weighted_sum_stands_first_where_several_rewards_are_trained(tmp_path: Path):
    run = planted(tmp_path / "run", 0, {0: 0.5, 2: 0.6}, changes=["rewards.strict.weight=2.0"])
    found = collect.read_outcome("a", 0, run)
    assert list(found.points[1].rewards) == ["total", "shapes", "strict"]
    assert found.points[1].rewards["total"] == pytest.approx(0.6 + 2 * 0.5)


def test_a_run_that_did_not_count_its_calls_is_compared_over_time_alone(tmp_path: Path):
    run = planted(tmp_path / "run", 0, {0: 0.5, 2: 0.6})
    file = run / "metrics.jsonl"
    file.write_text(file.read_text().replace("forwards/", "unknown/"))
    found = [collect.read_outcome("a", 0, run)]
    assert curves.compare_reward(found, "calls", "shapes") is None
    assert curves.compare_reward(found, "seconds", "shapes") is not None
