"""Presets of tokens alone: a recipe with `generation`.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
cispo    every decision keeps its gradient, weighted by its ratio up to a limit: CISPO (arXiv:2506.13585, eq. 4); mean
         over decisions, sample std + 1e-4. The paper bounds ratios from above only and names no number: up to 5, as
         ScaleRL (arXiv:2510.13786). For tokens.
vespo    the log-prob times a weight that falls off softly as the ratio of the row leaves 1: VESPO (arXiv:2602.10693),
         the numbers of TRL; sample std + 1e-4, mean over decisions. For tokens.
aspo     where the advantage is positive, decisions count by the inverse of their ratio: asymmetric importance sampling
         (arXiv:2510.06062), its code; dual 3, grpo's clip, sample std + 1e-6, mean over decisions. For tokens.
opo      a baseline in which samples count by their length, no std, log-probs without a ratio: OPO (arXiv:2505.23585),
         its exact on-policy update; mean over decisions. For tokens.
opmd     baseline log(mean(exp(reward))) of the group, no std, log-probs without a ratio, loss halved (1 / (1 + tau),
         tau 1): OPMD (arXiv:2505.17826), with a pull to the policy that sampled left out. For tokens.
gpg      log-probs without a ratio, group mean over the share of rewards that are not 0: GPG (arXiv:2504.02546), as in
         verl; mean over decisions. For tokens.
pass_k   the advantage of the chance that one of advantage.k = 4 answers is right, in closed form: Pass@k training
         (arXiv:2508.10751); clip 0.2, mean over decisions. Rewards are 0 or 1. For tokens.
rf_base  group mean, whitened over the decisions of the batch: REINFORCE++-baseline (arXiv:2501.03262); clip 0.2, mean
         over decisions; the paper adds a KL of kind k2. For tokens.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.values import SUMMED, Values

LANGUAGE: dict[str, Values] = {
    "cispo": {
        "objective": {"clip": [1.0, 4.0], "gate": "is_clip", "kl_kind": "k3"},
        "advantage": SUMMED,
    },
    "vespo": {
        "objective": {"clip": 0.2, "gate": "gamma", "level": "seq_sum", "kl_kind": "k3"},
        "advantage": SUMMED,
    },
    "aspo": {
        "objective": {"clip": 0.2, "gate": "inverse", "dual": 3.0, "kl_kind": "k3"},
        "advantage": SUMMED | {"eps": 1e-6},
    },
    "opo": {
        "objective": {"clip": 0.2, "gate": "pg", "kl_kind": "k3"},
        "advantage": SUMMED | {"baseline": "length_weighted", "scale": "none"},
    },
    "opmd": {
        "objective": {"clip": 0.2, "gate": "pg", "kl_kind": "k3"},
        "advantage": SUMMED | {"baseline": "log_mean_exp", "scale": "none", "factor": 0.5},
    },
    "gpg": {
        "objective": {"clip": 0.2, "gate": "pg", "kl_kind": "k3"},
        "advantage": SUMMED | {"scale": "nonzero"},
    },
    "pass_k": {"objective": {"clip": 0.2, "kl_kind": "k3"}, "advantage": SUMMED | {"baseline": "pass_at_k"}},
    "rf_base": {"objective": {"clip": 0.2, "kl_kind": "k3"}, "advantage": SUMMED | {"scale": "whiten_by_length"}},
}
