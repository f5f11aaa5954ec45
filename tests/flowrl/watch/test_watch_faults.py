"""Faults planted in real short runs, through the loop, the learner and the evaluation: each rings its own alarm.

The policy paints: a sample is one Gaussian colour, drawn around a mean that learns, on a fixed grain.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cli_support import quiet
from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.advantages.combined import advantage_metrics, advantages
from flowrl.core.evaluation import evaluate
from flowrl.core.iterate import iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.update import Settings
from flowrl.watch.alarms import Alarm
from flowrl.watch.sample_statistics import sample_statistics
from flowrl.watch.watchdog import Watchdog, WatchSettings

PROMPTS = [Prompt(f"p{i}", "a colour") for i in range(4)]
HELDOUT = [Prompt(f"h{i}", "a colour") for i in range(32)]
CLIP = 0.02
OBJECTIVE = ClippedObjective(CLIP, CLIP)
GRAIN = 0.05 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
PATIENCE = 3


class Painter:
    """Three decisions a sample, the channels of its colour: N(mean, exp(log_std)^2)."""

    def __init__(self, std: float = 0.1) -> None:
        self.mean = nn.Parameter(torch.tensor([0.5, 0.5, 0.4]))
        self.log_std = nn.Parameter(torch.full((3,), std).log())

    def rollout(
        self, prompts: Sequence[Prompt], *, group_size: int, plan: object, seed: int, first: int = 0, **_: object
    ) -> Rollout:
        rows = len(prompts) * group_size
        draws = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed * 1009 + first))
        colours = (self.mean + draws * self.log_std.exp()).detach()
        group = torch.arange(len(prompts)).repeat_interleave(group_size)
        images = (colours[:, :, None, None] + GRAIN).clamp(0, 1)
        samples = Samples([prompts[g] for g in group], group, images=images)
        mask = torch.ones(rows, 3, dtype=torch.bool)
        return Rollout(samples, self.logp(colours).detach(), mask, colours)

    def logp(self, colours: Tensor) -> Tensor:
        return -0.5 * ((colours - self.mean) / self.log_std.exp()) ** 2 - self.log_std

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        visit(LogProbs(rows, torch.arange(3), self.logp(rollout.replay[rows])))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield from (self.mean, self.log_std)


def colour(samples: Samples) -> Tensor:
    return samples.images.mean((2, 3))


def near(samples: Samples) -> Tensor:
    """How near a colour is to a slightly warmer one."""
    return -(colour(samples) - torch.tensor([0.55, 0.5, 0.4])).square().sum(1)


def vivid(samples: Samples) -> Tensor:
    """A reward that saturation alone satisfies."""
    return colour(samples).amax(1) - colour(samples).amin(1)


def natural(samples: Samples) -> Tensor:
    return -vivid(samples)


class Training:
    """Runs the loop with a watch beside it; `alarms` is all that rang."""

    def __init__(
        self,
        policy: Painter | None = None,
        *,
        reward: Callable[[Samples], Tensor] = near,
        witness: Callable[[Samples], Tensor] | None = None,
        lr: float = 0.002,
        updates: int = 2,
        **watch: object,
    ) -> None:
        self.policy = policy or Painter()
        self.learner = Learner(self.policy.trainable(), lr=lr, weight_decay=0.0)
        self.rewards = {"reward": reward} | ({"witness": witness} if witness else {})
        self.weights = {name: float(name == "reward") for name in self.rewards}
        self.settings = Settings(group=8, updates=updates)
        chosen = WatchSettings(patience=PATIENCE, **watch)
        self.watch = Watchdog(self.weights, chosen, updates_per_rollout=updates, clip=(CLIP, CLIP))
        self.done, self.sign, self.alarms = 0, 1.0, list[Alarm]()

    def score(self, samples: Samples) -> dict[str, Tensor]:
        return {name: reward(samples).float() for name, reward in self.rewards.items()}

    def advantage(self, rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        samples = rollout.samples
        adv = self.sign * advantages(rewards, samples.group, weights=self.weights)
        return adv, advantage_metrics(rewards, samples.group, adv, weights=self.weights)

    def run(self, iterations: int) -> "Training":
        for _ in range(iterations):
            result = iterate(
                self.policy,
                self.learner,
                PROMPTS,
                plan=None,
                seed=0,
                first=self.done * 8,
                score=self.score,
                advantage=self.advantage,
                objective=OBJECTIVE,
                settings=self.settings,
            )
            self.done += 1
            self.alarms += self.watch.after_iteration(self.done, result.metrics | sample_statistics(result.samples))
        return self

    def evaluate(self) -> "Training":
        result = evaluate(self.policy, HELDOUT, self.score, plan=None, seed=7, batch=10, statistics=sample_statistics)
        metrics = {f"{name}/mean": m.value for name, m in result.means().items()}
        metrics |= {f"{name}/error": m.error for name, m in result.means().items()}
        self.alarms += self.watch.after_evaluation(self.done, metrics | result.statistics)
        return self

    def names(self) -> set[str]:
        return {alarm.name for alarm in self.alarms}

    def first(self, name: str) -> Alarm:
        return next(alarm for alarm in self.alarms if alarm.name == name)


def test_a_healthy_run_rings_nothing_and_learns():
    training = Training(witness=natural).evaluate()
    before = training.watch.history.state.base["value"]
    training.run(20).evaluate().run(20).evaluate()
    assert training.alarms == []
    assert training.watch.history.state.best[""]["value"] > before
    assert training.watch.history.state.best[""]["iteration"] == 40


def test_a_gradient_that_is_not_finite():
    class Broken(Painter):
        broken = False

        def logp(self, colours: Tensor) -> Tensor:
            return super().logp(colours) * (torch.nan if self.broken and torch.is_grad_enabled() else 1.0)

    policy = Broken()
    training = Training(policy, on_alarm="rollback").run(4)
    assert training.alarms == []
    policy.broken = True
    training.run(1)
    (warning,) = training.alarms
    assert (warning.name, warning.iteration, warning.since, warning.action) == ("nonfinite", 5, 5, "warn")
    assert "100% of the updates were skipped" in warning.what
    training.run(PATIENCE - 1)
    lasting = training.alarms[-1]
    assert (lasting.name, lasting.iteration, lasting.since, lasting.action) == ("nonfinite", 7, 5, "rollback")


@pytest.mark.parametrize("lr", [0.5, 3.0])
def test_a_learning_rate_that_is_far_too_high(lr: float):
    """One rollout is enough to leave all pictures black: what follows has no advantage left to learn from."""
    training = Training(lr=lr, on_alarm="rollback").run(1 + PATIENCE)
    explosion, silence = training.alarms
    assert (explosion.name, explosion.iteration, explosion.action) == ("kl", 1, "rollback")
    assert (silence.name, silence.since, silence.action) == ("silent", 2, "warn")


def test_a_learning_rate_that_explodes_later():
    training = Training().run(30)
    assert training.alarms == []
    for group in training.learner.optimizer.param_groups:
        group["lr"] *= 20
    training.learner.factor = 20.0
    training.run(3)
    assert "times its running median" in training.first("kl").what


def test_a_policy_that_outruns_its_clip():
    training = Training(lr=0.1, updates=4, on_alarm="stop").run(12)
    alarm = training.first("clip_all")
    assert (alarm.iteration - alarm.since, alarm.action) == (PATIENCE - 1, "stop")
    one = Training(lr=0.1, updates=1).run(12)  # one update a rollout: the clip cannot act, whatever the step
    assert not one.names() & {"clip_all", "clip_none"}


def test_a_clip_that_never_acts_is_told_and_only_told():
    training = Training(lr=1e-5, on_alarm="rollback").run(10 * PATIENCE)
    (alarm,) = training.alarms
    assert (alarm.name, alarm.iteration, alarm.since, alarm.action) == ("clip_none", 30, 1, "warn")
    assert Training(lr=1e-5, updates=1).run(10 * PATIENCE).alarms == []


def test_a_replay_that_is_not_the_rollout():
    class Shifted(Painter):
        def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
            visit(LogProbs(rows, torch.arange(3), self.logp(rollout.replay[rows]) + 1e-3))

    training = Training(Shifted(), on_alarm="rollback").run(PATIENCE)
    assert [(a.name, a.iteration, a.action) for a in training.alarms] == [("replay", 1, "warn"), ("replay", 3, "stop")]
    assert Training(Painter()).run(PATIENCE).alarms == []


def test_a_gradient_that_is_cut():
    class Cut(Painter):
        def logp(self, colours: Tensor) -> Tensor:
            return super().logp(colours).detach()

    training = Training(Cut(), on_alarm="stop").run(PATIENCE)
    alarm = training.first("no_gradient")
    assert (alarm.iteration, alarm.since, alarm.action) == (3, 1, "stop") and training.names() == {"no_gradient"}


def test_a_reward_that_is_constant():
    training = Training(reward=lambda samples: torch.ones(len(samples)), on_alarm="stop").run(PATIENCE + 5)
    (alarm,) = training.alarms
    assert (alarm.name, alarm.iteration, alarm.since, alarm.action) == ("silent", 3, 1, "warn")


def test_a_reward_that_is_hacked_in_training():
    training = Training(reward=vivid, lr=0.01).run(40)
    assert "samples/saturation" in training.first("hacking").what
    assert "hacking" not in Training(lr=0.01).run(40).names()


def test_a_reward_that_is_hacked_held_out_and_its_witness():
    training = Training(reward=vivid, witness=natural, lr=0.01).evaluate()
    for _ in range(4):
        training.run(10).evaluate()
    told = [alarm.what for alarm in training.alarms if alarm.name == "hacking"]
    assert any("the held-out reward rose" in what and "saturation" in what for what in told)
    assert any("held-out witness witness" in what for what in told)
    ignored = Training(reward=vivid, witness=natural, lr=0.01, ignore=["hacking"]).evaluate().run(40).evaluate()
    assert "hacking" not in ignored.names()


def test_a_policy_that_collapses_to_one_sample():
    training = Training(Painter(std=0.2), reward=near, lr=0.03).run(60)
    assert "samples/diversity" in training.first("diversity").what


def test_a_reward_that_collapses():
    training = Training(lr=0.005).run(15).evaluate()
    training.sign = -1.0  # the planted fault: a sign
    training.run(30).evaluate()
    alarm = training.first("collapse")
    assert (alarm.iteration, alarm.since) == (45, 15)


VIVID = '''
def vivid(samples):
    """Saturation alone."""
    return (samples.images.amax(1) - samples.images.amin(1)).mean((1, 2)).float()
'''


@pytest.mark.slow
def test_a_real_pipeline_that_games_its_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """shapes-flux, rewarded for saturation: its metrics, as the run wrote them, ring."""
    import json

    from flowrl.recipe.load import load
    from flowrl.runs.start import run

    (tmp_path / "vivid_reward.py").write_text(VIVID)
    monkeypatch.chdir(tmp_path)
    changes = ["rewards={vivid: {use: vivid_reward.vivid}, shapes: {use: shapes, weight: 0.0}}", "train.lr=4e-3"]
    changes += ["train.schedule=constant", "train.prompts=4", "train.group=8", "train.iterations=40", "output=out"]
    changes += ["eval.every=20", "eval.prompts=80", "eval.steps=6"]
    recipe = load("tiny_flow_grpo", changes)
    run(recipe, quiet())
    watch = Watchdog({"vivid": 1.0, "shapes": 0.0}, updates_per_rollout=4, clip=recipe.objective.clip_range)
    alarms = []
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        see = {"train": watch.after_iteration, "heldout": watch.after_evaluation}[metrics.pop("kind")]
        alarms += see(metrics.pop("iteration"), metrics)
    assert {alarm.name for alarm in alarms} == {"hacking"}
    assert "samples/saturation" in alarms[0].what
