"""The keys of what draws samples otherwise than it trains, of corrections for that, and of covariances.

Choices repeat those of flowrl/core/objectives/correction.py and covariance.py, which say what they do; a test holds
them together.
"""

from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.keys.engines import EngineKeys


class RolloutKeys(Strict):
    """How a model draws, apart from what is drawn; dtype, batch_invariant, cache and engine are of language models.

    dtype: samples of training come from a copy of the model in this precision, made anew for each rollout; looks and
    evaluations use the model itself. It stands for an inference engine: objective.correction is made for what then
    differs (null: the model draws). int8 is of linear layers, on the CPU. batch_invariant: each row goes through the
    model alone, so that its tokens and log-probs are the same bits in any batch; slower by as much. cache: false has
    each token read all before it again, for a model whose key-value cache gives other numbers than reading at once;
    static keeps keys and values in buffers of fixed size and compiles the step of a token, as CUDA graphs on a GPU.
    engine: a server that draws in the place of the model (recipe/keys/engines.py). merge, of pipelines too: adapters
    are merged into the weights while samples are drawn, of training and of evaluations (recipe/checks/merging.py);
    auto: on a GPU, in float32 or where objective.correction takes log-probs again.
    """

    dtype: Literal["bfloat16", "float16", "int8"] | None = key(None, "bfloat16, float16, int8 or null")
    batch_invariant: bool = key(False, "true or false")
    cache: Literal["static"] | bool = key(True, "true, false or static")
    engine: EngineKeys | None = key(None, "a mapping with use and url, or null")
    merge: Literal["auto"] | bool = key("auto", "auto, true or false")


class RejectionKeys(Strict):
    """Decisions, or rows, that leave the loss as who sampled and who trains are too far apart.

    by: k1 bounds the ratio of who trains to who sampled itself by low and high (low null: 1 / high); k2 and k3, its
    half squared logarithm and Schulman's estimate of the divergence, are bounded by high. level: of a decision, or the
    sum, mean or largest of its row. keeps: what is rejected still counts in what the loss is divided by.
    """

    by: Literal["k1", "k2", "k3"] = key(..., "k1, k2 or k3")
    level: Literal["token", "seq_sum", "seq_mean", "seq_max"] = key("token", "token, seq_sum, seq_mean or seq_max")
    high: float = key(..., "a number > 0", gt=0)
    low: float | None = key(None, "a number > 0, or null", gt=0)
    keeps: bool = key(False, "true or false")


class CorrectionKeys(Strict):
    """What is done about samples of another policy than the one that trains. With it, the ratio of the loss is to the
    log-probs of the training model before an update (decoupled PPO), for which each row is looked at once more.

    kind: none, or by w, the probability under who trains over that under who sampled: tis, decisions weighted by w up
    to high; seq_tis, by the product over their row; icepop, w where it is within low and high, else 0; seq_mis, the
    product likewise; seq_mask, w, and 0 in rows whose geometric mean is outside; mis, w, and decisions outside leave
    the loss and what it is divided by. low, high: the bounds (null: those of the kind). level: of w, token, seq_sum or
    seq_mean (null: that of the kind). normalise: weights are divided by their mean. reject: a list of rejections. veto:
    rows with any w below it leave the loss. bypass: the ratio is to who sampled after all, with kind none.
    """

    kind: Literal["none", "tis", "seq_tis", "icepop", "seq_mis", "seq_mask", "mis"] = key(
        "tis", "none, tis, seq_tis, icepop, seq_mis, seq_mask or mis"
    )
    low: float | None = key(None, "a number >= 0, or null", ge=0)
    high: float | None = key(None, "a number > 0, or null", gt=0)
    level: Literal["token", "seq_sum", "seq_mean"] | None = key(None, "token, seq_sum, seq_mean or null")
    normalise: bool = key(False, "true or false")
    reject: list[RejectionKeys] = key([], "a list of {by, level, high, low, keeps}")
    veto: float | None = key(None, "a number > 0, or null", gt=0)
    bypass: bool = key(False, "true or false")


class CovarianceKeys(Strict):
    """Decisions whose log-prob and advantage vary together, as sampled, by which a policy loses its entropy.

    kind: clip, a share of those with a covariance between low and high gets no policy gradient (Clip-Cov); kl, the
    share of the largest pays coef times |log-ratio| (KL-Cov, with objective.gate=ratio). share: of all decisions.
    """

    kind: Literal["clip", "kl"] = key(..., "clip or kl")
    share: float = key(2e-4, "a number > 0 and <= 1", gt=0, le=1)
    low: float = key(1.0, "a number")
    high: float = key(5.0, "a number above low")
    coef: float = key(1.0, "a number >= 0", ge=0)
