"""The keys of views: the pictures of a prompt, changed before the model reads them."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class ViewKeys(Strict):
    """A change of a prompt's pictures and videos, before the processor; a function of seed, prompt and sample.
    In conversations tools work on the files as they are, and what they showed stays.

    mask_patches: squares of `patch` (14) pixels are black, or of the mean (fill), with probability `share` (0.6): PAPO.
    diffuse: noise of `step` (500) of 1000 steps of forward diffusion: NoisyRollout. shuffle_frames: the frames of
    videos in another order: T-GRPO. drop: black pictures.

    draws: so many of a group's samples, the last, are drawn under it. They are scored, and trained, with the pictures
    as they are (scored clean, as NoisyRollout has it: the ratio is then to the policy of before under clean pictures,
    and nothing corrects for the view that drew), or as they were drawn (scored drawn). beside: so many further samples
    of each prompt are drawn under it, scored and not trained; rewards with `contrast` are compared with theirs. A view
    without either is one that objective.perception looks at, or beside which objective.loss has texts again.

    each: every sample has a change of its own, in place of one for all that are drawn of a prompt in an iteration.
    required: training prompts have to show what the view changes; false passes over those that do not.
    """

    kind: Literal["mask_patches", "diffuse", "shuffle_frames", "drop"] = key(
        ..., "mask_patches, diffuse, shuffle_frames or drop"
    )
    share: float | None = key(None, "a number from 0 to 1", ge=0, le=1, curve=True)
    patch: int | None = key(None, "a whole number >= 1", ge=1)
    fill: Literal["black", "mean"] | None = key(None, "black or mean")
    step: float | None = key(None, "a number in [0, 1000)", ge=0, lt=1000, curve=True)
    draws: int = key(0, "a whole number >= 0 below train.group", ge=0)
    scored: Literal["clean", "drawn"] = key("clean", "clean or drawn")
    beside: int = key(0, "a whole number >= 0", ge=0)
    each: bool = key(False, "true or false")
    required: bool = key(True, "true or false")

    @property
    def given(self) -> dict[str, float | str]:
        """The arguments of its kind that the recipe gives."""
        return {name: value for name in READS[self.kind] if (value := getattr(self, name)) is not None}


class PerceptionKeys(Strict):
    """Beside the policy gradient, what is said is to depend on what is seen: the implicit perception loss of PAPO
    (arXiv:2507.06448).

    The loss gets -coef times the divergence of what the policy says from what it said under the view `view` at the
    begin of the iteration, estimated by kl_kind, and entropy times -log p of each token, an estimate of the entropy,
    against a policy that says anything to differ. The log-probs under the view have no gradient, as in the published
    code; so of its double entropy loss the half that is of the view is a number, the metric perception_entropy.
    """

    view: str = key(..., "the name of a view", min_length=1)
    coef: float = key(0.01, "a number >= 0", ge=0, curve=True)
    kl_kind: Literal["k1", "k2", "k3", "abs"] = key("k3", "k1, k2, k3 or abs")
    entropy: float = key(0.0, "a number >= 0", ge=0, curve=True)


class Contrast(Strict):
    """`bonus` more for a right sample of a group whose mean is at least `share` times that of the samples that a view
    draws beside it: T-GRPO (arXiv:2503.21776, eq. 2 and 3). right: the score above which a sample is right."""

    bonus: float = key(0.3, "a number")
    share: float = key(0.8, "a number >= 0", ge=0)
    right: float = key(0.1, "a number")


# kind -> the keys that it reads, and what of a prompt it changes (flowrl/media/changes.py)
READS: dict[str, tuple[str, ...]] = {
    "mask_patches": ("share", "patch", "fill"),
    "diffuse": ("step",),
    "shuffle_frames": (),
    "drop": (),
}
CHANGED: dict[str, tuple[str, ...]] = {
    "mask_patches": ("image", "video"),
    "diffuse": ("image", "video"),
    "shuffle_frames": ("video",),
    "drop": ("image", "video"),
}
