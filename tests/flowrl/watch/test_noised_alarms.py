"""The watch on losses of noised samples: courses that a run took, and made ones in which one number goes wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowrl.watch.alarms import Alarm
from flowrl.watch.watchdog import Watchdog, WatchSettings

COURSES = json.loads((Path(__file__).parents[2] / "data" / "noised_metrics.json").read_text())
REWARD = "reward/total/mean"
RISING = [0.60 + 0.004 * i + 0.02 * (-1) ** i for i in range(30)]


def ring(on_alarm: str = "warn", **courses: Sequence[float]) -> list[Alarm]:
    """The alarms of a run of four updates an iteration whose metrics take these courses (reward: the trained one's)."""
    settings = WatchSettings(on_alarm=on_alarm)
    watch = Watchdog({"r": 1.0}, settings, updates_per_rollout=4, clip=(1e-3, 1e-3))
    courses = {REWARD if name == "reward" else name: course for name, course in courses.items()}
    iterations = [dict(zip(courses, values, strict=True)) for values in zip(*courses.values(), strict=True)]
    return [alarm for i, metrics in enumerate(iterations, 1) for alarm in watch.after_iteration(i, metrics)]


def test_a_real_healthy_run_of_nft_rings_nothing():
    assert len(COURSES["nft"][REWARD]) == 40 and ring(**COURSES["nft"]) == []


def test_a_real_collapse_is_announced_before_the_reward_falls():
    """The reward falls from iteration 16 on, .77 to .59 and .47."""
    alarms = ring("rollback", **COURSES["awm"])
    assert [(a.iteration, a.name, a.action) for a in alarms if a.iteration < 16] == [
        (15, "old_distance", "rollback"),
        (15, "gradient", "warn"),
    ]
    assert [(a.iteration, a.action) for a in alarms if a.name == "gradient"] == [(15, "warn"), (18, "rollback")]


def test_a_real_displacement_rings():
    alarms = ring(**COURSES["flow_dpo"])
    assert [(a.name, a.action) for a in alarms] == [("displacement", "warn")] and alarms[0].iteration <= 25


def test_a_gradient_norm_warns_as_it_grows_and_counts_once_the_reward_falls():
    norm = [0.02] * 14 + [0.02 * 1.2**k for k in range(1, 17)]
    reward = RISING[:23] + [0.6, 0.58, 0.57, 0.55, 0.5, 0.45, 0.4]
    first, second = ring("rollback", grad_norm=norm, reward=reward)
    assert (first.name, first.action) == ("gradient", "warn") and "times its running median" in first.what
    assert first.iteration < 24 <= second.iteration and (second.name, second.action) == ("gradient", "rollback")
    assert "while the reward fell 0.6" in second.what
    (alone,) = ring("rollback", grad_norm=norm, reward=RISING)
    assert alone.action == "warn"


def test_a_reward_that_falls_after_the_norm_has_grown():
    norm = [0.02] * 14 + [0.1] * 16
    reward = [*RISING[:21], 0.5, 0.5, 0.5, 0.5, 0.5, *[0.5] * 4]
    assert [a.iteration for a in ring(grad_norm=norm, reward=reward)] == [16, 24]
    assert ring(grad_norm=[0.02] * 30, reward=reward) == []  # a fall alone is the matter of `collapse`
    late = [*RISING[:27], 0.5, 0.5, 0.5]
    assert [a.iteration for a in ring(grad_norm=norm, reward=late)] == [16]  # quiet by then


def test_a_norm_that_grows_slowly_or_once_is_healthy():
    assert ring(grad_norm=[0.003 * 1.05**i for i in range(30)], reward=RISING) == []
    assert ring(grad_norm=[0.02] * 20 + [1.0] + [0.02] * 9, reward=RISING) == []


def test_the_distance_to_older_weights_against_its_running_median():
    calm = [1e-4 * (1 + i % 3) for i in range(25)]
    (alarm,) = ring("rollback", old_distance=[*calm, 3e-3, 3e-3])
    assert (alarm.name, alarm.iteration, alarm.action) == ("old_distance", 27, "rollback")
    assert ring(old_distance=[*calm, 1.5e-3, 1.5e-3, 1.5e-3]) == []  # watch.kl times, as for kl
    assert ring(old_distance=[0.0] * 25) == [] and ring(old_distance=[*calm, 3e-3, 1e-4]) == []


def test_pairs_that_stay_at_chance():
    coin, around = [0.5 + 0.1 * (-1) ** i for i in range(1, 26)], [0.02 * (-1) ** i for i in range(1, 26)]
    (alarm,) = ring("rollback", implicit_accuracy=coin, margin=around)
    assert (alarm.name, alarm.iteration, alarm.since, alarm.action) == ("chance", 21, 9, "stop")
    assert ring(implicit_accuracy=[0.45] * 25, margin=[0.1] * 25) == []  # a quarter of the updates are ties
    assert ring(implicit_accuracy=[0.0] * 25, margin=[0.0] * 25) == []  # nothing but ties
    assert ring(implicit_accuracy=[a + 0.12 for a in coin], margin=around) == []
    assert ring(implicit_accuracy=coin[:19], margin=around[:19]) == []


@pytest.mark.parametrize(("rise", "rings"), [(0.045, True), (0.02, False), (-0.3, False)])
def test_better_samples_whose_error_rises(rise: float, rings: bool):
    """The error itself moves by more than that with the levels drawn."""
    levels = [0.4 + 0.05 * (7 * i % 9) for i in range(40)]
    rises = [rise * min(i / 20, 1) for i in range(40)]
    errors = [level + r for level, r in zip(levels, rises, strict=True)]
    alarms = ring(winner_error=errors, winner_rise=rises)
    assert [a.name for a in alarms] == ["displacement"] * rings
    assert all(a.iteration > 20 for a in alarms)
