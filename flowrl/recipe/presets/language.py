"""Presets of tokens alone: a recipe with `generation`.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
cispo    every decision keeps its gradient, weighted by its ratio up to a limit: CISPO (arXiv:2506.13585, eq. 4); mean
         over decisions, sample std + 1e-4. The paper bounds ratios from above only and names no number: up to 5, as
         ScaleRL (arXiv:2510.13786). For tokens.
vespo    the log-prob times a weight that falls smoothly as the ratio of the row leaves 1: VESPO (arXiv:2602.10693), the
         numbers of TRL; sample std + 1e-4, mean over decisions. For tokens.
aspo     where the advantage is positive, decisions count by the inverse of their ratio: asymmetric importance sampling
         (arXiv:2510.06062), its code; dual 3, grpo's clip, sample std + 1e-6, mean over decisions. For tokens.
opo      a baseline that weights samples by their length, no std, log-probs without a ratio: OPO (arXiv:2505.23585), its
         exact on-policy update; mean over decisions. For tokens.
opmd     baseline log(mean(exp(reward))) of the group, no std, log-probs without a ratio, loss halved (1 / (1 + tau),
         tau 1): OPMD (arXiv:2505.17826), without its penalty towards the policy that sampled. For tokens.
gpg      log-probs without a ratio, group mean over the share of rewards that are not 0: GPG (arXiv:2504.02546), as in
         verl; mean over decisions. For tokens.
pass_k   the advantage from the probability that one of advantage.k = 4 answers is right, in closed form: Pass@k
         training (arXiv:2508.10751); clip 0.2, mean over decisions. Rewards are 0 or 1. For tokens.
dpo      makes the better of two texts of a prompt likelier than the worse one, relative to the reference: DPO
         (arXiv:2305.18290), beta 0.1, on pairs from files, or best against worst of each group. For tokens.
gflow    trains the probability of texts towards their reward, at least 1e-4, to the power 1 / temperature = 10: the
         variance form of trajectory balance, Var-TB of GFlowVLM (arXiv:2503.06514). Floor and temperature are our own.
         With mapping exp and prior reference it is the objective of TBA (arXiv:2503.18929). For tokens.
mpo      0.8 of dpo's loss, 0.2 of the same for each text on its own (BCO), and the likelihood of the better one, beta
         0.1: MPO of InternVL2.5-MPO (arXiv:2411.10442). For tokens.
srpo_history  grpo's clip, mean over decisions, and prompts whose samples were all right are not drawn again: history
         resampling of SRPO (arXiv:2504.14286); a reward of 1 is right. For tokens.
greso    dapo's clip and refill, and prompts without advantage several times in a row are skipped with a probability
         that follows targets of 25 % in total, 1 : 2: GRESO (arXiv:2506.02177), its code. For tokens.
rlcs     grpo, and prompts are drawn from tiers of their mean reward at rates of their own: curriculum sampling of
         GLM-4.5V (arXiv:2507.01006), which names no numbers; more prompts are drawn than are trained, by the moving
         average of how many had an advantage (train.expand). For tokens.
cppo     trains the two of 16 samples of a prompt whose advantages are farthest from 0, and draws eight times as many
         prompts to make up for the others: CPPO (arXiv:2503.22342), the pruning rate of 0.875 of its GSM8K runs, its
         code; clip 0.2, k3 divergence 0.04, sample std + 1e-4, mean over decisions. For tokens.
dars     group mean, no std, and up to 32 samples for prompts of which less than half is right: DARS-HW
         (arXiv:2508.13755), for groups of 8; grpo's clip, mean over decisions. For tokens.
clip_cov no gradient for a small share, 2e-4, of the decisions whose log-prob and advantage vary together: Clip-Cov
         (arXiv:2505.22617), the numbers of verl, covariances from 1 to 5; clip 0.2, sample std + 1e-6, mean over
         decisions. For tokens.
kl_cov   in place of a clip, a KL penalty on the share 2e-3 of the decisions with the largest covariances: KL-Cov
         (arXiv:2505.22617), coefficient 1 and the share of its 7B runs; sample std + 1e-6, mean over decisions. For
         tokens.
prorl    dapo with clip 0.2 and 0.4: ProRL (arXiv:2505.24864), which keeps a divergence (objective.kl) and resets its
         reference and its optimizer when it no longer gains (`phases` with `reset`). For tokens.
skywork_ssb  grpo's clip, mean over decisions, and eight samples per iteration from a buffer of earlier ones, drawn by
         |advantage|: selective sample buffer of Skywork R1V2 (arXiv:2504.16656), which names no number. For tokens.
chord    0.9 times grpo with the mean over decisions plus 0.1 times the likelihood of an expert's answers, with tokens
         weighted by p (1 - p): CHORD-phi (arXiv:2508.11408). objective.expert.source is the file. For tokens.
rf_base  group mean, whitened over the decisions of the batch: REINFORCE++-baseline (arXiv:2501.03262); clip 0.2, mean
         over decisions; the paper adds a KL of kind k2. For tokens.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.values import REFILL, SUMMED, Values

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
    "dpo": {"objective": {"clip": 0.2, "kl_kind": "k3", "loss": {"kind": "dpo", "beta": 0.1}}, "advantage": SUMMED},
    "gflow": {
        "objective": {"clip": 0.2, "kl_kind": "k3", "loss": {"kind": "balance", "floor": 1e-4, "temperature": 0.1}},
        "advantage": SUMMED | {"baseline": "none", "scale": "none"},
    },
    "mpo": {
        "objective": {
            "clip": 0.2,
            "kl_kind": "k3",
            "loss": {"kind": "dpo", "beta": 0.1, "pair": 0.8, "bco": 0.2, "likelihood": 1.0},
        },
        "advantage": SUMMED,
    },
    "srpo_history": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED,
        "prompts": {"choose": {"kind": "drop_solved"}},
    },
    "greso": {
        "objective": {"clip": [0.2, 0.28], "kl_kind": "k3"},
        "advantage": SUMMED | {"eps": 1e-6},
        "prompts": {"choose": {"kind": "skip", "target_easy": 0.083, "target_hard": 0.167}},
        "train": {"refill": REFILL},
    },
    "rlcs": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED,
        "prompts": {"choose": {"kind": "tiers"}},
        "train": {"expand": {}},
    },
    "cppo": {
        "objective": {"clip": 0.2, "kl": 0.04, "kl_kind": "k3"},
        "advantage": SUMMED,
        "train": {"group": 16, "keep": 2, "keep_by": "magnitude", "keep_fill": True},
    },
    "dars": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED | {"scale": "none"},
        "train": {"budget": {"kind": "hardness_weighted", "limit": 32}},
    },
    "clip_cov": {
        "objective": {"clip": 0.2, "kl_kind": "k3", "covariance": {"kind": "clip"}},
        "advantage": SUMMED | {"eps": 1e-6},
    },
    "kl_cov": {
        "objective": {"clip": 0.2, "gate": "ratio", "kl_kind": "k3", "covariance": {"kind": "kl", "share": 2e-3}},
        "advantage": SUMMED | {"eps": 1e-6},
    },
    "prorl": {
        "objective": {"clip": [0.2, 0.4], "kl_kind": "k3"},
        "advantage": SUMMED | {"eps": 1e-6},
        "train": {"refill": REFILL},
    },
    "skywork_ssb": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED,
        "train": {"store": {"draw": 8}},
    },
    "chord": {
        "objective": {"clip": 0.2, "kl_kind": "k3", "expert": {"coef": 0.1, "phi": "uncertain"}},
        "advantage": SUMMED,
    },
    "rf_base": {"objective": {"clip": 0.2, "kl_kind": "k3"}, "advantage": SUMMED | {"scale": "whiten_by_length"}},
}
