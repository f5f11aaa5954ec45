"""The keys of `sampler.guide`: a reward of noisy latents that steers evaluations and samples."""

from flowrl.recipe.base import Strict, key


class GuideKeys(Strict):
    """A reward of noisy latents that steers walks from which nothing is trained (Flow-NRG, arXiv:2501.13918).

    path: a folder that `flowrl train-latent-reward` wrote. weight: of the reward: samples are drawn from their density
    times exp(weight * reward). below: steps that begin at a noise level above are left alone, where the gradient's
    factor s / (1 - s) has no bound, and the first step is in any case.
    """

    path: str = key(..., "a folder that flowrl train-latent-reward wrote", min_length=1)
    weight: float = key(1.0, "a number")
    below: float = key(0.95, "a number in (0, 1)", gt=0, lt=1)

    def __str__(self) -> str:
        return f"guided by {self.path} (weight {self.weight:g}, below {self.below:g})"
