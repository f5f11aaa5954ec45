"""Rises of the trained reward by pairs of samples of equal prompt and noise: how they are taken, what they change."""

import json
import math
from pathlib import Path

import pytest
import torch

from flowrl.contracts import Prompt
from flowrl.core.evaluation import Evaluation
from flowrl.runs.folder import RunFolder
from flowrl.runs.heldout import paired_rises
from flowrl.watch.hacking import LIMIT, HeldoutMean, TrainedReward, evidence
from flowrl.watch.watchdog import Watchdog, WatchSettings

PULLED = json.loads((Path(__file__).parents[2] / "data" / "pulled_evaluations.json").read_text())  # of whole runs
RUNG = {  # by iteration: what rang, and where it went back to
    "tiny_refl at lr 2e-3, seed 0": {20: ("hacking", "rollback", 0)},
    "tiny_refl, seed 0": {10: ("hacking", "rollback", 0)},
    "tiny_refl, seed 1": {10: ("hacking", "rollback", 0), 15: ("hacking", "rollback", 0)},  # the second of strict
    "tiny_refl, seed 2": {15: ("hacking", "rollback", 0)},
}
BASE = {"r/mean": 0.5, "r/error": 0.03} | {f"{w}/{n}": v for w in "wv" for n, v in (("mean", 0.4), ("error", 0.03))}
BOTH = math.hypot(0.03, 0.03)


def make(*witnesses: str, trained: str = "r", on_hack: str | None = None) -> Watchdog:
    weights = {trained: 1.0} | dict.fromkeys(witnesses, 0.0)
    return Watchdog(weights, WatchSettings(on_hack=on_hack), updates_per_rollout=1, clip=(1e-3, 1e-3))


def test_a_rise_is_measured_in_errors_of_pairs_where_these_are_known():
    reward = TrainedReward(0.6, 0.03, {7: HeldoutMean(0.09, 0.01), 9: HeldoutMean(-0.03, 0.01)})
    then = HeldoutMean(0.5, 0.04)
    assert [reward.since(i, then) for i in (7, 8, 9)] == pytest.approx([4.5, 1.0, -1.5])


def scored(first: float, *, number: int = 24, total: bool = False, name: str = "r") -> Evaluation:
    """An evaluation whose r is 0, 1, 2 ... and w 1 throughout, but for prompt 2; it could not score prompt 4."""
    values = torch.arange(float(number))
    values[2], values[4] = first, math.nan
    prompts = [Prompt(f"{name}{i}", "") for i in range(number)]
    scores = {"r": values, "w": torch.ones(number).scatter(0, torch.tensor(2), first)}
    return Evaluation(prompts, scores, None, total=values / 4 if total else None)


def test_rises_of_pairs_are_differences_prompt_by_prompt():
    now = scored(21.0)
    (rise,) = paired_rises(now, {3: scored(2.0)}, {"r": 2.0, "w": 0.0}).items()
    mean = 2 * 19 / 23  # of 23 pairs, one of which rose
    error = math.sqrt(((38 - mean) ** 2 + 22 * mean**2) / 22 / 23)
    assert rise[0] == 3 and tuple(rise[1]) == pytest.approx((mean, error))
    both = paired_rises(now, {3: scored(2.0)}, {"r": 2.0, "w": 1.0, "unscored": 1.0})
    assert both[3].value == pytest.approx(57 / 23)
    (total,) = paired_rises(scored(21.0, total=True), {3: scored(2.0, total=True)}, {"r": 2.0}).values()
    assert total.value == pytest.approx(19 / 4 / 23)


def test_what_makes_no_pairs_is_left_out():
    now, kept = scored(21.0), scored(2.0)
    others = {3: scored(21.0), 5: scored(2.0, name="other"), 8: scored(2.0, number=23), 9: kept}  # equal, and others
    assert list(paired_rises(now, others, {"r": 1.0})) == [9]
    assert paired_rises(scored(9.0, number=20), {1: scored(2.0, number=20)}, {"r": 1.0}) == {}  # 19 pairs
    assert paired_rises(now, {1: kept}, {"w": 0.0}) == {}


def test_an_evaluation_read_from_a_run_makes_the_same_pairs(tmp_path: Path):
    folder, first, now = RunFolder(tmp_path / "run"), scored(2.0), scored(21.0)
    thirds = Evaluation(first.prompts, {"r": first.scores["r"] / 3}, None)
    folder.rewind({}, 0, ())
    folder.evaluated(10, "x", thirds)
    lines: list[str] = []
    read = folder.earlier([10, 20], lines.append)
    assert paired_rises(now, read, {"r": 0.7}) == paired_rises(now, {10: thirds}, {"r": 0.7})
    assert list(read) == [10] and "00020.json" in lines[0]
    folder.close()


def test_pairs_make_a_rise_sure_and_leave_the_size_of_a_fall():
    watch = make("w", "v")
    watch.after_evaluation(0, BASE)
    watch.after_evaluation(5, BASE | {"v/mean": 0.5})
    last = BASE | {"r/mean": 0.55, "w/mean": 0.4 - 1.5 * 3 * BOTH, "v/mean": 0.5 - 1.2 * 3 * BOTH}
    combined = watch.hack_metrics(last)
    since_base = watch.hack_metrics(last, {0: HeldoutMean(0.05, 0.01)})  # for the fall of w, not for that of v
    assert combined["hack_index"] < 0.25 < LIMIT < since_base["hack_index"]
    assert (since_base["hack/reward_rise"], since_base["hack/witness_fall"]) == pytest.approx((2.5, 1.5))
    v = min(evidence(0.05 / 2 / BOTH), evidence(1.2))
    assert since_base["hack_index"] == pytest.approx(1 - (1 - evidence(1.5)) * (1 - v))
    since_both = watch.hack_metrics(last, dict.fromkeys((0, 5), HeldoutMean(0.05, 0.01)))
    assert since_both["hack_index"] == pytest.approx(1 - (1 - evidence(1.5)) * (1 - evidence(1.2)))
    (alarm, other) = watch.after_evaluation(10, last, dict.fromkeys((0, 5), HeldoutMean(0.05, 0.01)))
    assert (alarm.since, other.since) == (0, 5) and watch.after_evaluation(15, last) == []


@pytest.mark.parametrize("name", PULLED)
def test_real_runs_on_the_gradient_of_a_clip_ring_where_pictures_get_worse(name: str):
    """tiny_refl, whose residual falls far, rings; tiny_draft, whose other witnesses rise, does not."""
    witnesses = ("shapes", "strict", "residual")
    watch, alone = make(*witnesses, trained="clip", on_hack="rollback"), make(*witnesses, trained="clip")
    rung, indices = {}, []
    for line in PULLED[name]:
        given = line["metrics"], {int(since): HeldoutMean(*rise) for since, rise in line["rises"].items()}
        indices.append(watch.hack_metrics(*given)["hack_index"])
        for alarm in watch.after_evaluation(line["iteration"], *given):
            rung[line["iteration"]] = (alarm.name, alarm.action, alarm.to)
            assert "held-out witness" in alarm.what and indices[-1] > 0.6
        assert alone.after_evaluation(line["iteration"], line["metrics"]) == []  # without pairs, none is found
    assert rung == RUNG.get(name, {})
    assert rung or 0 < max(indices) < 0.3


LOST = BASE | {"r/mean": 0.51, "w/mean": 0.4 - 1.5 * 3 * BOTH}  # the reward is where it began, or nearly


def test_a_reward_that_has_come_down_again_does_not_acquit():
    watch, honest = make("w"), make("w")
    for each in (watch, honest):
        each.after_evaluation(0, BASE)
    risen = BASE | {"r/mean": 0.56}
    watch.after_evaluation(5, risen, {0: HeldoutMean(0.06, 0.02)})  # by 1.5 limits
    honest.after_evaluation(5, risen, {0: HeldoutMean(0.06, 0.04)})  # perhaps not at all
    now = {0: HeldoutMean(0.01, 0.02)}
    assert watch.hack_metrics(LOST, now)["hack_index"] == pytest.approx(evidence(1.5), abs=0.01)
    assert watch.hack_metrics(LOST, now)["hack/witness_lost"] == pytest.approx(1.5)
    assert honest.hack_metrics(LOST, now)["hack_index"] < 0.01
    for other in (LOST | {"w/mean": 0.4 - 0.9 * 3 * BOTH}, LOST | {"r/mean": 0.49}):  # no fall, or a run that failed
        fallen = {0: HeldoutMean(other["r/mean"] - 0.5, 0.02)}
        assert watch.hack_metrics(other, fallen)["hack_index"] < 0.01
    (alarm,) = watch.after_evaluation(10, LOST, now)
    assert alarm.what == (
        "held-out witness w 0.4 -> 0.209 while the trained reward rose 0.5 -> 0.56 (at iteration 5; now 0.51)"
    )
    assert honest.after_evaluation(10, LOST, now) == []


def test_where_the_reward_was_highest_is_remembered_by_a_resumed_run():
    watch = make("w")
    watch.after_evaluation(0, BASE)
    watch.after_evaluation(5, BASE | {"r/mean": 0.56}, {0: HeldoutMean(0.06, 0.02)})
    again = make("w")
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert [a.name for a in again.after_evaluation(10, LOST, {0: HeldoutMean(0.01, 0.02)})] == ["hacking"]
