"""The watch on numbers: healthy series stay quiet, an alarm rings once, and a resume goes on bit for bit."""

import json
import math
import random
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.build import build_watch
from flowrl.recipe.keys.watching import Watch as Section
from flowrl.recipe.load import load
from flowrl.watch.alarms import ACTIONS, ALARMS, Alarm
from flowrl.watch.rules import REPLAY_LIMITS
from flowrl.watch.watchdog import Watchdog, WatchSettings

QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart_metrics.jsonl"
HEALTHY = {
    "reward/r/mean": 0.5,
    "reward/r/nan": 0.0,
    "reward/total/mean": 0.5,
    "reward/total/nan": 0.0,
    "groups/zero_variance": 0.1,
    "adv/abs_mean": 0.8,
    "outside_frac": 0.1,
    "approx_kl": 1e-6,
    "kl": 1e-3,
    "grad_norm": 0.01,
    "old_distance": 1e-4,
    "implicit_accuracy": 0.6,
    "margin": 0.1,
    "winner_error": 0.6,
    "winner_rise": -0.01,
    "loss": 1e-5,
    "nonfinite_updates": 0.0,
    "empty_updates": 0,
    "replay_gap_max": 0.0,
    "samples/saturation": 0.3,
    "samples/brightness": 0.5,
    "samples/contrast": 0.2,
    "samples/sharpness": 0.15,
    "samples/clipped": 0.02,
    "samples/diversity": 0.2,
    "samples/length": 200.0,
    "samples/repetition": 0.1,
    "samples/distinct": 1.0,
}
HELDOUT = {"r/mean": 0.5, "r/error": 0.02, "w/mean": 0.4, "w/error": 0.02, "samples/saturation": 0.3}


def make(updates: int = 2, clip: tuple[float, float] = (1e-3, 1e-3), steady: bool = True, **chosen: object) -> Watchdog:
    return Watchdog(
        {"r": 1.0, "w": 0.0}, WatchSettings(**chosen), updates_per_rollout=updates, clip=clip, steady=steady
    )


def train(watch: Watchdog, count: int, start: int = 1, **changed: float) -> list[Alarm]:
    """Alarms of so many iterations with the healthy numbers and these changes (a / in a name is written __)."""
    metrics = HEALTHY | {name.replace("__", "/"): value for name, value in changed.items()}
    return [alarm for i in range(start, start + count) for alarm in watch.after_iteration(i, metrics)]


def heldout(watch: Watchdog, iteration: int, **changed: float) -> list[Alarm]:
    return watch.after_evaluation(iteration, HELDOUT | {name.replace("__", "/"): v for name, v in changed.items()})


def test_a_real_healthy_quickstart_rings_nothing():
    watch, seen = make(updates=4), {"train": 0, "heldout": 0}
    note, *lines = [json.loads(line) for line in QUICKSTART.read_text().splitlines()]
    assert note["command"] == "flowrl run tiny_flow_grpo"
    for line in lines:
        iteration, kind = line.pop("iteration"), line.pop("kind")
        feed = watch.after_iteration if kind == "train" else watch.after_evaluation
        renamed = {f"r/{n[7:]}" if n.startswith("shapes/") else f"w/{n[7:]}": v for n, v in line.items() if "/" in n}
        assert feed(iteration, line | (renamed if kind == "heldout" else {})) == []
        seen[kind] += 1
    assert seen == {"train": 80, "heldout": 3}
    assert watch.history.state.best[""]["value"] == pytest.approx(0.8171) and watch.history.state.base["value"] < 0.72


def test_every_alarm_says_what_to_do_in_one_line():
    assert len(ALARMS) == 16
    watch = make()
    (alarm,) = train(watch, 1, replay_gap_max=0.01)
    assert alarm.describe().startswith("replay (iteration 1): log-ratio 0.01 before any update")
    assert "Likely cause" in alarm.describe() and "What to try" in alarm.describe() and "\n" not in alarm.describe()
    assert set(alarm.record()) == {"name", "iteration", "since", "what", "cause", "remedy", "action"}
    assert json.loads(json.dumps(alarm.record())) == alarm.record()
    later = Alarm("kl", 9, 7, "w", "c", "r", "stop").describe()
    assert later == "kl (iteration 9, since 7): w. Likely cause: c. What to try: r. Action: stop"


def test_the_recipes_section_is_the_settings():
    own = Section().model_dump(exclude={"rules"})
    assert own | {"ignore": ()} == {f.name: f.default for f in fields(WatchSettings)}
    assert get_args(Section.model_fields["on_alarm"].annotation) == ACTIONS
    assert all(kind.strongest in ACTIONS for kind in ALARMS.values())


def test_a_recipe_says_what_is_watched():
    changes = [
        "watch={patience: 3, ignore: [silent]}",
        "train.updates=2",
        "train.epochs=2",
        "objective.clip=[1e-4,2e-4]",
    ]
    watch = build_watch(load("tiny_flow_grpo", changes))
    assert watch.settings == WatchSettings(patience=3, ignore=["silent"])
    assert watch.history.weights == {"shapes": 1.0, "strict": 0.0}
    assert (watch.history.updates, watch.history.clip, watch.history.precision) == (4, (1e-4, 2e-4), "float32")
    assert watch.history.steady and not build_watch(load("mixgrpo_flux")).history.steady
    assert build_watch(load("mixgrpo_flux")).history.precision == "bfloat16"


def test_nan_is_named_and_a_reward_that_scored_nothing_is_not():
    (alarm,) = train(make(), 1, loss=math.nan, samples__saturation=math.inf)
    assert alarm.name == "nonfinite" and "loss, samples/saturation not finite" in alarm.what
    (alarm,) = train(make(), 1, nonfinite_updates=0.25)
    assert alarm.what.startswith("25% of the updates were skipped")
    assert train(make(), 9, reward__r__mean=math.nan, reward__r__nan=1.0) == []
    assert {a.name for a in train(make(), 1, reward__r__mean=math.nan, reward__r__nan=0.9)} == {"nonfinite"}


def test_a_held_out_reward_that_scored_nothing():
    watch = make()
    (alarm,) = heldout(watch, 0, r__mean=math.nan, r__error=math.nan)
    assert alarm.name == "nonfinite"
    assert heldout(watch, 5) == [] and watch.history.state.base["iteration"] == 5


@pytest.mark.parametrize(("precision", "gap"), [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.05)])
def test_replay_is_judged_by_the_clip_and_the_precision(precision: str, gap: float):
    assert set(REPLAY_LIMITS) == {"float32", "bfloat16", "float16"}

    def rings(gap: float, clip: float) -> bool:
        watch = Watchdog({"r": 1.0}, updates_per_rollout=2, clip=(clip, 2 * clip), precision=precision)
        return bool(watch.after_iteration(1, {"replay_gap_max": gap}))

    assert rings(1.01 * gap, 0.5) and not rings(0.99 * gap, 0.5)
    assert rings(1.01e-6, 2e-6) and not rings(0.99e-6, 2e-6)  # half the clip


def test_the_clip_is_judged_without_the_first_update():
    assert {a.name for a in train(make(updates=2), 5, outside_frac=0.46)} == {"clip_all"}
    assert train(make(updates=2), 5, outside_frac=0.44) == []
    assert {a.name for a in train(make(updates=4), 5, outside_frac=0.69)} == {"clip_all"}
    assert train(make(updates=4), 5, outside_frac=0.69, empty_updates=3) == []
    assert train(make(updates=1), 99, outside_frac=0.0) == []
    assert [a.iteration for a in train(make(updates=2), 99, outside_frac=0.0)] == [50]


def test_a_streak_must_not_break():
    watch = make()
    for start in (1, 6, 11):
        assert train(watch, 4, start, adv__abs_mean=0.0) == [] and train(watch, 1, start + 4) == []
    (alarm,) = train(watch, 5, 16, adv__abs_mean=0.0)
    assert (alarm.name, alarm.since, alarm.iteration) == ("silent", 16, 20)


def test_an_alarm_rings_once_and_again_only_after_a_quiet_time():
    watch = make()
    assert len(train(watch, 40, grad_norm=0.0)) == 1
    train(watch, 4, 41)
    assert train(watch, 10, 45, grad_norm=0.0) != []  # it takes 5 to begin: quiet for 8 by then
    watch = make()
    assert len(train(watch, 5, replay_gap_max=1.0)) == 2
    assert train(watch, 4, 6) == [] and train(watch, 4, 10, replay_gap_max=1.0) == []
    assert train(watch, 5, 14) == [] and len(train(watch, 1, 19, replay_gap_max=1.0)) == 1


def test_an_alarm_rings_again_when_it_is_twice_as_bad():
    watch = make()
    heldout(watch, 0)
    falls = {10: 0.41, 20: 0.40, 30: 0.30, 40: 0.41, 45: 0.30, 50: 0.0, 60: 0.49, 70: 0.41}
    rung = {i for i, value in falls.items() if heldout(watch, i, r__mean=value)}
    assert rung == {10, 30, 50, 70}  # limit 0.085 (three standard errors): below 1, 2 and 4 of it; 60 is quiet


def test_collapse_takes_both_errors_and_a_share():
    def falls_to(value: float, error: float) -> bool:
        watch = make()
        heldout(watch, 0, r__error=error)
        return bool(heldout(watch, 10, r__mean=value, r__error=error))

    assert not falls_to(0.451, 0.0) and falls_to(0.449, 0.0)  # a tenth of the best
    assert not falls_to(0.38, 0.03) and falls_to(0.38, 0.027)  # 3 * sqrt(2) * error


def test_kl_against_its_running_median():
    for name in ("kl", "approx_kl"):
        watch = make()
        base = HEALTHY[name]
        assert train(watch, 25) == []
        assert train(watch, 1, 26, **{name: 50 * base}) == []  # one odd batch
        (alarm,) = train(watch, 1, 27, **{name: 11 * base})
        assert alarm.name == "kl" and alarm.what.startswith(f"{name} ")
        assert train(make(kl=20.0), 25) + train(make(kl=20.0), 3, 26, **{name: 11 * base}) == []


def test_a_warm_up_is_no_explosion():
    """A learning rate that rises for 60 iterations: approx_kl grows like its square, kl like its fourth power."""
    watch = make(clip=(0.2, 0.2))
    for i in range(1, 61):
        assert train(watch, 1, i, approx_kl=1e-7 * i**2, kl=1e-9 * i**4) == []


def test_statistics_may_move_within_their_band_and_while_the_reward_does_not_rise():
    for name, inside, outside in (
        ("saturation", 0.44, 0.48),
        ("sharpness", 0.23, 0.25),
        ("contrast", 0.14, 0.12),
        ("clipped", 0.26, 0.28),
        ("repetition", 0.34, 0.36),
        ("length", 440.0, 460.0),
    ):
        for value, names in ((inside, set()), (outside, {"hacking"})):
            for reward, expected in ((0.6, names), (0.4, set())):
                watch = make()
                assert train(watch, 5) == []
                changed = {f"samples__{name}": value, "reward__total__mean": reward}
                assert {a.name for a in train(watch, 5, 6, **changed)} == expected, (name, value, reward)


def test_a_witness_that_falls_while_the_reward_rises():
    watch = make()
    assert heldout(watch, 0) == [] and heldout(watch, 10, r__mean=0.6, w__mean=0.5) == []
    assert heldout(watch, 20, r__mean=0.6, w__mean=0.4) == []  # no rise since the witness was at its best
    (alarm,) = heldout(watch, 30, r__mean=0.7, w__mean=0.4)
    assert (alarm.name, alarm.since) == ("hacking", 10) and "witness w 0.5 -> 0.4" in alarm.what


def test_diversity_of_pictures_and_texts_where_every_iteration_draws_alike():
    for name, value in (("diversity", 0.09), ("distinct", 0.45)):
        for steady in (True, False):
            watch = make(steady=steady)
            train(watch, 5)
            rung = train(watch, 5, 6, **{f"samples__{name}": value})
            assert [a.name for a in rung] == (["diversity"] if steady else [])
    assert train(make(), 5) + train(make(diversity=0.0), 5, 6, samples__diversity=0.0) == []


def test_tools_that_the_model_stops_to_use():
    watch = make()
    train(watch, 5, talk__calls=0.4)
    assert train(watch, 5, 6, talk__calls=0.2) == []
    (rung,) = train(watch, 5, 11, talk__calls=0.05)
    assert rung.name == "calls" and "0.4 -> 0.05" in rung.what and rung.iteration == 13
    assert train(make(), 5, talk__calls=0.01) + train(make(), 9, 6, talk__calls=0.0) == []


def test_the_first_and_the_latest_iterations_are_different_ones():
    watch = make()
    train(watch, 3)
    assert [a.iteration for a in train(watch, 9, 4, samples__diversity=0.05)] == [10]


@pytest.mark.parametrize("on_alarm", ACTIONS)
def test_what_a_run_is_told_to_do(on_alarm: str):
    def action(**changed: float) -> set[tuple[str, str]]:
        watch = make(on_alarm=on_alarm)
        return {(a.name, a.action) for a in train(watch, 5, **changed)}

    assert action(adv__abs_mean=0.0) == {("silent", "warn")}
    assert action(grad_norm=0.0) == {("no_gradient", "stop" if on_alarm == "rollback" else on_alarm)}
    assert action(loss=math.nan) == {("nonfinite", "warn"), ("nonfinite", on_alarm)}
    assert action(outside_frac=0.5) == {("clip_all", on_alarm)}


def test_after_so_many_rollbacks_a_run_stops():
    watch = make(on_alarm="rollback", rollbacks=2)
    train(watch, 3)
    saved = watch.state_dict()
    for expected in ("rollback", "rollback", "stop"):
        (alarm,) = train(watch, 5, 4, outside_frac=0.5)
        assert alarm.action == expected
        watch.roll_back(saved)
    assert watch.state_dict() == saved | {"rollbacks": 3}
    again = make(on_alarm="rollback")
    again.load_state_dict(watch.state_dict())
    assert train(again, 5, 4, outside_frac=0.5)[0].action == "stop"


def test_ignored_alarms_never_ring():
    assert train(make(ignore=["silent", "replay"]), 20, adv__abs_mean=0.0, replay_gap_max=1.0) == []


numbers = st.one_of(
    st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 1e-9, 50.0, math.nan, math.inf]), st.floats(0, 1e-3)
)
TRAIN = st.fixed_dictionaries({}, optional=dict.fromkeys(HEALTHY, numbers))
EVAL = st.fixed_dictionaries(
    {name: st.one_of(st.floats(-2, 2), st.just(math.nan)) for name in ("r/mean", "w/mean", "samples/saturation")}
    | {name: st.floats(0, 0.1) for name in ("r/error", "w/error")}
).map(lambda m: m | {"samples/saturation": abs(m["samples/saturation"])})
# runs of equal iterations: what has to last, lasts now and then
EVENTS = st.lists(st.tuples(st.one_of(TRAIN.map(HEALTHY.__or__), EVAL), st.integers(1, 4)), max_size=14)


def feed(watch: Watchdog, events: list[dict[str, float]], start: int) -> list[Alarm]:
    alarms: list[Alarm] = []
    for i, metrics in enumerate(events, start):
        alarms += watch.after_evaluation(i, metrics) if "r/mean" in metrics else watch.after_iteration(i, metrics)
    return alarms


@settings(max_examples=60, deadline=None, derandomize=True)
@given(EVENTS, st.integers(0, 60), st.integers(1, 4))
def test_a_resume_at_any_point_rings_the_same(events: list[tuple[dict, int]], cut: int, patience: int):
    flat = [metrics for metrics, times in events for _ in range(times)]
    cut = min(cut, len(flat))
    whole, resumed = make(patience=patience), make(patience=patience)
    feed(whole, flat[:cut], 0)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
    assert repr(feed(resumed, flat[cut:], cut)) == repr(feed(whole, flat[cut:], cut))
    assert resumed.state_dict() == whole.state_dict()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.floats(-0.001, 0.01), st.sampled_from([1, 2, 8]))
def test_healthy_numbers_ring_nothing(seed: int, slope: float, updates: int):
    """Every metric in noise of a fifth, the reward rising, level or sinking a little, the divergence growing."""
    watch, draw = make(updates=updates), random.Random(seed)
    for i in range(60):
        metrics = {name: value * draw.uniform(0.8, 1.2) for name, value in HEALTHY.items()}
        metrics["reward/total/mean"] += slope * i
        metrics["kl"] *= i / 60
        metrics["samples/distinct"] = draw.uniform(0.8, 1.0)
        assert watch.after_iteration(i + 1, metrics) == []
        if i % 10 == 0:
            moved = {"r/mean": 0.5 + slope * i + draw.uniform(-0.01, 0.01), "w/mean": 0.4 + draw.uniform(-0.02, 0.02)}
            moved["samples/saturation"] = 0.3 * draw.uniform(0.9, 1.1)
            assert watch.after_evaluation(i, HELDOUT | moved) == []


@pytest.mark.parametrize(("clip", "limit"), [((0.2, 0.28), 0.02), ((1e-4, 1e-4), 1e-6)])
def test_who_samples_may_not_be_far_from_who_trains(clip: tuple[float, float], limit: float):
    healthy = {"mismatch/k3": limit / 2, "mismatch/ess": 0.99}
    watch = make(clip=clip)
    assert train(watch, 4, **healthy) == []
    (alarm,) = train(watch, 1, 5, **healthy | {"mismatch/k3": 3 * limit})
    assert alarm.name == "mismatch" and f"accepted: {limit:.2g}" in alarm.what and alarm.action == "warn"
    (alarm,) = train(make(clip=clip), 1, **healthy | {"mismatch/ess": 0.3})
    assert alarm.name == "mismatch" and "30%" in alarm.what
