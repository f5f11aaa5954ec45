"""Terms beside the objective of a language model: likelihood of right answers and an expert's, preferences; a store."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class RightTerm(Strict):
    """coef times the mean of -phi(p) log p over the tokens of samples whose remembered reward (prompts.remember) is at
    least `least`: VAPO's term on right answers (arXiv:2504.05118: 0.1). phi: one, p or uncertain, p (1 - p)."""

    coef: float = key(0.1, "a number >= 0", ge=0, curve=True)
    least: float = key(1.0, "a number")
    phi: Literal["one", "p", "uncertain"] = key("one", "one, p or uncertain")


class ExpertTerm(Strict):
    """The likelihood of an expert's answers from a file of prompts and completions, `prompts` of them an iteration.

    The loss is (1 - coef) times the objective + coef times the mean of -phi(p) log p over their tokens: CHORD
    (arXiv:2508.11408), whose coefficient, mu, follows a curve, and whose phi is uncertain, p (1 - p). source: a .jsonl
    file with prompt and completion.
    """

    source: str | None = key(None, "a .jsonl file", min_length=1)
    prompts: int = key(8, "a whole number >= 1", ge=1)
    coef: float = key(0.1, "a number from 0 to 1", ge=0, le=1, curve=True)
    phi: Literal["one", "p", "uncertain"] = key("uncertain", "one, p or uncertain")


class PairsTerm(Strict):
    """Preferences between two texts of a prompt from a file, `prompts` of them an iteration, beside the rewards.

    coef times (pair * DPO + bco * BCO + likelihood * -log p of the better text): the mixture of MPO (arXiv:2411.10442),
    whose log-ratios are those to the reference, times beta. source: a .jsonl file with prompt, chosen and rejected.
    """

    source: str | None = key(None, "a .jsonl file", min_length=1)
    prompts: int = key(8, "a whole number >= 1", ge=1)
    coef: float = key(0.1, "a number >= 0", ge=0, curve=True)
    beta: float = key(0.1, "a number > 0", gt=0)
    pair: float = key(0.8, "a number >= 0", ge=0)
    bco: float = key(0.2, "a number >= 0", ge=0)
    likelihood: float = key(1.0, "a number >= 0", ge=0)


class Store(Strict):
    """Completions of earlier iterations that are trained again, by the objective itself, with the advantages and the
    log-probs that they had.

    draw: so many an iteration. by: in proportion to |advantage|, as the selective sample buffer of Skywork R1V2
    (arXiv:2504.16656), or uniform. size: the most that are kept, age: for how many iterations; keep: of more, the
    newest, or those of the largest |advantage| (TRL's replay buffer). coef: coefficient of their loss, a mean over
    their tokens.
    """

    draw: int = key(..., "a whole number >= 1", ge=1)
    by: Literal["advantage", "uniform"] = key("advantage", "advantage or uniform")
    size: int = key(1024, "a whole number >= 1", ge=1)
    age: int = key(8, "a whole number >= 1", ge=1)
    keep: Literal["newest", "largest"] = key("newest", "newest or largest")
    coef: float = key(1.0, "a number > 0", gt=0, curve=True)


class Resample(Strict):
    """Before anything learns, as many samples as were drawn are drawn anew from them, with replacement: PF-PPO
    (arXiv:2409.06957). A sample then counts as often as it comes, and one that does not come not at all.

    by: the chance of each is |reward| ** power (pow); 1 for those of the highest and of the lowest reward of the
    iteration, 0 for others (max_min); or 0.4 for the highest, 0.1 for others (max_random). The reward is their weighted
    sum, or what prompts.remember names.
    """

    by: Literal["pow", "max_min", "max_random"] = key("pow", "pow, max_min or max_random")
    power: float = key(2.0, "a number > 0", gt=0)


class Expand(Strict):
    """More prompts than train.prompts are drawn, so that enough of their groups have an advantage; of these the first
    train.prompts are trained: the expansion ratio of RLCS (GLM-4.5V, arXiv:2507.01006).

    The ratio begins at 1 and moves by 1 - decay towards drawn / with an advantage of each iteration; it acts up to
    `most`, and is part of the checkpoint.
    """

    decay: float = key(0.9, "a number in [0, 1)", ge=0, lt=1)
    most: float = key(4.0, "a number > 1", gt=1)
