"""Presets of both kinds of decisions, denoising steps and tokens: what each sets for one and for the other.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
grpo     token ratio, group mean and std.
         steps: clip 1e-4, mean over steps, std + 1e-4, advantages within 5: Flow-GRPO (arXiv:2505.05470), its SD3 and
         FLUX configurations. tokens: clip 0.2, mean over rows of row means, sample std + 1e-4, no KL: GRPO
         (arXiv:2402.03300, eq. 3 and 4) with TRL's constants; the paper adds kl 0.04 of kind k3.
dapo     clip higher, mean over decisions, groups without advantage replaced up to 9 times (train.refill): DAPO
         (arXiv:2503.14476, eq. 8 and 11).
         tokens: clip 0.2 and 0.28 (section 4.1), dual 10 and log-ratios within 20 of its code (verl), std + 1e-6, no
         KL.
         steps: grpo's clip and 1.4 times it, the paper's proportion; nothing is published.
         Its soft penalty on overlong completions is the reward `overlong`, its filter train.skip_truncated.
dr_grpo  group mean without std, every loss divided by the same length: Dr. GRPO (arXiv:2503.20783, figure 1).
         tokens: clip 0.2, length = generation.max_new_tokens, no KL. steps: grpo's clip, length = the trained steps.
gspo     ratio of the row: the exponential of its mean log-ratio; mean over rows: GSPO (arXiv:2507.18071, eq. 5 to 7).
         tokens: clip 3e-4 and 4e-4 (section 5.1), sample std + 1e-4, no KL. steps: grpo's clip and 4/3 of it, the
         paper's proportion; nothing is published.
rloo     leave-one-out baseline, no std: RLOO (arXiv:2402.14740, eq. 8).
         tokens: ratio of the row, the product of its decisions', clip 0.2, mean over rows: TRL; the paper adds a KL to
         the reward. steps: token ratio and grpo's clip.
sapo     a sigmoid of the ratio in place of the clip: SAPO (arXiv:2511.20347), temperatures 1 and 1.05, sample std +
         1e-4, mean over rows of row means. steps: 2000 and 2100, which keep the proportion to grpo's clips; nothing is
         published.
gmpo     the geometric mean of a row's ratios, each clipped first: GMPO (arXiv:2507.20673), within exp(-0.4) and
         exp(0.4); sample std + 1e-4, mean over rows. steps: twice grpo's clip, the same proportion; nothing is
         published.
lite_ppo group mean, std of the whole batch's raw rewards, token ratio, clip 0.2, mean over decisions: Lite PPO
         (arXiv:2508.08221), std + 1e-4 as in TRL. steps: grpo's clip.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.values import REFILL, STEPS, SUMMED, Values

DENOISING: dict[str, Values] = {
    "grpo": {"objective": {"clip": STEPS}},
    "dapo": {"objective": {"clip": [STEPS, 1.4 * STEPS]}, "train": {"refill": REFILL}},
    "dr_grpo": {
        "objective": {"clip": STEPS, "aggregate": "constant"},
        "advantage": {"combine": "sum", "scale": "none"},
    },
    "gspo": {"objective": {"clip": [STEPS, 4 / 3 * STEPS], "level": "seq_mean", "aggregate": "seq_mean_mean"}},
    "rloo": {
        "objective": {"clip": STEPS},
        "advantage": {"combine": "sum", "baseline": "leave_one_out", "scale": "none"},
    },
    "sapo": {
        "objective": {"clip": STEPS, "gate": "sigmoid", "tau_pos": 2000.0, "tau_neg": 2100.0},
    },
    "gmpo": {"objective": {"clip": 2 * STEPS, "gate": "log_clip_then_mean", "aggregate": "seq_mean_mean"}},
    "lite_ppo": {"objective": {"clip": STEPS}, "advantage": {"combine": "sum", "scale": "batch", "unbiased": True}},
}
LANGUAGE: dict[str, Values] = {
    "grpo": {
        "objective": {"clip": 0.2, "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": {"combine": "sum", "unbiased": True, "clip": None},
    },
    "dapo": {
        "objective": {
            "clip": [0.2, 0.28],
            "dual": 10.0,
            "log_ratio_limit": 20.0,
            "kl_kind": "k3",
            "aggregate": "decision_mean",
        },
        "advantage": {"combine": "sum", "unbiased": True, "eps": 1e-6, "clip": None},
        "train": {"refill": REFILL},
    },
    "dr_grpo": {
        "objective": {"clip": 0.2, "kl_kind": "k3", "aggregate": "constant"},
        "advantage": {"combine": "sum", "scale": "none", "clip": None},
    },
    "gspo": {
        "objective": {"clip": [3e-4, 4e-4], "level": "seq_mean", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": {"combine": "sum", "unbiased": True, "clip": None},
    },
    "rloo": {
        "objective": {"clip": 0.2, "level": "seq_sum", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": {"combine": "sum", "baseline": "leave_one_out", "scale": "none", "clip": None},
    },
    "sapo": {
        "objective": {"clip": 0.2, "gate": "sigmoid", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": SUMMED,
    },
    "gmpo": {
        "objective": {"clip": 0.4, "gate": "log_clip_then_mean", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": SUMMED,
    },
    "lite_ppo": {"objective": {"clip": 0.2, "kl_kind": "k3"}, "advantage": SUMMED | {"scale": "batch"}},
}
