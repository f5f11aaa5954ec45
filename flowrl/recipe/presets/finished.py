"""Presets of denoisers whose loss takes finished samples: noised again, in pairs, or through a reward's gradient.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
nft      samples are noised again; good ones attract the estimate of x_0, bad ones its mirror image at older weights,
         with adv_clip 5 and beta 1, group mean and the std of the batch: DiffusionNFT (arXiv:2509.16117), its GenEval
         configuration, whose older weights move by train.old 0 to 0.5; it adds kl 1e-4. For denoising steps.
awm      a policy gradient whose log-probs are errors of the velocity (ghuber, power 0.25), advantages within 5 scaled
         to 1, pulled by 1 to older weights: advantage-weighted matching (arXiv:2509.25050), its code; it adds kl 1e-3.
         For denoising steps.
dgpo     DPO between the better and the worse part of a group, beta 100, at one noise for a group: direct group
         preference (arXiv:2510.08425), its code; it adds kl 1e-3 and a clip of 1e-3. For denoising steps.
crd      trains the implicit rewards of a group's samples towards their rewards, both centred, beta 1: centred reward
         distillation (arXiv:2603.14128), as in Flow-Factory. For denoising steps.
flow_dpo the best and the worst of each group at one noise and level, beta 100 against the reference: Flow-GRPO's online
         DPO of Flow-DPO (arXiv:2501.13918), at logit-normal levels. For denoising steps.
pnapo    two samples of a prompt, each noised by the noise that it came from; beta times 2 sigmoid(gap of the rewards) -
         1: prior noise-aware preference optimization (arXiv:2605.09433), of files that `flowrl pairs` writes. Its beta
         of 2000 (FLUX.1) is not halved there, and is 4000 here. For denoising steps.
rpo      samples that come with a prompt against those drawn, by a label from their rewards, and their imitation, beta
         1: reward preference optimization (arXiv:2407.12164), its code, whose reward in training is the fit to the text
         alone. For denoising steps.
pair_grpo  awm with the samples of two prompts as one group, sample std + 1e-4, where the share of prompts whose groups
         begin with real pictures falls from 1 to 0.25 and 0 (iterations 50, 450, 1200): Pair-GRPO of FocusDiff
         (arXiv:2506.05501), its code, whose decisions are tokens. For denoising steps.
flow_rwr the error of the velocity times exp(advantage): Flow-RWR (arXiv:2501.13918), of advantages in the place of
         rewards. For denoising steps.
sft      the error of the velocity of samples from files, those whose score is above 0: supervised finetuning, at
         logit-normal levels (arXiv:2403.03206). For denoising steps, as the next.
gors     the same times the score, a reward; objective.loss.least is the reward from which on samples are taken: GORS of
         T2I-CompBench (arXiv:2307.06350, section 5), which draws and selects once, as `flowrl pairs` does.
refl     the reward's own gradient at the one-step estimate of a late step, max(2 - reward, 0) times 1e-3: ReFL
         (arXiv:2304.05977), one of the last ten steps. This and those below are for denoising steps and
         differentiable rewards, read no advantage, and take train.group 1 as well.
draft1   the reward's gradient at the sample, through the last step only: DRaFT-1 (arXiv:2309.17400).
draft_k  the same through the whole of the last steps, 10 as long as sampler.levels.low does not say -K: DRaFT-K
         (arXiv:2309.17400).
alignprop  the same through the last steps, their number drawn each iteration: AlignProp (arXiv:2310.03739).
draft_lv  the reward of the last step's estimate, and of two further ones made of the finished sample with fresh noise
         of that step's level: DRaFT-LV (arXiv:2309.17400, section 4).
drtune   the gradient at an estimate of x_0 made in the last 40 % of the walk, through 3 equally spaced steps before it,
         not through their inputs: DRTune (arXiv:2405.00760), values as in the code of FlowBP.
flowbp_sparse  the gradient at the sample as it is, through 3 random steps, late ones more often (bias 2), which weigh
         as all: FlowBP-Sparse (arXiv:2606.11075), its FLUX.1 configuration. There, as in the next two, HPSv2.1 is
         followed up to 0.55 (objective.loss.threshold).
flowbp_bridge  5 steps on both sides of a random one, which lets 0.1 of the gradient through to those before it:
         FlowBP-Bridge (arXiv:2606.11075), its FLUX.1 configuration.
leapalign  two leaps in place of the walk, of which the second lets 0.3 of the gradient through, samples weighted by how
         near the leaps end to the walk (tau 0.1): LeapAlign (arXiv:2604.15311), as in the code of FlowBP.
seedance  the weighted sum of several rewards, of the one-step estimate of a late step, raised as it is: the direct
         maximisation of Seedance 1.0 (arXiv:2506.09113), which publishes no numbers; ReFL's steps.
reda     the rewards of a batch are to be distributed like objective.loss.target: reward distribution alignment, of
         HunyuanImage 3.0 (arXiv:2509.23951), whose formula is not published; DRaFT-1's step. For advantages, by whose
         order samples are matched, rewards are summed.
srpo     a sample is noised by its own noise, stepped once down and once up, and recovered; max(0.7 - reward, 0) / 2:
         SRPO (arXiv:2509.06942), its code; control words are objective.loss.positive and negative.
"""

from typing import Any

from flowrl.recipe.presets.values import Values


def _pulled(loss: dict[str, Any], levels: dict[str, Any], **advantage: Any) -> Values:
    """Values of a method that follows the gradient of the rewards; its advantages are those of a batch, for reports."""
    batch = {"baseline": "batch", "scale": "batch", **advantage}
    return {"objective": {"loss": loss}, "sampler": {"levels": levels}, "advantage": batch}


FROM_FILES: Values = {"sampler": {"levels": {"kind": "logit_normal"}}, "train": {"source": "files"}}
DENOISING: dict[str, Values] = {
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
    "pnapo": FROM_FILES
    | {
        "objective": {"loss": {"kind": "flow_dpo", "beta": 4000.0, "own_noise": True, "gap": 1.0}},
        "sampler": {"levels": {"kind": "uniform"}},
    },
    "rpo": {
        "objective": {"loss": {"kind": "rpo"}},
        "advantage": {"combine": "sum", "scale": "none"},
        "sampler": {"levels": {"kind": "walk", "number": 1}},
        "train": {"source": 1.0},
    },
    "pair_grpo": {
        "objective": {"loss": {"kind": "awm"}},
        "advantage": {"combine": "sum", "unbiased": True},
        "sampler": {"levels": {"kind": "walk", "low": 1}},
        "train": {"old": 0.0, "pool": 2, "source": {50: 1.0, 450: 0.25, 1200: 0.0}},
    },
    "flow_rwr": {"objective": {"loss": {"kind": "flow_rwr"}}, "sampler": {"levels": {"kind": "logit_normal"}}},
    "sft": FROM_FILES | {"objective": {"loss": {"kind": "sft", "weighted": False}}},
    "gors": FROM_FILES | {"objective": {"loss": {"kind": "sft"}}},
    "refl": _pulled({"kind": "refl", "threshold": 2.0, "scale": 1e-3}, {"kind": "walk", "low": -10, "number": 1}),
    "draft1": _pulled({"kind": "draft"}, {"kind": "walk", "low": -1}),
    "draft_k": _pulled({"kind": "draft"}, {"kind": "walk", "low": -10}),
    "alignprop": _pulled({"kind": "draft"}, {"kind": "tail"}),
    "draft_lv": _pulled({"kind": "refl"}, {"kind": "again", "number": 2}),
    "drtune": _pulled({"kind": "draft", "nested": False}, {"kind": "spaced", "number": 3, "stop": 0.4}),
    "flowbp_sparse": _pulled(
        {"kind": "draft", "nested": False}, {"kind": "walk", "number": 3, "bias": 2.0, "whole": True}
    ),
    "flowbp_bridge": _pulled({"kind": "draft"}, {"kind": "bridge", "number": 5, "through": 0.1, "bias": 2.0}),
    "leapalign": _pulled({"kind": "draft", "tau": 0.1}, {"kind": "leap", "through": 0.3}),
    "seedance": _pulled({"kind": "refl"}, {"kind": "walk", "low": -10, "number": 1}),
    "reda": _pulled({"kind": "match"}, {"kind": "walk", "low": -1}, combine="sum"),
    "srpo": _pulled({"kind": "srpo"}, {"kind": "align"}),
}
