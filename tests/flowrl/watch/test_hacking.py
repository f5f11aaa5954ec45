"""The hack index: its formula, what counts how much, which evaluation is trusted, and what an alarm makes a run do."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.evaluation import divergence
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.alarm_response import AlarmError, most_severe
from flowrl.watch.alarms import Alarm
from flowrl.watch.hacking import LIMIT, HeldoutMean, Sign, evidence, hack_index
from flowrl.watch.watchdog import Watchdog, WatchSettings

QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart_metrics.jsonl"
BASE = {"r/mean": 0.5, "r/error": 0.03, "w/mean": 0.4, "w/error": 0.03, "samples/saturation": 0.3}
BOTH = math.hypot(0.03, 0.03)


def make(weights: dict[str, float] | None = None, **chosen: Any) -> Watchdog:
    rewards = {"r": 1.0, "w": 0.0} if weights is None else weights
    return Watchdog(rewards, WatchSettings(**chosen), updates_per_rollout=1, clip=(1e-3, 1e-3))


def evaluated(watch: Watchdog, iteration: int, **changed: float) -> tuple[dict[str, float], list[Alarm]]:
    """The hack metrics and the alarms of an evaluation with these changes to the base (a / is written __)."""
    metrics = BASE | {name.replace("__", "/"): value for name, value in changed.items()}
    return watch.hack_metrics(metrics), watch.after_evaluation(iteration, metrics)


def sign(size: float, rise: float, counts: float = 1.0) -> Sign:
    return Sign("s", size, rise, "", 0, counts)


# the formula


def test_evidence_is_a_half_at_a_limit():
    assert [evidence(x) for x in (-3.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 1 / 17, 0.5, 16 / 17]
    assert evidence(math.inf) == evidence(1e300) == 1.0


def test_a_sign_takes_both_a_rise_and_its_own_size():
    assert sign(2.0, 1.0).value == sign(1.0, 2.0).value == 0.5
    assert sign(math.inf, 0.0).value == sign(0.0, math.inf).value == sign(9.0, -9.0).value == 0.0
    assert sign(2.0, 3.0).value == 16 / 17 and sign(2.0, 3.0, 0.5).value == 8 / 17


def test_signs_add_up_as_an_or():
    signs = [sign(1.0, 9.0), sign(2.0, 9.0, 0.5), sign(0.5, 1.0)]
    expected = 1 - (1 - 0.5) * (1 - 8 / 17) * (1 - 1 / 17)
    assert hack_index(signs) == pytest.approx(expected, abs=1e-12) == hack_index(signs[::-1])
    assert hack_index([]) == 0.0 and hack_index([sign(math.inf, math.inf)]) == 1.0


def test_what_counts_half_never_rings_alone():
    assert hack_index([sign(1e3, 1e3, 0.5)]) < LIMIT < hack_index([sign(1e3, 1e3, 0.5), sign(0.6, 9.0)])
    assert not sign(1e3, 1e3, 0.5).beyond_limit and sign(1.01, 1.01).beyond_limit


def test_a_difference_is_measured_in_combined_errors():
    assert HeldoutMean(0.6, 0.03).above(HeldoutMean(0.5, 0.04), 2.0) == pytest.approx(1.0)
    assert (
        HeldoutMean(0.5, 0.0).above(HeldoutMean(0.5, 0.0), 2.0) == 0.0
        and HeldoutMean(0.4, 0.0).above(HeldoutMean(0.5, 0.0), 2.0) == -1e6
    )


# the signs of an evaluation


def test_the_first_evaluation_is_the_base():
    assert evaluated(make(), 0) == ({"hack_index": 0.0, "hack/reward_rise": 0.0}, [])
    assert make().hack_metrics(BASE | {"r/mean": math.nan}) == {}


def test_the_metrics_are_in_units_of_the_limits_and_asking_changes_nothing():
    watch = make(kl_to_base=0.01)
    evaluated(watch, 0)
    before = watch.state_dict()
    found = watch.hack_metrics(BASE | {"r/mean": 0.56, "w/mean": 0.3, "samples/saturation": 0.4, "kl_to_base": 0.02})
    assert json.loads(json.dumps(watch.state_dict())) == before
    expected = {"reward_rise": 0.06 / 2 / BOTH, "witness_fall": 0.1 / 3 / BOTH, "kl": 2.0}
    expected["drift"] = math.log(0.42 / 0.32) / math.log(1.5)
    assert {k: v for k, v in found.items() if k != "hack_index"} == pytest.approx(
        {f"hack/{name}": value for name, value in expected.items()}
    )
    rise = evidence(expected["reward_rise"])
    parts = [min(rise, evidence(expected[n])) for n in ("witness_fall", "drift")] + [min(rise, 0.5 * evidence(2.0))]
    assert found["hack_index"] == pytest.approx(1 - math.prod(1 - p for p in parts), abs=1e-9)


def test_a_reward_that_does_not_rise_is_not_gamed():
    watch = make()
    evaluated(watch, 0)
    found, _ = evaluated(watch, 5, r__mean=0.5, w__mean=0.0, samples__saturation=0.9)
    assert found["hack_index"] == 0 and found["hack/witness_fall"] > 3 and found["hack/drift"] > 2


def test_weak_signs_ring_together_and_say_so():
    watch = make(kl_to_base=0.01)
    evaluated(watch, 0)
    alone, alarms = evaluated(watch, 5, r__mean=0.9, w__mean=0.4 - 0.8 * 3 * BOTH)
    assert alarms == [] and 0.2 < alone["hack_index"] < LIMIT
    found, (alarm,) = evaluated(watch, 10, r__mean=0.9, w__mean=0.4 - 0.8 * 3 * BOTH, kl_to_base=0.02)
    assert found["hack_index"] > LIMIT and (alarm.name, alarm.since) == ("hacking", 0)
    assert alarm.what.startswith(
        f"hack index {found['hack_index']:.2f}: divergence from the base 0.02; held-out witness w"
    )
    assert evaluated(make(ignore=["hacking"]), 0)[1] == []


def test_a_loss_of_diversity_is_read_from_training():
    def sizes(now: float, **chosen: Any) -> dict[str, float]:
        watch = make(patience=2, **chosen)
        evaluated(watch, 0)
        for i, value in enumerate((0.2, 0.2, now, now)):
            watch.after_iteration(i + 1, {"samples/diversity": value, "samples/distinct": 0.9})
        return watch.hack_metrics(BASE | {"r/mean": 0.9})

    found = sizes(0.1)
    assert found["hack/diversity_loss"] == pytest.approx(1.0) and found["hack_index"] == pytest.approx(0.25)
    assert sizes(0.05)["hack/diversity_loss"] == pytest.approx(2.0) and sizes(0.4)["hack/diversity_loss"] == 0
    assert sizes(0.0)["hack_index"] < LIMIT and "hack/diversity_loss" not in sizes(0.1, diversity=0.0)


def test_witnesses_that_rise_vouch_for_divergence_and_diversity():
    def suspicion(first: float, second: float) -> float:
        watch = make({"r": 1.0, "w": 0.0, "v": 0.0}, kl_to_base=0.01)
        evaluated(watch, 0, v__mean=0.4, v__error=0.03)
        found, _ = evaluated(watch, 5, r__mean=0.9, w__mean=first, v__mean=second, v__error=0.03, kl_to_base=0.02)
        return found["hack_index"]

    assert suspicion(0.4, 0.9) == pytest.approx(0.5 * evidence(2.0)) == suspicion(0.4, math.nan)
    risen = 0.4 + 2 * 2 * BOTH  # by twice the limit
    assert suspicion(0.9, risen) == pytest.approx(0.5 * (1 - evidence(2.0)) * evidence(2.0))


@pytest.mark.parametrize("sure", [False, True], ids=["combined", "pairs"])
def test_a_real_healthy_run_is_not_suspected(sure: bool):
    """sure: its rises count in full, as those of pairs at most can."""
    rises = {iteration: HeldoutMean(1.0, 1e-9) for iteration in range(81)} if sure else {}
    watch = Watchdog({"shapes": 1.0, "strict": 0.0}, updates_per_rollout=4, clip=(1e-3, 1e-3))
    found = []
    for line in [json.loads(text) for text in QUICKSTART.read_text().splitlines()][1:]:
        iteration, kind = line.pop("iteration"), line.pop("kind")
        if kind == "train":
            assert watch.after_iteration(iteration, line) == []
            continue
        found.append(watch.hack_metrics(line, rises)["hack_index"])
        assert watch.after_evaluation(iteration, line, rises) == []
    assert len(found) == 3 and max(found) < 0.1
    assert watch.trusted == 80  # where the witness was best


# which evaluation is trusted


def test_the_best_witness_is_trusted():
    watch = make()
    assert watch.trusted is None
    trusted = []
    for i, (reward, witness) in enumerate([(0.5, 0.4), (0.6, 0.5), (0.7, 0.45), (0.8, math.nan), (0.9, 0.5)]):
        evaluated(watch, i, r__mean=reward, w__mean=witness)
        trusted.append(watch.trusted)
    assert trusted == [0, 1, 1, 1, 1] and watch.has_witnesses


def test_several_witnesses_are_compared_in_their_own_errors():
    watch = make({"r": 1.0, "fine": 0.0, "coarse": 0.0})

    def of(iteration: int, fine: float, coarse: float) -> int | None:
        means = {"fine/mean": fine, "fine/error": 0.01, "coarse/mean": coarse, "coarse/error": 10.0}
        watch.after_evaluation(iteration, BASE | means)
        return watch.trusted

    assert of(0, 0.5, 100.0) == 0
    assert of(1, 0.49, 109.0) == 0  # one error down, 0.9 up
    assert of(2, 0.52, 81.0) == 2  # two up, 1.9 down


def test_without_a_witness_the_best_reward_that_is_not_suspicious_is_trusted():
    watch = make({"r": 1.0})
    trusted = []
    for i, (reward, saturation) in enumerate([(0.5, 0.3), (0.6, 0.32), (0.9, 0.9), (0.7, 0.33)]):
        evaluated(watch, i, r__mean=reward, samples__saturation=saturation)
        trusted.append(watch.trusted)
    assert trusted == [0, 1, 1, 3] and not watch.has_witnesses


def test_a_rollback_of_another_alarm_keeps_what_is_trusted_but_for_lost_weights():
    watch = make()
    evaluated(watch, 0)
    saved = watch.state_dict()
    evaluated(watch, 5, w__mean=0.45)
    evaluated(watch, 10, w__mean=0.5)
    watch.roll_back(saved, left=10)
    assert watch.trusted == 5
    watch.roll_back(saved, left=20)
    assert watch.trusted == 5 and json.loads(json.dumps(watch.state_dict())) == watch.state_dict()


# what a run is told to do


@pytest.mark.parametrize(
    ("on_alarm", "on_hack", "action", "to"),
    [
        ("warn", None, "warn", None),
        ("stop", None, "stop", None),
        ("rollback", None, "rollback", 5),
        ("rollback", "warn", "warn", None),
        ("warn", "stop", "stop", None),
        ("warn", "rollback", "rollback", 5),
    ],
)
def test_on_hack_goes_before_on_alarm(on_alarm: str, on_hack: str | None, action: str, to: int | None):
    watch = make(on_alarm=on_alarm, on_hack=on_hack, rollbacks=0)
    evaluated(watch, 0)
    evaluated(watch, 5, w__mean=0.5)
    _, (alarm,) = evaluated(watch, 10, r__mean=0.9, w__mean=0.1)
    assert (alarm.action, alarm.to, watch.hack_action) == (action, to, on_hack or on_alarm)
    assert alarm.record().get("to") == to
    assert ("to iteration 5, where the run ends" in alarm.describe()) == (to is not None)


def test_before_any_evaluation_a_rollback_is_a_stop():
    watch = make(on_hack="rollback", patience=1)
    metrics = {"reward/total/mean": 0.5, "samples/saturation": 0.3}
    watch.after_iteration(1, metrics)
    (alarm,) = watch.after_iteration(2, {"reward/total/mean": 0.9, "samples/saturation": 0.9})
    assert (alarm.name, alarm.action, alarm.to) == ("hacking", "stop", None)
    assert "stopped by the alarm hacking: samples/saturation" in str(AlarmError.from_alarm(alarm))


def test_hacking_is_answered_before_other_alarms():
    def alarm(name: str, action: str) -> Alarm:
        return Alarm(name, 1, 1, "", "", "", action)

    back, stop, hacked = alarm("kl", "rollback"), alarm("replay", "stop"), alarm("hacking", "stop")
    assert most_severe([stop, back]) is back and most_severe([back, hacked, stop]) is hacked
    assert most_severe([alarm("hacking", "warn"), stop]) is stop and most_severe([alarm("kl", "warn")]) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["watch.on_hack=panic"], "watch.on_hack: got 'panic', accepted: warn, stop, rollback or null"),
        (["watch.kl_to_base=0"], "watch.kl_to_base: got 0, accepted: a number > 0 or null"),
        (
            ["watch.kl_to_base=0.1", "lora=null", "full=true"],
            "watch.kl_to_base: got 0.1, but full: true leaves no base",
        ),
        (
            ["watch.on_hack=rollback", "prompts.heldout=null"],
            "watch.on_hack: got 'rollback', but without held-out prompts",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(changes: list[str], told: str):
    with pytest.raises(RecipeError) as error:
        load("tiny_flow_grpo", changes)
    assert told in str(error.value) and "\n" not in str(error.value)


# the divergence from the base


class Stepping:
    """A policy whose rollout of prompt i has i + 1 decisions, each with a divergence of i."""

    modules: dict[str, Any] = {}

    def rollout(self, prompts: Sequence[Prompt], **_: Any) -> Rollout:
        lengths = torch.tensor([int(p.id) + 1 for p in prompts])
        mask = torch.arange(4) < lengths[:, None]
        samples = Samples(prompts, torch.arange(len(prompts)), texts=[""] * len(prompts))
        return Rollout(samples, torch.zeros(mask.shape), mask, None)

    def look(
        self, rollout: Rollout, rows: torch.Tensor, view: View, visit: Callable[[LogProbs], None], **_: Any
    ) -> None:
        assert view.exact_kl and not torch.is_grad_enabled()
        kl = torch.tensor([float(p.id) for p in rollout.samples.prompts])[:, None].expand(rollout.mask.shape)
        for columns in torch.arange(4).split(3):
            visit(
                LogProbs(
                    rows,
                    columns,
                    rollout.rollout_logp[:, columns],
                    kl[:, columns].masked_fill(~rollout.mask[:, columns], 9),
                )
            )


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_divergence_is_the_mean_over_decisions_whatever_the_batch(batch: int):
    prompts = [Prompt(str(i), "") for i in (0, 3, 1)]
    policy: Any = Stepping()
    assert divergence(policy, prompts, plan=None, seed=0, batch=batch) == pytest.approx((0 * 1 + 3 * 4 + 1 * 2) / 7)
