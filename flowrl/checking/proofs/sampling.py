"""Proofs about what the policy draws: without noise it is the pipeline, with noise it draws from the same place."""

import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Failed
from flowrl.contracts import Samples
from flowrl.core.evaluation import picture_of
from flowrl.policies.pipelines.first_order import walks_ddim
from flowrl.recipe.default_noise import default_noise

# Of pictures in [0, 1]. In float32 the two walks do the same operations; a multistep scheduler's first-order form
# rounds differently. In half precision the policy keeps the state in float32 where a pipeline rounds it at every step,
# so single pixels may part and the mean is compared.
SAME = 1e-5
SAME_MULTISTEP = 1e-3
SAME_HALF = 0.02
BAND = 0.25
ERRORS = 3.0


def untouched(bench: Bench) -> str:
    """Without noise the policy draws what the pipeline draws by itself. Returns the largest difference of a pixel.

    The pipeline was loaded plainly, without adapters, and called with the same generators, so this holds for the
    interception, the adapters (whose outer factors begin at 0) and the way in which the recipe's arguments are given.
    """
    own, found = bench.untouched, bench.quiet
    if own.shape != found.shape:
        raise Failed(
            f"the pipeline gives {list(own.shape)}, the policy {list(found.shape)}",
            "the pipeline's output depends on something else than its arguments",
            "set every size in the recipe's `pipeline` section",
        )
    gap = (own - found).abs()
    half = bench.recipe.dtype.model != "float32"
    scheduler = bench.policy.source.scheduler
    diffusion = walks_ddim(scheduler)
    multistep = "solver_order" in scheduler.config and not diffusion
    accepted = SAME_HALF if half else SAME_MULTISTEP if multistep else SAME
    measured = float(gap.mean() if half else gap.max())
    what = f"{'mean' if half else 'max'} difference {measured:.2g}"
    if not measured <= accepted:
        raise Failed(
            f"{what} of a pixel in [0, 1] (accepted {accepted:g})",
            "the model is not the one on disk when training begins (adapters that change it, weights that were loaded "
            "into it), or its scheduler does more in a step than Euler's x + v ds, or "
            "than DDIM's where it predicts noise",
            "lora.init=default, and give the pipeline a FlowMatchEulerDiscreteScheduler, or a DDIMScheduler",
        )
    if diffusion and type(scheduler).__name__ != "DDIMScheduler":
        return f"{what}, with DDIM on the noise table of its {type(scheduler).__name__}"
    return what + (", against the first-order form of its multistep scheduler" if multistep else "")


def statistics(bench: Bench) -> str:
    """Samples with the recipe's noise look like those without: mean, contrast and roughness stay within a band.

    The SDE that a stochastic step follows has the marginals of the flow's ODE (Flow-GRPO, arXiv 2505.05470), so in
    distribution its samples are the same; what differs is the error of finite steps, which grows with noise squared
    times the step. On a Gaussian the standard deviation after ten steps of noise 0.7 is a tenth above Euler's own,
    so that the band is 0.25 of what Euler draws, and three standard errors of the difference, since the samples are
    few. On the embedded world noise 0.3 to 1.0 stays below 0.11 and noise 2 is at 0.6 to 0.7.

    Compared at equal starts: brightness (the mean pixel, in units of the contrast), contrast (a picture's standard
    deviation), roughness (the mean difference of neighbours, where noise shows that was never removed).
    """
    noisy, quiet = (features(s) for s in bench.statistics_pair)
    change = noisy - quiet
    scale = quiet.mean(0)[[1, 1, 2]].clamp(min=1e-6)
    shift = change.mean(0) / scale
    error = change.std(0) / len(change) ** 0.5 / scale if len(change) > 1 else torch.zeros(3)
    band = BAND + ERRORS * error
    shown = ", ".join(
        f"{name} {s:+.2f} (band {b:.2f})"
        for name, s, b in zip(("brightness", "contrast", "roughness"), shift.tolist(), band.tolist(), strict=True)
    )
    usual = default_noise(bench.recipe.sampler.step, bench.recipe.model)
    if not torch.isfinite(noisy).all() or bool((shift.abs() > band).any()):
        raise Failed(
            f"{shown}, {len(change)} samples each",
            f"sampler.noise={bench.recipe.sampler.noise:g} is too much for {bench.recipe.sampler.steps} steps: the SDE "
            "leaves the region that the model knows, so that the reward is asked about other pictures than the model's",
            f"lower sampler.noise ({usual:g} is usual), raise sampler.steps, or draw noise at fewer steps "
            "(sampler.window)",
        )
    return f"{shown}, {len(change)} samples each"


def features(samples: Samples) -> Tensor:
    """Brightness, contrast and roughness of each sample, [B, 3], over channels and frames; of sound as spectrogram."""
    pixels = picture_of(samples) if samples.video is None else samples.video.flatten(0, 1)
    assert pixels is not None, "a pipeline draws pictures, video or sound"
    pixels = pixels.float().cpu()
    rough = (pixels.diff(dim=-1).abs().mean((-1, -2)) + pixels.diff(dim=-2).abs().mean((-1, -2))) / 2
    each = torch.stack([pixels.mean((-1, -2)), pixels.std((-1, -2)), rough], -1)
    return each.mean(1).reshape(len(samples), -1, 3).mean(1)
