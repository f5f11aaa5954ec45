"""The keys of objectives of finished samples that are noised again, and of the levels that they are noised to."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class Loss(Strict):
    """The loss of noised samples, in the place of the clipped one; kinds are in flowrl/core/objectives/noised.py.

    nft (DiffusionNFT): beta, adv_clip, adv_mode. awm (advantage-weighted matching): weighting, power, clip, pull,
    adv_clip, adv_max. dgpo (direct group preference): beta, clip, against. crd (centred reward distillation): beta,
    temperature, match, adaptive, adaptive_kl, adv_clip. flow_dpo: beta, epsilon, against; train.pairs of each group.
    flow_rwr (reward-weighted regression): temperature. against: the policy's errors are compared with those of the
    reference, or of the older copy (train.old). Keys of another kind are refused; what is not given is as published.
    objective.kl is the coefficient of the mean squared difference from the reference's velocity. Samples come from the
    ODE: sampler.step, noise, window and share_noise, and the clip and kl_kind of objective, are not read.
    """

    kind: Literal["nft", "awm", "dgpo", "crd", "flow_dpo", "flow_rwr"] = key(
        ..., "nft, awm, dgpo, crd, flow_dpo or flow_rwr"
    )
    beta: float | None = key(None, "a number > 0", gt=0)
    adv_clip: float | None = key(None, "a number > 0", gt=0)
    adv_max: float | None = key(None, "a number > 0", gt=0)
    adv_mode: Literal["all", "positive_only", "negative_only", "binary", "one_only"] | None = key(
        None, "all, positive_only, negative_only, binary or one_only"
    )
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] | None = key(None, "uniform, t, t2, huber or ghuber")
    power: float | None = key(None, "a number > 0", gt=0)
    clip: float | None = key(None, "a number > 0 or null", gt=0)
    pull: float | None = key(None, "a number >= 0", ge=0)
    against: Literal["reference", "old"] | None = key(None, "reference or old")
    temperature: float | None = key(None, "a number")
    match: Literal["mse", "bce"] | None = key(None, "mse or bce")
    adaptive: bool | None = key(None, "true or false")
    adaptive_kl: bool | None = key(None, "true or false")
    epsilon: bool | None = key(None, "true or false")

    @property
    def given(self) -> dict[str, object]:
        """The numbers of its kind that the recipe gives."""
        return {name: value for name in LOSS_KEYS[self.kind] if (value := getattr(self, name)) is not None}

    @property
    def reads_old(self) -> bool:
        """Whether it reads velocities of the older copy."""
        return self.kind in ("nft", "awm", "crd") or self.against == "old" or (self.kind == "dgpo" and bool(self.clip))

    @property
    def reads_reference(self) -> bool:
        """Whether it reads velocities of the reference, beside what objective.kl does."""
        return self.kind in ("dgpo", "flow_dpo") and self.against != "old"


class Levels(Strict):
    """The noise levels that finished samples are looked at, drawn anew each iteration (samplers/noise_draws.py).

    uniform: over (low, high). logit_normal: with mean and std of the logit, scaled to (low, high). walk: of the walk's
    own steps low to below high. number: levels an iteration; of walk null is all of those steps.
    """

    kind: Literal["uniform", "logit_normal", "walk"] = key("uniform", "uniform, logit_normal or walk")
    number: int | None = key(None, "a whole number >= 1, or null", ge=1)
    low: float | None = key(None, "a number from 0 to 1, or a step of walk", ge=0)
    high: float | None = key(None, "a number from 0 to 1, or a step of walk", gt=0)
    mean: float | None = key(None, "a number")
    std: float | None = key(None, "a number > 0", gt=0)


class NoisedTraining(Strict):
    """The keys of `train` that only a loss of noised samples reads.

    old: there is an older copy of the weights; after each iteration it is old times itself and 1 - old times the
    weights of now (0: those that an iteration begins with; null: there is none). sample_old: it draws the samples.
    pairs: of each group, the best with the worst, the second best with the second worst, and so on.
    """

    old: float | None = key(None, "a number from 0 to 1, or null", ge=0, le=1, curve=True)
    sample_old: bool = key(False, "true or false")
    pairs: int = key(1, "a whole number >= 1", ge=1)


LOSS_KEYS: dict[str, tuple[str, ...]] = {
    "nft": ("beta", "adv_clip", "adv_mode"),
    "awm": ("weighting", "power", "clip", "pull", "adv_clip", "adv_max"),
    "dgpo": ("beta", "clip", "against"),
    "crd": ("beta", "temperature", "match", "adaptive", "adaptive_kl", "adv_clip"),
    "flow_dpo": ("beta", "epsilon", "against"),
    "flow_rwr": ("temperature",),
}
LEVEL_KEYS: dict[str, dict[str, bool]] = {
    "uniform": {"number": False, "low": False, "high": False},
    "logit_normal": {"number": False, "low": False, "high": False, "mean": False, "std": False},
    "walk": {"number": False, "low": False, "high": False},
}
