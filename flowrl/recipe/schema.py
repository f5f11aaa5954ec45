"""Every key of a recipe: its type, its default and what it accepts.

The text given to `key` is what an error message offers in place of a refused value. Lists of choices repeat those of
the modules that implement them (importing those would import torch); a test holds the two together.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from flowrl.recipe.base import Strict, key, part
from flowrl.recipe.curves import Curved
from flowrl.recipe.keys.advantage import Advantage, OwnAdvantage
from flowrl.recipe.keys.attention import AttentionKeys
from flowrl.recipe.keys.correction import CorrectionKeys, CovarianceKeys, RolloutKeys
from flowrl.recipe.keys.credit import CriticKeys
from flowrl.recipe.keys.environment import EnvironmentKeys
from flowrl.recipe.keys.fitting import CompileKeys, QuantizeKeys, VaeKeys
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.keys.lora import Lora
from flowrl.recipe.keys.noised import Loss, NoisedTraining
from flowrl.recipe.keys.parallel import ParallelKeys
from flowrl.recipe.keys.prompts import Budget, Prompts
from flowrl.recipe.keys.reference import OneOrSeveral, ReferenceKeys
from flowrl.recipe.keys.rewards import DEVICE, RewardSpec
from flowrl.recipe.keys.roles import Roles
from flowrl.recipe.keys.sampling import SOLVER_WORDS, Sampler, Solver
from flowrl.recipe.keys.terms import Expand, ExpertTerm, PairsTerm, Resample, RightTerm, Store
from flowrl.recipe.keys.tracking import Dtype, Track
from flowrl.recipe.keys.views import PerceptionKeys, ViewKeys
from flowrl.recipe.keys.watching import Watch
from flowrl.recipe.sections import Own, arguments_of, choices_of, defaults_of, name_of, only_own, open_to
from flowrl.untyped import JSON

CLIP = 0.2  # a clip range that is as good as any, for losses that have none


class ObjectiveKeys(arguments_of("objective", "clipped")):
    """The loss of a decision. preset: a named combination of defaults, which the recipe's own values override
    (recipe/presets).

    clip: one number, or [low, high]. level: what is clipped, the ratio of a decision (token) or of its whole row: of
    the mean log-ratio (seq_mean; seq_token: with the gradient of each decision) or of its sum (seq_sum). dual: a limit
    of the ratio where the advantage is negative, log_ratio_limit: one of its logarithm. kl: coefficient of the
    divergence from the reference (by default the initial model), estimated by kl_kind, and added to the loss or, with
    kl_in reward, to the reward of each decision before advantages are computed; exact_dt is exact times |dt|, as in
    Flow-GRPO's coefficients for SD3 and FLUX. aggregate: how decisions are averaged; constant divides each by rows *
    length (null: the trained steps, or generation.max_new_tokens). gate: how the loss depends on ratio and advantage,
    ppo being the clip; tau, k and lambda are its numbers.

    correction: for samples from another policy than the trained one (recipe/keys/correction.py). covariance: Clip-Cov
    and KL-Cov. off_policy_mask: if the log-prob of a row under the trained policy is lower than under the one that
    sampled, by more than this per decision, decisions with a negative advantage lose their policy gradient
    (DeepSeek-V3.2).

    For tokens only: entropy, the coefficient of the entropy that is added to the objective; entropy_target moves it by
    entropy_step per iteration, up below the target in nats and down above it, and it acts at most at the target
    (Skywork-OR1: 0.2, 0.005). kl_kind forward is KL(reference || policy) over the vocabulary, as exact is KL(policy ||
    reference), jsd GKD's divergence between the two by kl_mix. weight inverse_entropy: EDGE-GRPO's. entropy_share, the
    share of an update's tokens, those with the highest entropy when sampled, that give the policy gradient (TRL's
    top_entropy_quantile; null: all). The divisor of the loss and the divergence are still those of all tokens.

    For denoising steps only: weight, the weight of each in the policy gradient: noise, its std divided by the mean over
    steps (TempFlow-GRPO); inverse_dt, 1 / |dt| as it is (GRPO-Guard); or a factor for each trained step. ratio: centred
    has mean 1 and one scale at all steps (GRPO-Guard's RatioNorm). kl_mask: in place of the clip, the divergence from
    the policy that sampled above which a step gets no gradient that moves it further away (Flow-DPPO: 1e-5).
    guidance_gradient: trains both halves of classifier-free guidance, or the conditional half only, with the other half
    computed without gradient (Flow-GRPO's first SD3 script).

    loss: replaces all of this by a loss on finished samples that are noised again to sampler.levels
    (recipe/keys/noised.py). right, expert, pairs: for tokens only, additional terms (recipe/keys/terms.py). perception:
    for models with picture input, a divergence from the policy under a view of the pictures (recipe/keys/views.py).
    """

    preset: str = key("grpo", "the name of a preset")
    clip: float | list[float] = key(
        1e-4, "a number in (0, 1), or [low, high] with 0 < low <= 1 and high > 0", curve=True
    )
    kl_in: Literal["loss", "reward"] = key("loss", "loss or reward")
    guidance_gradient: Literal["both", "conditional"] = key("both", "both or conditional")
    loss: Loss | None = key(None, "a mapping with kind, or null")
    correction: CorrectionKeys | None = key(None, "a mapping with kind, low, high, reject, ..., or null")
    covariance: CovarianceKeys | None = key(None, "a mapping with kind and share, or null")
    right: RightTerm | None = key(None, "a mapping with coef, least and phi, or null")
    expert: ExpertTerm | None = key(None, "a mapping with source, prompts, coef and phi, or null")
    pairs: PairsTerm | None = key(None, "a mapping with source, prompts, coef, beta, ..., or null")
    perception: PerceptionKeys | None = key(None, "a mapping with view, coef, kl_kind and entropy, or null")

    @property
    def centred(self) -> bool:
        """Whether the loss compares means with those of the rollout, which are then kept."""
        return self.ratio == "centred" or self.kl_mask is not None

    @property
    def clip_range(self) -> tuple[float, float]:
        """(clip_low, clip_high) of the clipped loss."""
        low, high = self.clip if isinstance(self.clip, list) else (self.clip, self.clip)
        return low, high


class OwnObjective(Own):
    """A loss of the user's own (flowrl/parts.py). It knows no preset and no clip range: what is asked of a ratio before
    any update is that of `CLIP`."""

    part: ClassVar[str] = "objective"
    beside: ClassVar[Mapping[str, JSON]] = defaults_of(ObjectiveKeys) | {"centred": False, "clip_range": (CLIP, CLIP)}


class OwnLrSchedule(Own):
    """A schedule of the learning rate of the user's own."""

    part: ClassVar[str] = "lr_schedule"


LrSchedule = name_of("lr_schedule", OwnLrSchedule)


class Train(NoisedTraining):
    """The loop. An iteration draws `group` samples for each of `prompts` prompts, then passes over them `epochs` times.

    updates: optimizer steps per pass; each takes prompts / updates whole groups, or, with update_by steps, the rows
    of some steps of all prompts (a tree per_step; G2RPO). micro_batch: rows a training forward holds at once (auto:
    all, and half as many each time memory runs out), rollout_batch: rows a rollout holds at once (null: all);
    neither changes the result. refill: how often groups without any advantage are replaced by groups of other
    prompts (DAPO's dynamic sampling), each time with one more rollout. keep: train only so many of the rows that are
    compared with each other, half of them with the highest and half with the lowest advantages, which are computed
    among all rows (DanceGRPO's best-of-n; null: all). keep_by: magnitude keeps those whose advantages are farthest
    from 0, whatever their sign, an odd number too (CPPO), smallest those nearest to it (its control), variance those
    that differ most (PODS). keep_fill: draw group / keep times as many prompts, so that as many rows are trained as
    without keep (CPPO's allocation). expand: draw more prompts, so that enough of them have an advantage; resample:
    resample the samples of an iteration by their reward (recipe/keys/terms.py). skip_truncated: completions that end at
    the length limit count in the statistics of their group, not in the loss. seconds: the run ends after the
    iteration in which rollouts, scoring and training reach this time, evaluations and checkpoints not counted; a
    schedule then follows the spent share of this time or of the iterations, whichever is larger (null: no limit).
    optimizer: adamw_fused is one kernel for all weights; adamw_8bit keeps moments in 8 bits by the package
    bitsandbytes. warmup: in optimizer steps. ema: decay of the averaged weights that are evaluated and saved, moved
    every ema_every steps, and at most (1 + n) / (10 + n), where n counts its moves or, by ema_ramp steps, optimizer
    steps (Flow-GRPO); ema_in_host: keep them in host memory. gradient_checkpointing: recompute the activations of
    blocks in the backward pass, of each recompute_every-th block. offload_activations: keep what the backward pass
    needs in host memory until then. drop_silent: leave rows with advantage 0 out of the loss, its divisor and its
    divergence; updates share the other rows evenly (Flow-GRPO's SD3 script). budget: more samples for hard prompts
    (recipe/keys/prompts.py); groups then have unequal sizes. pool: number of neighbouring prompts of an iteration that
    form one group for the advantages (Pair-GRPO's two similar prompts: prompts.shuffle=false, with the two on
    neighbouring lines). store: train completions of earlier iterations again (recipe/keys/terms.py).
    """

    prompts: int = key(4, "a whole number >= 1", ge=1)
    group: int = key(12, "a whole number >= 1", ge=1)
    iterations: int = key(100, "a whole number >= 1", ge=1)
    seconds: float | None = key(None, "a number > 0 or null", gt=0)
    epochs: int = key(1, "a whole number >= 1", ge=1)
    updates: int = key(1, "a whole number >= 1 that divides train.prompts", ge=1)
    update_by: Literal["prompts", "steps"] = key("prompts", "prompts or steps")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = key(None, "a whole number >= 1, auto or null")
    rollout_batch: int | None = key(None, "a whole number >= 1 or null", ge=1)
    refill: int = key(0, "a whole number >= 0", ge=0)
    keep: int | None = key(None, "an even number >= 2 below train.group, or null", ge=1)
    keep_by: Literal["extremes", "magnitude", "smallest", "variance"] = key(
        "extremes", "extremes, magnitude, smallest or variance"
    )
    skip_truncated: bool = key(False, "true or false")
    drop_silent: bool = key(False, "true or false")
    budget: Budget | None = key(None, "a mapping with kind and limit, or null")
    keep_fill: bool = key(False, "true or false")
    expand: Expand | None = key(None, "a mapping with decay and most, or null")
    resample: Resample | None = key(None, "a mapping with by and power, or null")
    pool: int = key(1, "a whole number >= 1 that divides train.prompts", ge=1)
    store: Store | None = key(None, "a mapping with draw, by, size, age and coef, or null")
    lr: float = key(3e-4, "a number > 0", gt=0, curve=True)
    betas: list[float] = key([0.9, 0.999], "two numbers in [0, 1)", min_length=2, max_length=2)
    weight_decay: float = key(1e-4, "a number >= 0", ge=0)
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = key("adamw", "adamw, adamw_fused or adamw_8bit")
    adam_epsilon: float = key(1e-8, "a number > 0", gt=0)
    warmup: int = key(0, "a whole number >= 0", ge=0)
    schedule: LrSchedule = key("constant", choices_of("lr_schedule"))  # pyright: ignore[reportInvalidTypeForm]
    max_grad_norm: float | None = key(1.0, "a number > 0 or null", gt=0)
    ema: float | None = key(None, "a number in (0, 1) or null", gt=0, lt=1)
    ema_every: int = key(1, "a whole number >= 1", ge=1)
    ema_ramp: Literal["moves", "steps"] = key("moves", "moves or steps")
    ema_in_host: bool = key(False, "true or false")
    gradient_checkpointing: bool = key(False, "true or false")
    recompute_every: int = key(1, "a whole number >= 1", ge=1)
    offload_activations: bool = key(False, "true or false")

    @property
    def micro_rows(self) -> int | None:
        """The rows that a training forward begins with at once; None: all of an update."""
        return self.micro_batch if isinstance(self.micro_batch, int) else None

    @property
    def drawn(self) -> int:
        """The prompts of an iteration: those named; with keep_fill so many that as many samples are trained."""
        return self.prompts * self.group // self.keep if self.keep_fill and self.keep else self.prompts


class EvaluationKeys(Strict):
    """Evaluations on held-out prompts; a denoiser samples by the ODE, each sample with its own fixed noise.

    every: iterations between two evaluations (null: none in between). every_seconds: also after each iteration in
    which the time that train.seconds counts passes a multiple of this. prompts: how many of the held-out prompts
    (null: all). steps: ODE steps of `solver`; null: sampler.steps. temperature: for language models only; 0 is
    greedy, null is generation.temperature. samples: number per prompt, whose mean is its score; if scores are 0 or
    1, REWARD/pass@k is the probability that one of k is right, and for texts REWARD/majority the score of the most
    frequent answer. batch: prompts at once. grid: how many prompts are shown with pictures or texts. best: the
    reward whose highest held-out mean determines the best evaluation and checkpoint (null: the trained total). It
    may be a witness: RPO stops by another reward than it trains on.
    """

    every: int | None = key(20, "a whole number >= 1 or null", ge=1)
    every_seconds: float | None = key(None, "a number > 0 or null", gt=0)
    prompts: int | None = key(None, "a whole number >= 1 or null", ge=1)
    steps: int | None = key(None, "a whole number from 1 to 10000, or null", ge=1, le=10_000)
    solver: Solver = key("euler", SOLVER_WORDS)  # pyright: ignore[reportInvalidTypeForm]
    temperature: float | None = key(None, "a number >= 0 or null", ge=0)
    samples: int = key(1, "a whole number >= 1", ge=1)
    batch: int = key(64, "a whole number >= 1", ge=1)
    at_start: bool = key(True, "true or false")
    at_end: bool = key(True, "true or false")
    grid: int = key(16, "a whole number >= 0", ge=0)
    best: str | None = key(None, "the name of a reward, or null", min_length=1)


class CheckpointKeys(Strict):
    """Checkpoints, from which a run resumes. every: iterations between two (null: none in between); there is always
    one at the end, at a new best held-out reward and on SIGINT or SIGTERM. keep: how many of the newest are kept,
    beside the best.
    """

    every: int | None = key(20, "a whole number >= 1 or null", ge=1)
    keep: int = key(2, "a whole number >= 1", ge=1)


class OwnPolicy(Own):
    """A policy of the user's own, made with what the one that it extends is made with, and its own arguments."""

    part: ClassVar[str] = "policy"


class Recipe(Curved):
    """A whole run. Exactly one of `lora` and `full: true` says what learns. output null: runs/<name of the recipe>.

    With `generation` the model is a language model, its decisions are tokens, and neither `pipeline` nor `sampler` is
    read (`load` refuses them). freeze: what `full: true` leaves as it is: `tower` (all that reads pictures, videos and
    sounds, as transformers names it), or `match:` and a regular expression for whole names of weights.
    environment: what a language model talks to in several turns (recipe/keys/environment.py).
    encode_ahead: with offload, of how many iterations the prompts are encoded whenever encoders come to the device, and
    of how many batches of an evaluation.
    roles: several adapters of one that answer together (recipe/keys/roles.py). parallel: several processes that train
    together. critic: of language models, what gives values
    to advantage.credit. Where a key has a curve, the recipe holds its first value, and `at` gives the others. policy:
    a class of the user's own in place of the kind's policy, which it extends. phases: parts of the run that differ in
    some values (recipe/keys/phases.py); train.iterations is then their sum, unless it ends the run before.
    """

    model: str = key(
        ...,
        "shapes-flux, arithmetic-qwen2, look-llava, a hub id owner/name, a model's folder, or gguf:FILE",
        min_length=1,
    )
    pipeline: dict[str, JSON] = key({}, "a mapping of the pipeline's own __call__ arguments")
    lora: Lora | None = key(None, "a mapping with rank, alpha, targets, modules, init, or null")
    full: bool = key(False, "true or false")
    freeze: list[str] = key([], "a list of tower and match:REGEX")
    policy: only_own(OwnPolicy) | None = key(None, "a dotted path to a policy, or null")  # pyright: ignore
    prompts: Prompts = key(..., "a mapping with train and heldout")
    sampler: Sampler = part(Sampler)
    generation: GenerationKeys | None = key(None, "a mapping with max_new_tokens, temperature, top_k, top_p, or null")
    environment: EnvironmentKeys | None = key(None, "a mapping with tools or use, turns, ..., or null")
    views: dict[str, ViewKeys] = key({}, "names mapped to {kind, draws, beside, ...}")
    roles: Roles | None = key(None, "a mapping with names, rounds, ask, share, ..., or null")
    rollout: RolloutKeys = part(RolloutKeys)
    rewards: dict[str, RewardSpec] = key(..., "names mapped to {use, weight, args, ...}", min_length=1)
    advantage: open_to(Advantage, OwnAdvantage) = part(Advantage)  # pyright: ignore[reportInvalidTypeForm]
    objective: open_to(ObjectiveKeys, OwnObjective) = part(ObjectiveKeys)  # pyright: ignore[reportInvalidTypeForm]
    reference: OneOrSeveral = part(ReferenceKeys, "a mapping with use, path, pipeline, steps, when, or a list of them")
    parallel: ParallelKeys = part(ParallelKeys)
    critic: CriticKeys | None = key(None, "a mapping with use, lr, clip, epochs, updates, warmup, or null")
    train: Train = part(Train)
    eval: EvaluationKeys = part(EvaluationKeys)
    checkpoint: CheckpointKeys = part(CheckpointKeys)
    watch: Watch = part(Watch)
    track: Track = part(Track)
    dtype: Dtype = part(Dtype)
    device: str = key("auto", "auto, cpu, mps, cuda or cuda:N (or xpu, npu)", pattern=rf"^(auto|{DEVICE})$")
    quantize: QuantizeKeys | None = key(None, "a mapping with weights, skip, file, or null")
    block_offload: bool = key(False, "true or false")
    attention: AttentionKeys | None = key(None, "a mapping with backend, or null")
    compile: CompileKeys | None = key(None, "a mapping with mode, regional and backend, or null")
    vae: VaeKeys = part(VaeKeys)
    threads: int | None = key(None, "a whole number >= 1 or null", ge=1)
    offload: bool = key(False, "true or false")
    encode_ahead: int = key(1, "a whole number >= 1", ge=1)
    seed: int = key(0, "a whole number in [0, 2^32)", ge=0, lt=2**32)
    output: str | None = key(None, "a folder", min_length=1)

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps of an iteration."""
        return self.train.epochs * self.train.updates

    @property
    def references(self) -> list[ReferenceKeys]:
        """The references, of which the first whose `when` fits a prompt looks at its samples."""
        return self.reference if isinstance(self.reference, list) else [self.reference]

    @property
    def keeps_reference(self) -> bool:
        """Whether a run keeps a copy of the weights that it begins with, as no adapters can be switched off."""
        return self.full and self.reads_reference and any(one.use == "base" for one in self.references)

    @property
    def reads_reference(self) -> bool:
        """Whether the loss reads something of the reference, at some time of the run."""
        pays = any(phase.objective.kl > 0 or "objective.kl" in phase.curves for phase in self.parts())
        pays = pays or any(getattr(phase.objective, "pairs", None) is not None for phase in self.parts())
        losses = [phase.objective.loss for phase in self.parts()]
        return pays or any(loss is not None and loss.reads_reference for loss in losses)

    @property
    def scores_train(self) -> bool:
        """Whether some reward counts, so that samples of training have to be scored."""
        return any(spec.weight for spec in self.rewards.values())
