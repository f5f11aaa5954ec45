"""Presets of denoising steps alone whose loss is a ratio of log-probs.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
mixgrpo  grpo, every reward normalised separately, sample std + 1e-8, clip 1e-4: MixGRPO (arXiv:2507.21802), its code.
         For denoising steps: what it adds is the window of sampler.window.
dance    grpo, sample std + 1e-8, clip 1e-4: DanceGRPO (arXiv:2505.07818), its FLUX configuration. For denoising steps;
         its best-of-n is train.keep.
branch   dance with clip 1e-3: BranchGRPO (arXiv:2509.06040), its code. For denoising steps: it adds sampler.tree.
g2rpo    every reward normalised separately, sample std + 1e-8, clip 1e-4: Granular-GRPO (arXiv:2510.01982), its code.
         For denoising steps: what it adds is sampler.tree, whose strides' advantages add up.
tempflow grpo, each step weighted by its noise, with mean 1 over the steps: TempFlow-GRPO (arXiv:2508.04324), its code.
         For denoising steps: what it adds is sampler.tree.
cps      grpo, clip 1e-5: Flow-GRPO's configurations with Flow-CPS (arXiv:2509.05952). For denoising steps by the
         sampler.step cps: the range belongs to its score -(x - mean)^2, where a log-ratio is 2 std^2 times a density's.
guard    grpo, centred ratio, each step weighted by 1 / |dt|, clip 2e-6: GRPO-Guard (arXiv:2510.22319), the OCR and
         GenEval configurations of its code; 4e-6 for PickScore. For denoising steps.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.values import STEPS, Values

DENOISING: dict[str, Values] = {
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
}
