"""Losses of the forward process: a finished sample is noised again, and the model's estimate there is rewarded.

Nothing of how a sample was drawn is needed: any solver may have drawn it, and any noise level may be asked about. One
look at a sample gives the model's estimate, that of older weights and the truth; the losses here differ only in how
they combine these numbers with an advantage. All are [r], one a row, and the caller averages them.

Errors are means over all elements of a row, as `mean_square` makes them. beta, clip ranges and coefficients belong to
this reduction: with sums over elements they would be other numbers.
"""

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.core.objectives.divergence import at_least_float32

MODES = ("all", "positive_only", "negative_only", "binary", "one_only")
WEIGHTINGS = ("uniform", "t", "t2", "huber", "ghuber")
MATCHES = ("mse", "bce")


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of each row, [r] float32 or wider, of x [r, ...]."""
    return at_least_float32(x).square().flatten(1).mean(1)


def mean_size(x: Tensor, least: float) -> Tensor:
    """Mean of the absolute values of each row, [r] without gradient, and at least `least`; added up in float64."""
    return x.detach().double().abs().flatten(1).mean(1).clamp(min=least).to(x.dtype)


def reward_probability(adv: Tensor, *, clip: float = 5.0, mode: str = "all") -> Tensor:
    """The probability [r] in [0, 1] that a sample is a good one, from its advantage [r]: 0.5 where that is 0.

    clip: the advantage at which the probability is 0 or 1. mode: all; positive_only and negative_only put the other
    sign at 0; binary reads the sign alone, one_only whether it is positive, both as an advantage of 1.
    Source: DiffusionNFT (arXiv:2509.16117, its code). Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"adv_mode {mode!r}: choose one of {', '.join(MODES)}")
    kept = adv.clamp(-clip, clip)
    chosen = {
        "all": kept,
        "positive_only": kept.clamp(min=0),
        "negative_only": kept.clamp(max=0),
        "binary": kept.sign(),
        "one_only": (kept > 0).to(kept.dtype),
    }
    return (chosen[mode] / clip / 2 + 0.5).clamp(0, 1)


def nft_loss(
    clean: Tensor,
    old: Tensor,
    truth: Tensor,
    probability: Tensor,
    *,
    beta: float = 1.0,
    scale: float = 5.0,
    least: float = 1e-5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative-aware fine-tuning: good samples pull the model's estimate, bad ones pull its mirror image. loss [r].

    clean, old [r, ...]: estimates of x_0 of the policy, with gradient, and of the older one; truth [r, ...]: the sample
    itself; probability [r]: see `reward_probability`.
        positive = beta clean + (1 - beta) old,   negative = (1 + beta) old - beta clean
        loss = scale / beta (p |positive - truth|^2 / w+ + (1 - p) |negative - truth|^2 / w-)
    with squares averaged over elements and w = mean |estimate - truth| of the row, without gradient and at least
    `least`. Source: DiffusionNFT (arXiv:2509.16117, its code, where `scale` is the limit of the advantages). It mixes
    velocities, in which the estimates of x_0 are linear.

    Metrics [r]: positive, negative (the two squares over w), before scale / beta.
    """
    old = old.detach()
    sides = []
    for estimate in (beta * clean + (1 - beta) * old, (1 + beta) * old - beta * clean):
        gap = at_least_float32(estimate - truth)
        sides.append(mean_square(gap) / mean_size(gap, least))
    positive, negative = sides
    loss = scale / beta * (probability * positive + (1 - probability) * negative)
    return loss, {"positive": positive.detach(), "negative": negative.detach()}


def awm_log_prob(error: Tensor, level: Tensor, *, weighting: str = "uniform", power: float = 0.25) -> Tensor:
    """A stand-in for the log-probability of a sample: less the weighted error of the velocity. [r], float64.

    error [r]: mean square of the velocity's error; level [r] in [0, 1]: noise level, t below.
    weighting: uniform; t; t2 = t^2; huber = (sqrt(error + 1e-10) - 1e-5) t; ghuber =
    ((error + 1e-10)^power - 1e-10^power) t / power. Source: advantage-weighted matching (arXiv:2509.25050, its code).
    Raises ValueError for another weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}")
    e, t, tiny = error.double(), level.to(error.device, torch.float64), 1e-10
    if weighting == "ghuber":
        return -((e + tiny) ** power - tiny**power) * t / power
    if weighting == "huber":
        return -((e + tiny).sqrt() - tiny**0.5) * t
    return -e * {"uniform": torch.ones_like(t), "t": t, "t2": t * t}[weighting]


def elbo_weight(level: Tensor) -> Tensor:
    """1 / (2 g^2) with g = 0.7 sqrt(t / (1 - min(t, 0.99))), of levels t [r]: what AWM's code weighs divergences by.

    It turns the mean squared difference of two velocities into the divergence of their SDE steps per unit of time.
    """
    return (1 - level.clamp(max=0.99)) / (2 * 0.49 * level)


def moved_away(error: Tensor, old: Tensor, adv: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """(bool [r]: rows whose ratio has left 1 +- clip the way their advantage wishes, the ratio [r]), no gradient.

    error, old [r]: of the policy and of the older one; ratio = exp(old - error). The clip of DGPO (arXiv:2510.08425,
    its code): such rows give no gradient. An advantage of 0 counts as negative.
    """
    ratio = (old - error).detach().exp()
    return torch.where(adv > 0, ratio > 1 + clip, ratio < 1 - clip), ratio


def dgpo_loss(
    error: Tensor,
    reference: Tensor,
    adv: Tensor,
    group: Tensor,
    *,
    beta: float,
    size: int,
    held: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct group preference: DPO between the better and the worse part of each group. loss [r].

    error, reference [r]: mean square of the velocity's error, of the policy, with gradient, and of the reference; adv
    [r]; group int64 [r]: rows of one prompt, all at the same level and noise; size: samples of a group; held bool [r]:
    rows that give no gradient (see `moved_away`).
        W = sigmoid(sum over the group of adv beta (error - reference) / size),   loss = W adv error
    without gradient through W. Source: DGPO (arXiv:2510.08425, its code).

    Metrics [r]: group_sum (inside the sigmoid), group_weight.
    """
    total = group_sum(adv * beta * (error - reference).detach() / size, group)
    trained = error if held is None else torch.where(held, error.detach(), error)
    weight = total.sigmoid()
    return weight * adv * trained, {"group_sum": total, "group_weight": weight}


def crd_loss(
    implicit: Tensor,
    probability: Tensor,
    group: Tensor,
    *,
    beta: float = 1.0,
    temperature: float = -1.0,
    match: str = "mse",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Centred reward distillation: the implicit reward, less its centre, is to be the reward less its own. loss [r].

    implicit [r], with gradient: by how much the policy's error lies below the older one's; probability [r]: the reward,
    see `reward_probability`; group int64 [r]: rows that are centred together. The centre is a weighted mean, without
    gradient. temperature < 0: of equal weights. > 0: once of softmax(probability / T) and once of
    softmax(-probability / T), and the loss is the mean of the two. 0: softmax(probability) over the rows above 0 and
    over those below 0; equal weights where there are none, as below 0 always, which is how the published code has it.
    match: mse = (beta implicit_c - probability_c)^2; bce = cross entropy of the logit beta implicit_c against
    sigmoid(probability_c). Source: CRD (arXiv:2603.14128), as in Flow-Factory. Raises ValueError for another match.

    Metrics [r]: implicit.
    """
    if match not in MATCHES:
        raise ValueError(f"match {match!r}: choose one of {', '.join(MATCHES)}")
    losses = []
    for sign in (1,) if temperature < 0 else (1, -1):
        weight = _centre_weights(probability, group, temperature, sign)
        wanted = probability - group_sum(weight * probability, group)
        said = beta * (implicit - group_sum(weight * implicit.detach(), group))
        if match == "mse":
            losses.append((said - wanted).square())
        else:
            losses.append(functional.binary_cross_entropy_with_logits(said, wanted.sigmoid(), reduction="none"))
    return sum(losses) / len(losses), {"implicit": implicit.detach()}  # pyright: ignore[reportReturnType]


def implicit_reward(gap: Tensor, old_gap: Tensor, *, adaptive: bool = True, least: float = 1e-5) -> Tensor:
    """By how much the policy's error lies below the older one's, [r] with gradient.

    gap, old_gap [r, ...]: estimate less truth. adaptive: each squared error is divided by the mean absolute error of
    its own row, without gradient and at least `least`.
    """
    errors = [mean_square(g) / (mean_size(g, least) if adaptive else 1.0) for g in (gap, old_gap.detach())]
    return errors[1] - errors[0]


def adaptive_divergence(probability: Tensor, coef: float) -> Tensor:
    """Factor [r] of a divergence with this coefficient: from 1e-4 / coef for the worst rows to 1 for the best.

    CRD's reward-adaptive divergence: p + (1 - p) 1e-4 / coef.
    """
    least = 1e-4 / coef
    return least + probability * (1 - least)


def reward_weight(reward: Tensor, temperature: float) -> Tensor:
    """exp(reward / temperature) [r], which a sample's error is multiplied by: reward-weighted regression.

    Flow-RWR of VideoAlign (arXiv:2501.13918); the weights are not normalised.
    """
    return (reward / temperature).exp()


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """The sum of the group of each row, [r]."""
    _, index = group.to(values.device).unique(return_inverse=True)
    return values.new_zeros(int(index.max()) + 1).index_add_(0, index, values)[index]


def _centre_weights(probability: Tensor, group: Tensor, temperature: float, sign: int) -> Tensor:
    """Weights [r] that add up to 1 in each group."""
    weights = torch.empty_like(probability)
    for label in group.unique():
        mine = (group == label).to(probability.device)
        of = probability[mine]
        logits = torch.zeros_like(of)
        if temperature > 0:
            logits = sign * of / temperature
        elif temperature == 0 and (sign * of > 0).any():
            logits = of.where(sign * of > 0, -torch.inf)
        weights[mine] = logits.softmax(0)
    return weights
