"""The keys of objectives of finished samples that are noised again, and of the levels that they are noised to."""

from typing import Annotated, Literal

from pydantic import Field

from flowrl.recipe.base import Strict, key


class Loss(Strict):
    """The loss of noised samples, in the place of the clipped one; kinds are in flowrl/core/objectives/noised.py.

    nft (DiffusionNFT): beta, adv_clip, adv_mode. awm (advantage-weighted matching): weighting, power, clip, pull,
    adv_clip, adv_max. dgpo (direct group preference): beta, clip, against. crd (centred reward distillation): beta,
    temperature, match, adaptive, adaptive_kl, adv_clip. flow_dpo: beta, epsilon, against, own_noise, gap; train.pairs
    of each group.
    rpo (reward preference optimization): beta, sft, epsilon; of each group the samples from files against those drawn
    (train.source a number). sft: the weight of their imitation. flow_rwr (reward-weighted regression): temperature.
    The kind sft (supervised finetuning) is of samples from files whose score is above least, and weighs them by it if
    weighted. against: the policy's errors are compared with those of the reference, or of the older copy (train.old).
    epsilon: errors weigh as those of predicted noise, (1 - t)^2 times as much on the path of a flow. own_noise: each
    sample is noised by the noise that it came from; gap: beta times 2 sigmoid(gap * difference) - 1, of the difference
    of the pair's rewards; both need files with noise and rewards, as `flowrl pairs` writes them, or samples that are
    drawn, whose advantages are the rewards then. Keys of another kind are refused; what is not given is as published.
    objective.kl is the coefficient of the mean squared difference from the reference's velocity. Samples come from the
    ODE: sampler.step, noise, window and share_noise, and the clip and kl_kind of objective, are not read.

    draft, match, refl and srpo follow the gradient of the rewards, which have to be differentiable, and read no
    advantage (flowrl/core/objectives/pulled.py). threshold: a reward that is as high gives no gradient; scale: factor
    of the loss. draft: through steps of the walk (sampler.levels of kind walk, tail, leap, bridge or spaced), nested:
    also through later ones; tau: a sample's loss is divided by how far its leaps end from the walk, each tau at least.
    match: as draft, and the rewards of a batch are to be distributed like target, rewards of good samples. refl: of the
    one-step estimate at steps of the walk, or again at its last. srpo: of a sample noised by its own noise (kind align)
    and recovered; positive, negative: control words put before the prompt; discount, inversion_discount: [at the lowest
    level, at the highest].

    Of language models (flowrl/core/objectives/texts.py): sft, the likelihood of texts from files, whose tokens count by
    phi: one, p or uncertain, p (1 - p). dpo: of two texts of a prompt, from files or the best and the worst of a group,
    pair: coefficient of the preference, bco: of that of each text on its own, likelihood: of the better text's
    (MPO: 0.8, 0.2 and 1); smoothing: of labels. opa_dpo, of
    files with an expert's answer, the model's own and that one corrected: view: the one beside which the first and the
    last are looked at again; image: the factor of pairs that differ by it alone; anchor, anchor_coef: where better
    texts are held, by the square of the distance if squared; by: positions compares token by token, as published, texts
    whole ones. balance, of drawn texts and their rewards as they are (flowrl/core/objectives/balance.py): mapping:
    plain, R is the reward, `floor` at least, or exp, of it; temperature: R^(1 / temperature) is learned; prior: none,
    or reference, times whose probability of the text. sub_balance, of those and of the flows that a critic learns
    (advantage.credit=flow): the same, and lam: a stretch of n tokens weighs lam^n; 0: single tokens.
    """

    kind: Literal[
        "nft",
        "awm",
        "dgpo",
        "crd",
        "flow_dpo",
        "rpo",
        "flow_rwr",
        "sft",
        "draft",
        "match",
        "refl",
        "srpo",
        "dpo",
        "opa_dpo",
        "balance",
        "sub_balance",
    ] = key(
        ...,
        "nft, awm, dgpo, crd, flow_dpo, rpo, flow_rwr, sft, draft, match, refl or srpo; of texts sft, dpo, opa_dpo, "
        "balance or sub_balance",
    )
    beta: float | None = key(None, "a number > 0", gt=0, curve=True)
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
    own_noise: bool | None = key(None, "true or false")
    gap: float | None = key(None, "a number > 0, or null", gt=0)
    least: float | None = key(None, "a number")
    weighted: bool | None = key(None, "true or false")
    sft: float | None = key(None, "a number >= 0", ge=0)
    threshold: float | None = key(None, "a number, or null")
    scale: float | None = key(None, "a number > 0", gt=0)
    nested: bool | None = key(None, "true or false")
    tau: float | None = key(None, "a number > 0, or null", gt=0)
    target: list[float] | None = key(None, "a list of rewards", min_length=1)
    positive: list[str] | None = key(None, "a list of control words", min_length=1)
    negative: list[str] | None = key(None, "a list of control words", min_length=1)
    discount: list[float] | None = key(None, "two numbers", min_length=2, max_length=2)
    inversion_discount: list[float] | None = key(None, "two numbers", min_length=2, max_length=2)

    phi: Literal["one", "p", "uncertain"] | None = key(None, "one, p or uncertain")
    pair: float | None = key(None, "a number >= 0", ge=0)
    bco: float | None = key(None, "a number >= 0", ge=0)
    likelihood: float | None = key(None, "a number >= 0", ge=0)
    smoothing: float | None = key(None, "a number in [0, 0.5)", ge=0, lt=0.5)
    view: str | None = key(None, "the name of a view", min_length=1)
    image: float | None = key(None, "a number >= 0", ge=0)
    anchor: float | None = key(None, "a number")
    anchor_coef: float | None = key(None, "a number >= 0", ge=0)
    squared: bool | None = key(None, "true or false")
    by: Literal["positions", "texts"] | None = key(None, "positions or texts")
    mapping: Literal["plain", "exp"] | None = key(None, "plain or exp")
    floor: float | None = key(None, "a number > 0", gt=0)
    lam: float | None = key(None, "a number in [0, 1]", ge=0, le=1)
    prior: Literal["none", "reference"] | None = key(None, "none or reference")

    @property
    def given(self) -> dict[str, object]:
        """The numbers of its kind that the recipe gives."""
        return {name: value for name in LOSS_KEYS[self.kind] if (value := getattr(self, name)) is not None}

    @property
    def reads_old(self) -> bool:
        """Whether it reads velocities of the older copy."""
        return self.kind in ("nft", "awm", "crd") or self.against == "old" or (self.kind == "dgpo" and bool(self.clip))

    @property
    def pulls(self) -> bool:
        """Whether it follows the gradient of the rewards."""
        return self.kind in PULLING

    @property
    def reads_reference(self) -> bool:
        """Whether it reads velocities of the reference, beside what objective.kl does."""
        reading = self.kind in ("dgpo", "flow_dpo", "rpo", "dpo", "opa_dpo") or self.prior == "reference"
        return reading and self.against != "old"

    @property
    def reads_rewards(self) -> bool:
        """Whether it reads rewards as they are, in the place of advantages."""
        return self.kind in ("balance", "sub_balance")

    @property
    def reads_flows(self) -> bool:
        """Whether it reads how flows, which a critic gives, grow by each decision."""
        return self.kind == "sub_balance"


class Levels(Strict):
    """The noise levels that finished samples are looked at, drawn anew each iteration (samplers/noise_draws.py).

    uniform: over (low, high). logit_normal: with mean and std of the logit, scaled to (low, high). walk: of the walk's
    own steps low to below high, a negative low counted from the end. number: levels an iteration; of walk null is all
    of those steps. The others are for gradients of rewards. walk there also has bias (step i comes with weight
    (i + 1)^bias) and whole (the steps drawn weigh as all from low to high). tail: the last steps of the walk, their
    number drawn from low to high (null: all steps). again: the last step, and `number` times its level with fresh
    noise. leap: from a random step to a later one, and from there to the end. bridge: `number` steps on both sides of a
    random one; both let the share `through` of a gradient pass through the later part. spaced: `number` equally spaced
    steps up to one of the last share `stop` of the walk, whose estimate of x_0 is judged. align, of srpo alone: a step
    between two of `number` levels from high down to low, of (1 - truth) of them at most, and, with inversion, one
    upwards.
    """

    kind: Literal["uniform", "logit_normal", "walk", "tail", "again", "leap", "bridge", "spaced", "align"] = key(
        "uniform", "uniform, logit_normal, walk, tail, again, leap, bridge, spaced or align"
    )
    number: int | None = key(None, "a whole number >= 1, or null", ge=1)
    low: float | None = key(None, "a number from 0 to 1, or a step of walk")
    high: float | None = key(None, "a number from 0 to 1, or a step of walk", gt=0)
    truth: float | None = key(None, "a number in [0, 1)", ge=0, lt=1)
    inversion: bool | None = key(None, "true or false")
    mean: float | None = key(None, "a number")
    std: float | None = key(None, "a number > 0", gt=0)
    bias: float | None = key(None, "a number >= 0", ge=0)
    whole: bool | None = key(None, "true or false")
    through: float | None = key(None, "a number from 0 to 1", ge=0, le=1)
    stop: float | None = key(None, "a number in (0, 1]", gt=0, le=1)


class NoisedTraining(Strict):
    """The keys of `train` that only a loss of noised samples reads.

    old: there is an older copy of the weights; after each iteration it is old times itself and 1 - old times the
    weights of now (0: those that an iteration begins with; null: there is none). sample_old: it draws the samples.
    pairs: of each group, the best with the worst, the second best with the second worst, and so on. source: samples are
    drawn (rollouts), or come with prompts.train (files: pairs, or scored pictures; docs/preferences.md). A number is
    the share of an iteration's prompts whose groups begin with the samples that they come with; the rest of these
    groups, and all others, are drawn, and the rewards score all. It may fall along a curve, as Pair-GRPO has it.
    """

    old: float | None = key(None, "a number from 0 to 1, or null", ge=0, le=1, curve=True)
    sample_old: bool = key(False, "true or false")
    pairs: int = key(1, "a whole number >= 1", ge=1)
    source: Literal["rollouts", "files"] | Annotated[float, Field(ge=0, le=1)] = key(
        "rollouts", "rollouts, files, or a number from 0 to 1", curve=True
    )

    @property
    def reads_files(self) -> bool:
        """Whether some samples, or all, come with the prompts."""
        return self.source != "rollouts"

    @property
    def share(self) -> float | None:
        """The share of the prompts whose groups begin with samples of their own; None where all are of one sort."""
        return None if isinstance(self.source, str) else self.source


PULLING = ("draft", "match", "refl", "srpo")
LOSS_KEYS: dict[str, tuple[str, ...]] = {
    "nft": ("beta", "adv_clip", "adv_mode"),
    "awm": ("weighting", "power", "clip", "pull", "adv_clip", "adv_max"),
    "dgpo": ("beta", "clip", "against"),
    "crd": ("beta", "temperature", "match", "adaptive", "adaptive_kl", "adv_clip"),
    "flow_dpo": ("beta", "epsilon", "against", "own_noise", "gap"),
    "rpo": ("beta", "sft", "epsilon"),
    "flow_rwr": ("temperature",),
    "sft": ("least", "weighted", "phi"),
    "dpo": ("beta", "pair", "bco", "likelihood", "smoothing"),
    "opa_dpo": ("beta", "view", "image", "anchor", "anchor_coef", "squared", "by", "smoothing"),
    "balance": ("mapping", "floor", "temperature", "prior"),
    "sub_balance": ("mapping", "floor", "temperature", "prior", "lam"),
    "draft": ("threshold", "scale", "nested", "tau"),
    "match": ("scale", "nested", "target"),
    "refl": ("threshold", "scale"),
    "srpo": ("threshold", "scale", "positive", "negative", "discount", "inversion_discount"),
}
LEVEL_KEYS: dict[str, dict[str, bool]] = {
    "uniform": {"number": False, "low": False, "high": False},
    "logit_normal": {"number": False, "low": False, "high": False, "mean": False, "std": False},
    "walk": {"number": False, "low": False, "high": False, "bias": False, "whole": False},
    "tail": {"low": False, "high": False},
    "again": {"number": False},
    "leap": {"through": False},
    "bridge": {"number": False, "through": False, "bias": False},
    "spaced": {"number": False, "stop": False},
    "align": {"number": False, "low": False, "high": False, "truth": False, "inversion": False},
}
TEXT_KEYS: dict[str, tuple[str, ...]] = {
    "sft": ("phi",),
    "dpo": LOSS_KEYS["dpo"],
    "opa_dpo": LOSS_KEYS["opa_dpo"],
    "balance": LOSS_KEYS["balance"],
    "sub_balance": LOSS_KEYS["sub_balance"],
}  # what those of texts read
