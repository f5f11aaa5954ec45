"""Objectives that follow the gradient of the rewards themselves: what of reward_gradient.py one look has to give.

Rewards have to be differentiable. Rows are samples; columns are steps, whose shares of a finished sample's gradient add
up; the loss is the mean over samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flowrl.contracts import Batch, Field, Need, Rollout, Together, View
from flowrl.core.objectives.matching import mean_square
from flowrl.core.objectives.reward_gradient import discount_at, hinge, leap_weights, quantiles, relative_reward

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class PulledObjective:
    """What objectives of reward gradients share: the loss of a reward R, scale * max(threshold - R, 0).

    threshold: from which on a reward is good enough and gives no gradient; None: the loss is -scale * R. kl:
    coefficient of the mean squared difference from the reference's velocity at the states that are looked at, which is
    weighted like them. Metric [r, 1]: kl, where there is one.
    """

    threshold: float | None = None
    scale: float = 1.0
    kl: float = field(default=0.0, kw_only=True)

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("walked")

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "decision"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return self._needs("reward_of")

    def _needs(self, *names: Need) -> frozenset[Need]:
        """These, and the reference where a divergence is paid."""
        return frozenset(names) | frozenset[Need](["reference"] if self.kl > 0 else [])

    def _held(self, seen: Field, batch: Batch, loss: Tensor, metrics: Metrics) -> tuple[Tensor, Metrics]:
        """The loss [r, 1] and its metrics, with the divergence from the reference."""
        if self.kl == 0:
            return loss, metrics
        distance = mean_square(seen.v - batch.velocities["reference"])[:, None]
        distance = distance if seen.share is None else distance / seen.share[:, None]
        return loss + self.kl * distance, metrics | {"kl": distance.detach()}

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """See `contracts.Objective`: as it is."""
        return rollout, {}

    def weights(self, mask: Tensor) -> Tensor:
        """See `contracts.Objective`: the mean over rows of sums over columns."""
        return mask.float() / mask.any(1).sum().clamp(min=1)

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """See `contracts.Objective`: there are none."""

    def of_reward(self, reward: Tensor) -> Tensor:
        """The loss [r] of rewards [r]."""
        return self.scale * (-reward if self.threshold is None else hinge(reward, self.threshold))

    def sample_loss(self, reward: Tensor, batch: Batch) -> Tensor:
        """The loss [r] of samples, from their rewards [r] and the data of all of their columns."""
        return self.of_reward(reward)

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `contracts.Objective`."""
        raise NotImplementedError


@dataclass(frozen=True)
class DraftObjective(PulledObjective):
    """The gradient of the finished sample's reward, carried back through steps of its walk.

    nested: whether it also takes the way through later steps. With it and the last K steps this is DRaFT-K
    (arXiv:2309.17400) and, with a random K, AlignProp (arXiv:2310.03739). Without it each step is pulled by the
    gradient at the sample itself, however early it is: FlowBP-Sparse (arXiv:2606.11075), whose few steps weigh as all,
    and DRTune (arXiv:2405.00760), which has an estimate judged on the way. FlowBP-Bridge takes the way through one step
    in part. LeapAlign (arXiv:2604.15311) goes back over two leaps; tau is its floor of their distances, which a
    sample's loss is divided by (`reward_gradient.leap_weights`); None: it is not. Which steps and leaps there are is
    the plan's affair (samplers/noise_draws.py). Metrics: see core/backward_pull.py.
    """

    nested: bool = True
    tau: float | None = None

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("walked", nested=self.nested)

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return self._needs("pull")

    def sample_loss(self, reward: Tensor, batch: Batch) -> Tensor:
        """See `PulledObjective`. Raises ValueError for a tau where nothing leaps."""
        if self.tau is None:
            return self.of_reward(reward)
        if "leap" not in batch.step_stats:
            raise ValueError("tau weighs leaps, and no step of the walk is one: set tau=null")
        return self.of_reward(reward) * leap_weights(batch.step_stats["leap"], self.tau)

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `contracts.Objective`; of what is returned the gradient alone has a meaning."""
        assert batch.pull is not None
        loss = (seen.gain * (batch.pull * seen.v)).flatten(1).sum(1, keepdim=True)
        return self._held(seen, batch, loss, {})


@dataclass(frozen=True)
class MatchObjective(DraftObjective):
    """The rewards of a batch are to be distributed like those of samples that are known to be good.

    scale * (reward - quantile of the target at the sample's rank)^2: with samples and target sorted, the squared
    Wasserstein distance of the two distributions of rewards. target: rewards of the good samples. The idea is that of
    ReDA (HunyuanImage 3.0, arXiv:2509.23951), whose formula is not published: a reward that is high enough is not
    raised further, as one that is hacked would be.
    """

    target: Sequence[float] = ()

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return self._needs("pull", "rank")

    def sample_loss(self, reward: Tensor, batch: Batch) -> Tensor:
        """See `PulledObjective`."""
        return self.scale * (reward - quantiles(self.target, batch.adv.to(reward))).square()


@dataclass(frozen=True)
class ReFLObjective(PulledObjective):
    """ReFL (ImageReward, arXiv:2304.05977): the reward of the one-step estimate of x_0 at a late step of the walk.

    Published: threshold 2, scale 1e-3, at one of the last ten of 40 steps. The estimate of an early step is blurred,
    and easily pleases a reward that the sample does not. The loss is the mean over steps: at the last one, and at its
    level with fresh noise, DRaFT-LV (arXiv:2309.17400). Metrics [r, 1]: estimate_reward.
    """

    def weights(self, mask: Tensor) -> Tensor:
        """See `contracts.Objective`: the mean over rows of means over columns."""
        return super().weights(mask) / mask.sum(1, keepdim=True).clamp(min=1)

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `contracts.Objective`."""
        assert seen.show is not None and batch.reward_of is not None
        reward = batch.reward_of(seen.show(seen.clean(seen.v)), None)
        return self._held(seen, batch, self.of_reward(reward)[:, None], {"estimate_reward": reward.detach()[:, None]})


@dataclass(frozen=True)
class SRPOObjective(PulledObjective):
    """SRPO (arXiv:2509.06942): Direct-Align with a reward that is relative to control words.

    A sample that the noise of its own walk was put into is stepped once and recovered. Where the step takes noise away,
    (1 + k) R(positive) - R(negative) is raised, where R(word) is the reward with the control word put before the
    prompt; where it puts noise in (inversion), (1 + k) R(negative) - R(positive), since the recovered sample goes the
    other way there. k goes over `discount`, or `inversion_discount`, as the step's cleaner end goes from the lowest to
    the highest of the levels. positive, negative: row i takes the words number i, over and over; without words it is
    the reward itself that is raised, or lowered. table: the highest and the lowest level and their number. Published:
    threshold 0.7, scale 0.5. Metrics [r, 1]: relative_reward.
    """

    threshold: float | None = 0.7
    scale: float = 0.5
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    discount: Sequence[float] = (0.1, 0.25)
    inversion_discount: Sequence[float] = (0.3, 0.01)
    table: tuple[float, float, int] = (0.964, 0.75, 1000)

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("injected")

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `contracts.Objective`."""
        assert seen.show is not None and batch.reward_of is not None
        samples, inversion = seen.show(seen.recovered), seen.to > seen.level
        if not self.positive:
            reward = batch.reward_of(samples, None) * (-1 if inversion else 1)
        else:
            texts = [prompt.text for prompt in samples.prompts]
            fits = [batch.reward_of(samples, _said(w, texts, seen.rows)) for w in (self.positive, self.negative)]
            wanted, other = reversed(fits) if inversion else fits
            reward = relative_reward(wanted, other, self._discount(seen, inversion=inversion))
        return self._held(seen, batch, self.of_reward(reward)[:, None], {"relative_reward": reward.detach()[:, None]})

    def _discount(self, seen: Field, *, inversion: bool) -> float:
        """The entry of the discounts at the cleaner end of the step."""
        high, low, number = self.table
        place = number - round((high - min(seen.level, seen.to)) / (high - low) * (number - 1))
        return discount_at(self.inversion_discount if inversion else self.discount, place, number)


def _said(words: Sequence[str], texts: Sequence[str], rows: Tensor) -> list[str]:
    """Each text behind the control word of its row."""
    return [f"{words[row % len(words)]}. {text}" for row, text in zip(rows.tolist(), texts, strict=True)]


PULLED: dict[str, type[PulledObjective]] = {
    "draft": DraftObjective,
    "match": MatchObjective,
    "refl": ReFLObjective,
    "srpo": SRPOObjective,
}
