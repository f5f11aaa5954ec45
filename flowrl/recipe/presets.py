"""Published combinations of the closed lists: what `objective.preset` puts below a recipe's own values.

A preset has one set of values for denoising steps and one for tokens (a recipe with `generation`), since a clip range
belongs to the size of a log-ratio. A token's log-ratio is of order 0.1. A denoising step's is a mean over all latent
elements and stays within 1e-3 of 0 while the policy moves as much: published ranges go from 1e-3 to 2e-6.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
grpo     token ratio, group mean and std.
         steps: clip 1e-4, mean over steps, std + 1e-4, advantages within 5: Flow-GRPO (arXiv:2505.05470), its SD3 and
         FLUX configurations. tokens: clip 0.2, mean over rows of row means, sample std + 1e-4, no KL: GRPO
         (arXiv:2402.03300, eq. 3 and 4) with TRL's constants; the paper adds kl 0.04 of kind k3.
mixgrpo  grpo, every reward normalised on its own, sample std + 1e-8, clip 1e-4: MixGRPO (arXiv:2507.21802), its code.
         For denoising steps: what it adds is the window of sampler.window.
dance    grpo, sample std + 1e-8, clip 1e-4: DanceGRPO (arXiv:2505.07818), its FLUX configuration. For denoising steps;
         its best-of-n is train.keep.
branch   dance with clip 1e-3: BranchGRPO (arXiv:2509.06040), its code. For denoising steps: it adds sampler.tree.
g2rpo    every reward normalised on its own, sample std + 1e-8, clip 1e-4: Granular-GRPO (arXiv:2510.01982), its code.
         For denoising steps: what it adds is sampler.tree, whose strides' advantages add up.
tempflow grpo, each step weighted by its noise, with mean 1 over the steps: TempFlow-GRPO (arXiv:2508.04324), its code.
         For denoising steps: what it adds is sampler.tree.
cps      grpo, clip 1e-5: Flow-GRPO's configurations with Flow-CPS (arXiv:2509.05952). For denoising steps by the
         sampler.step cps: the range belongs to its score -(x - mean)^2, where a log-ratio is 2 std^2 times a density's.
guard    grpo, centred ratio, each step weighted by 1 / |dt|, clip 2e-6: GRPO-Guard (arXiv:2510.22319), the OCR and
         GenEval configurations of its code; 4e-6 for PickScore. For denoising steps.
dapo     clip higher, mean over decisions, groups without advantage drawn anew up to 9 times (train.refill): DAPO
         (arXiv:2503.14476, eq. 8 and 11).
         tokens: clip 0.2 and 0.28 (section 4.1), dual 10 and log-ratios within 20 of its code (verl), std + 1e-6, no
         KL. steps: grpo's clip and 1.4 times it, the paper's proportion; nothing is published.
         Its soft punishment of overlong completions is the reward `overlong`, its filter train.skip_truncated.
dr_grpo  group mean without std, every loss divided by the same length: Dr. GRPO (arXiv:2503.20783, figure 1).
         tokens: clip 0.2, length = generation.max_new_tokens, no KL. steps: grpo's clip, length = the trained steps.
gspo     ratio of the row: the exponential of its mean log-ratio; mean over rows: GSPO (arXiv:2507.18071, eq. 5 to 7).
         tokens: clip 3e-4 and 4e-4 (section 5.1), sample std + 1e-4, no KL. steps: grpo's clip and 4/3 of it, the
         paper's proportion; nothing is published.
nft      samples are noised again; good ones pull the estimate of x_0, bad ones its mirror image at older weights, with
         adv_clip 5 and beta 1, group mean and the std of the batch: DiffusionNFT (arXiv:2509.16117), its GenEval
         configuration, whose older weights move by train.old 0 to 0.5; it adds kl 1e-4. For denoising steps.
awm      a policy gradient whose log-probs are errors of the velocity (ghuber, power 0.25), advantages within 5 scaled
         to 1, pulled by 1 to older weights: advantage-weighted matching (arXiv:2509.25050), its code; it adds kl 1e-3.
         For denoising steps.
dgpo     DPO between the better and the worse part of a group, beta 100, at one noise for a group: direct group
         preference (arXiv:2510.08425), its code; it adds kl 1e-3 and a clip of 1e-3. For denoising steps.
crd      the implicit reward of a group's samples is to be their reward, both centred, beta 1: centred reward
         distillation (arXiv:2603.14128), as in Flow-Factory. For denoising steps.
flow_dpo the best and the worst of each group at one noise and level, beta 100 against the reference: Flow-GRPO's online
         DPO of Flow-DPO (arXiv:2501.13918), at logit-normal levels. For denoising steps.
flow_rwr the error of the velocity times exp(advantage): Flow-RWR (arXiv:2501.13918), of advantages in the place of
         rewards. For denoising steps.
refl     the reward's own gradient at the one-step estimate of a late step, max(2 - reward, 0) times 1e-3: ReFL
         (arXiv:2304.05977), one of the last ten steps. This and the next five are for denoising steps and
         differentiable rewards, read no advantage, and take train.group 1 as well.
draft1   the reward's gradient at the sample, through the last step alone: DRaFT-1 (arXiv:2309.17400).
draft_k  the same through the whole of the last steps, 10 as long as sampler.levels.low does not say -K: DRaFT-K
         (arXiv:2309.17400).
alignprop  the same through the last steps, their number drawn anew each iteration: AlignProp (arXiv:2310.03739).
flowbp_sparse  the gradient at the sample as it is, through two random steps of all: FlowBP-Sparse (arXiv:2606.11075).
         scale is to be the number of steps over that of those (1 as it stands, where lr takes its place).
srpo     a sample is noised by its own noise, stepped once down and once up, and recovered; max(0.7 - reward, 0) / 2:
         SRPO (arXiv:2509.06942), its code; control words are objective.loss.positive and negative.
rloo     leave-one-out baseline, no std: RLOO (arXiv:2402.14740, eq. 8).
         tokens: ratio of the row, the product of its decisions', clip 0.2, mean over rows: TRL; the paper adds a KL to
         the reward. steps: token ratio and grpo's clip.
cispo    every decision keeps its gradient, weighted by its ratio up to a limit: CISPO (arXiv:2506.13585, eq. 4); mean
         over decisions, sample std + 1e-4. The paper bounds ratios from above only and names no number: up to 5, as
         ScaleRL (arXiv:2510.13786). For tokens.
sapo     a sigmoid of the ratio in place of the clip: SAPO (arXiv:2511.20347), temperatures 1 and 1.05, sample std +
         1e-4, mean over rows of row means. steps: 2000 and 2100, which keep the proportion to grpo's clips; nothing is
         published.
gmpo     the geometric mean of a row's ratios, each clipped first: GMPO (arXiv:2507.20673), within exp(-0.4) and
         exp(0.4); sample std + 1e-4, mean over rows. steps: twice grpo's clip, the same proportion; nothing is
         published.
vespo    the log-prob times a weight that falls off softly as the ratio of the row leaves 1: VESPO (arXiv:2602.10693),
         the numbers of TRL; sample std + 1e-4, mean over decisions. For tokens.
aspo     where the advantage is positive, decisions count by the inverse of their ratio: asymmetric importance sampling
         (arXiv:2510.06062), its code; dual 3, grpo's clip, sample std + 1e-6, mean over decisions. For tokens.
lite_ppo group mean, std of the whole batch's raw rewards, token ratio, clip 0.2, mean over decisions: Lite PPO
         (arXiv:2508.08221), std + 1e-4 as in TRL. steps: grpo's clip.
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

Sample std is `advantage.unbiased`. No preset of tokens clips advantages. Those of tokens and those without a std add up
raw rewards (`advantage.combine: sum`), as published; for steps the default is each reward on its own.
"""

import re
from typing import Any

Values = dict[str, dict[str, Any]]  # section -> key -> value

STEPS = 1e-4  # Flow-GRPO's clip
REFILL = 9  # DAPO's code draws at most ten batches


def _pulled(loss: dict[str, Any], levels: dict[str, Any]) -> Values:
    """Values of a method that follows the gradient of the rewards; its advantages are those of a batch, for reports."""
    batch = {"baseline": "batch", "scale": "batch"}
    return {"objective": {"loss": loss}, "sampler": {"levels": levels}, "advantage": batch}


DENOISING: dict[str, Values] = {
    "grpo": {"objective": {"clip": STEPS}},
    "mixgrpo": {
        "objective": {"clip": STEPS},
        "advantage": {"unbiased": True, "eps": 1e-8},
    },
    "dance": {"objective": {"clip": STEPS}, "advantage": {"unbiased": True, "eps": 1e-8}},
    "branch": {"objective": {"clip": 1e-3}, "advantage": {"unbiased": True, "eps": 1e-8}},
    "g2rpo": {"objective": {"clip": STEPS}, "advantage": {"unbiased": True, "eps": 1e-8}},
    "tempflow": {"objective": {"clip": STEPS, "weight": "noise"}},
    "cps": {"objective": {"clip": 1e-5}},
    "guard": {"objective": {"clip": 2e-6, "weight": "inverse_dt", "ratio": "centred"}},
    "dapo": {"objective": {"clip": [STEPS, 1.4 * STEPS]}, "train": {"refill": REFILL}},
    "dr_grpo": {
        "objective": {"clip": STEPS, "aggregate": "constant"},
        "advantage": {"combine": "sum", "scale": "none"},
    },
    "gspo": {"objective": {"clip": [STEPS, 4 / 3 * STEPS], "level": "seq_mean", "aggregate": "seq_mean_mean"}},
    "nft": {
        "objective": {"loss": {"kind": "nft"}},
        "advantage": {"scale": "batch"},
        "sampler": {"levels": {"kind": "walk"}},
        "train": {"old": 0.0},
    },
    "awm": {
        "objective": {"loss": {"kind": "awm"}},
        "sampler": {"levels": {"kind": "walk", "low": 1}},
        "train": {"old": 0.0},
    },
    "dgpo": {"objective": {"loss": {"kind": "dgpo"}}, "sampler": {"levels": {"kind": "walk"}}},
    "crd": {
        "objective": {"loss": {"kind": "crd"}},
        "sampler": {"levels": {"kind": "logit_normal"}},
        "train": {"old": 0.0},
    },
    "flow_dpo": {"objective": {"loss": {"kind": "flow_dpo"}}, "sampler": {"levels": {"kind": "logit_normal"}}},
    "flow_rwr": {"objective": {"loss": {"kind": "flow_rwr"}}, "sampler": {"levels": {"kind": "logit_normal"}}},
    "refl": _pulled({"kind": "refl", "threshold": 2.0, "scale": 1e-3}, {"kind": "walk", "low": -10, "number": 1}),
    "draft1": _pulled({"kind": "draft"}, {"kind": "walk", "low": -1}),
    "draft_k": _pulled({"kind": "draft"}, {"kind": "walk", "low": -10}),
    "alignprop": _pulled({"kind": "draft"}, {"kind": "tail"}),
    "flowbp_sparse": _pulled({"kind": "draft", "nested": False}, {"kind": "walk", "number": 2}),
    "srpo": _pulled({"kind": "srpo"}, {"kind": "align"}),
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
SUMMED = {"combine": "sum", "unbiased": True, "clip": None}  # GRPO's advantage, as TRL has it
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
    "cispo": {
        "objective": {"clip": [1.0, 4.0], "gate": "is_clip", "kl_kind": "k3"},
        "advantage": SUMMED,
    },
    "sapo": {
        "objective": {"clip": 0.2, "gate": "sigmoid", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
        "advantage": SUMMED,
    },
    "gmpo": {
        "objective": {"clip": 0.4, "gate": "log_clip_then_mean", "kl_kind": "k3", "aggregate": "seq_mean_mean"},
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
    "lite_ppo": {"objective": {"clip": 0.2, "kl_kind": "k3"}, "advantage": SUMMED | {"scale": "batch"}},
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
PRESETS = tuple(DENOISING | LANGUAGE)


def texts() -> dict[str, str]:
    """What the table above says of each preset, on one line."""
    table = (__doc__ or "").partition("-------  ")[2].partition("\n\n")[0].partition("\n")[2]
    rows = re.split(r"\n(?=\w)", table)
    return {name: " ".join(text.split()) for name, text in (row.split(maxsplit=1) for row in rows if row)}
