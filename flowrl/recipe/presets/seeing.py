"""Presets of language models that see: what they say beside changed pictures (`views`, recipe/keys/views.py).

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
papo     raises the divergence (k3) from the policy that sees masked pictures, times 0.02, limited by both entropies,
         times 0.05: PAPO-G (arXiv:2507.06448), the 7B script of its code; grpo with clip 0.2 and 0.3, dual 3, KL 0.01
         of kind k3, sample std + 1e-6, mean over decisions; 0.6 of squares of 14 pixels are black. For tokens.
papo_d   the same with 0.01 and 0.03, clip 0.2 and 0.28, no KL, and groups without advantage replaced: PAPO-D
         (arXiv:2507.06448), the 7B script of its code. For tokens.
noisy_rollout  six of a prompt's twelve samples are generated with a noisy picture and trained with the clean one, with
         ratios to the old policy on the clean one: NoisyRollout (arXiv:2504.13055), its code; clip 0.2, no KL, sample
         std + 1e-6, mean over decisions. views.noisy.step should fall along a curve as long as the run. For tokens.
t_grpo   four more samples of a prompt with the frames of its video shuffled: T-GRPO of Video-R1 (arXiv:2503.21776), its
         code; a reward with `contrast` gives a bonus for doing no worse than these. Eight samples, clip 0.2, KL 0.04 of
         kind k3, sample std + 1e-4, mean over rows of row means. For tokens.
opa_dpo  of an expert's answer, the model's own and that one corrected, from files: the first and the last are to be
         likelier than the own one, and than themselves beside masked pictures (x 0.2), and to be held where they are:
         OPA-DPO (arXiv:2501.09695), its code, beta 0.1. For tokens.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.values import REFILL, SUMMED, Values

MASKED = {"masked": {"kind": "mask_patches", "share": 0.6, "patch": 14}}

LANGUAGE: dict[str, Values] = {
    "papo": {
        "objective": {
            "clip": [0.2, 0.3],
            "dual": 3.0,
            "kl": 0.01,
            "kl_kind": "k3",
            "perception": {"view": "masked", "coef": 0.02, "entropy": 0.05},
        },
        "advantage": SUMMED | {"eps": 1e-6},
        "views": MASKED,
    },
    "papo_d": {
        "objective": {
            "clip": [0.2, 0.28],
            "dual": 3.0,
            "kl_kind": "k3",
            "perception": {"view": "masked", "coef": 0.01, "entropy": 0.03},
        },
        "advantage": SUMMED | {"eps": 1e-6},
        "views": MASKED,
        "train": {"refill": REFILL},
    },
    "noisy_rollout": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED | {"eps": 1e-6},
        "views": {"noisy": {"kind": "diffuse", "step": 500.0, "draws": 6}},
        "train": {"group": 12},
    },
    "opa_dpo": {
        "objective": {
            "clip": 0.2,
            "kl_kind": "k3",
            "loss": {"kind": "opa_dpo", "beta": 0.1, "view": "masked", "image": 0.2, "anchor": 0.0, "anchor_coef": 1.0},
        },
        "advantage": SUMMED,
        "views": {"masked": {"kind": "mask_patches", "share": 0.3, "patch": 1, "fill": "mean"}},
        "train": {"source": "files", "group": 5},
    },
    "t_grpo": {
        "objective": {"clip": 0.2, "kl": 0.04, "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": SUMMED,
        "views": {"shuffled": {"kind": "shuffle_frames", "beside": 4, "required": False}},
        "train": {"group": 8},
    },
}
