"""Losses of preferences: of two samples, or of two texts, one is better.

Everything here is one formula, the Bradley-Terry likelihood of a margin in which the reference policy takes part (DPO,
arXiv:2305.18290, eq. 7). What differs is what stands in the margin: errors of a denoiser, or log-probabilities of
tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def preference_loss(margin: Tensor, label: float | Tensor = 1.0) -> Tensor:
    """-label log sigmoid(margin) - (1 - label) log sigmoid(-margin), the same shape as margin.

    label: probability that the first of the pair is the better one; 1 - label is the smoothing of labels (cDPO).
    """
    return -label * functional.logsigmoid(margin) - (1 - label) * functional.logsigmoid(-margin)


def implicit_rewards(error: Tensor, reference: Tensor, beta: float | Tensor) -> Tensor:
    """-(beta / 2) (error - reference), in the shape of error: the reward that a denoiser's errors stand for.

    error, reference: mean squares over elements, of the policy, with gradient, and of the reference. The margin of a
    pair is the difference of two of them. Diffusion-DPO (arXiv:2311.12908) with errors of epsilon, its T taken into
    beta; Flow-DPO (VideoAlign, arXiv:2501.13918) with errors of the velocity. Published betas, of this reduction:
    Diffusion-DPO 5000, Flow-Factory 2000, Flow-GRPO 100.
    """
    return -(beta / 2) * (error - reference.detach())


def beta_of_epsilon(beta: float, signal: float | Tensor, unit: float | Tensor = 1.0) -> float | Tensor:
    """beta (a / u)^2: what makes errors of the velocity weigh as those of epsilon.

    signal a: the share of x_0 in x = a x_0 + s eps. unit u: 1 on the path of a flow, where a = 1 - s, and a + s where
    variance is preserved. As eps = (x + a v) / u for v = eps - x_0, the error of epsilon is (a / u)^2 times that of the
    velocity, so that this is Diffusion-DPO's loss in terms of velocities. VideoAlign (arXiv:2501.13918) finds a
    constant beta better for flows.
    """
    return beta * (signal / unit) ** 2


def gap_factor(gap: Tensor) -> Tensor:
    """2 sigmoid(gap) - 1, in the shape of gap: how much a pair counts whose rewards lie so far apart, 0 for none.

    PNAPO (arXiv:2605.09433) multiplies beta by it, and by another factor that falls from 1 to 1/2 during training.
    """
    return 2 * torch.sigmoid(gap) - 1


def pair_loss(implicit: Tensor, label: float | Tensor = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of pairs [p], better sample first, from their implicit rewards [p, 2], and metrics.

    Metrics [p]: margin, implicit_accuracy (1 where the implicit rewards agree with the preference).
    """
    margin = implicit[:, 0] - implicit[:, 1]
    detached = margin.detach()
    return preference_loss(margin, label), {"margin": detached, "implicit_accuracy": (detached > 0).to(detached.dtype)}


def rpo_loss(
    error: Tensor, reference: Tensor, label: Tensor, *, beta: float = 1.0, sft: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of RPO, [p]: imitation of the given sample, and the preference between it and one that was drawn.

    error, reference [p, 2]: mean squares over elements, of the policy, with gradient, and of the reference; the given
    sample of each pair comes first. label [p]: whether that one is preferred, or with which probability.
        loss = sft error_given - label log sigmoid(m) - (1 - label) log sigmoid(-m),
        m = beta ((reference_given - error_given) - (reference_drawn - error_drawn))
    Source: RPO (arXiv:2407.12164, its code, in which beta is 1 and is not halved, whatever its argument says).

    Metrics [p]: those of `pair_loss`, similarity (the error of the given sample).
    """
    loss, metrics = pair_loss(implicit_rewards(error, reference, 2 * beta), label)
    return loss + sft * error[:, 0], metrics | {"similarity": error[:, 0].detach(), "preference": loss.detach()}


def token_margin(
    ratio: Tensor, other: Tensor, *, beta: float, weight: Tensor | None = None, other_weight: Tensor | None = None
) -> Tensor:
    """beta (weight * ratio - other_weight * other) of each position, [b, k].

    ratio, other [b, k]: log-ratios to the reference of the better and of the worse text, position by position, 0 where
    padded. Weights [b, k] (None: 1).
    """
    ratio = ratio if weight is None else weight * ratio
    other = other if other_weight is None else other_weight * other
    return beta * (ratio - other)


def opa_dpo_loss(
    policy: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
    coefs: tuple[float, float, float] = (1.0, 1.0, 0.2),
    anchor: float = 0.0,
    anchor_coef: float = 1.0,
    mdpo: bool = True,
    weights: Mapping[str, Tensor | None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """OPA-DPO on five texts of one question, by position: loss [b, k], whose plain mean is the published one.

    policy, reference: log-probs [b, k], 0 where padded, of `gt` (the expert's answer), `orig` (the policy's own),
    `revised` (its own, corrected), and of gt_masked_img and revised_masked_img, the same texts beside a masked picture.
    Pairs: gt > orig, revised > orig, gt > gt_masked_img and revised > revised_masked_img; coefs: of pairs with gt, of
    pairs with revised, and a factor of the two with a masked picture. smoothing: of labels. weights [b, k] (None or
    absent: 1): revised and orig weigh the second pair, image both sides of the fourth.
    The anchor holds the better text of each pair at beta log-ratio = anchor: by -log sigmoid of the distance (mdpo), in
    which the published code turns the sign for the revised ones, or by its square. A padded position adds log 2 to
    each term: published means count it.
    Source: OPA-DPO (arXiv:2501.09695, its code).

    Metrics [b, k]: pair_0 to pair_3, anchor.
    """
    ratio = {name: policy[name] - reference[name].detach() for name in policy}
    given = weights or {}
    expert, revised, masked = coefs
    pairs = [
        (expert, "gt", "orig", None, None),
        (revised, "revised", "orig", given.get("revised"), given.get("orig")),
        (expert * masked, "gt", "gt_masked_img", None, None),
        (revised * masked, "revised", "revised_masked_img", given.get("image"), given.get("image")),
    ]
    loss, held, metrics = torch.zeros(()), torch.zeros(()), {}
    for number, (coef, better, worse, weight, other) in enumerate(pairs):
        margin = token_margin(ratio[better], ratio[worse], beta=beta, weight=weight, other_weight=other)
        part = preference_loss(margin, 1 - smoothing)
        loss, metrics[f"pair_{number}"] = loss + coef * part, part.detach()
        distance = beta * ratio[better] - anchor
        sign = -1 if better == "revised" else 1
        held = held + (preference_loss(sign * distance) if mdpo else distance.square())
    return loss + anchor_coef * held, metrics | {"anchor": held.detach()}
