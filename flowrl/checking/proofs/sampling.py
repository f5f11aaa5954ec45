"""Proofs about the policy's samples: without noise they equal the pipeline's, with noise they keep its statistics."""

import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.learning import unadapted_samples
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import Samples
from flowrl.core.evaluation import picture_of
from flowrl.policies.pipelines.steps.first_order import walks_ddim
from flowrl.recipe.default_noise import default_noise

# Of pictures in [0, 1]. In float32 both samplers do the same operations; a multistep scheduler's first-order form
# rounds differently. In half precision the policy keeps the state in float32 while a pipeline rounds it at every step,
# so single pixels may differ and the mean is compared.
MAX_DIFFERENCE = 1e-5
MAX_DIFFERENCE_MULTISTEP = 1e-3
MAX_DIFFERENCE_HALF = 0.02
BAND = 0.25
ERRORS = 3.0


def equals_pipeline(bench: Bench) -> str:
    """Without noise the policy draws what the pipeline draws by itself. Returns the largest difference of a pixel.

    The pipeline was loaded without adapters and called with the same generators, so this covers the interception of
    steps, the adapters (whose outer factors start at 0) and the passing of the recipe's arguments.
    """
    own, drawn = bench.pipeline_samples, unadapted_samples(bench)
    if own.shape != drawn.shape:
        raise ProofError(
            f"the pipeline gives {list(own.shape)}, the policy {list(drawn.shape)}",
            "the pipeline's output depends on something other than its arguments",
            "set every size in the recipe's `pipeline` section",
        )
    gap = (own - drawn).abs()
    half = bench.recipe.dtype.model != "float32"
    scheduler = bench.policy.source.scheduler
    diffusion = walks_ddim(scheduler)
    multistep = "solver_order" in scheduler.config and not diffusion
    accepted = MAX_DIFFERENCE_HALF if half else MAX_DIFFERENCE_MULTISTEP if multistep else MAX_DIFFERENCE
    measured = float(gap.mean() if half else gap.max())
    what = f"{'mean' if half else 'max'} difference {measured:.2g}"
    if not measured <= accepted:
        raise ProofError(
            f"{what} of a pixel in [0, 1] (accepted {accepted:g})",
            "at the start of training the model differs from that on disk (by adapters or loaded weights), or a step "
            "of its scheduler does more than Euler's x + v ds, or than DDIM if the model predicts noise",
            "set lora.init=default, and give the pipeline a FlowMatchEulerDiscreteScheduler or a DDIMScheduler",
        )
    if diffusion and type(scheduler).__name__ != "DDIMScheduler":
        return f"{what}, with DDIM on the noise table of its {type(scheduler).__name__}"
    return what + (", against the first-order form of its multistep scheduler" if multistep else "")


def statistics(bench: Bench) -> str:
    """Samples with the recipe's noise resemble those without: brightness, contrast and roughness stay within a band.

    The SDE of a stochastic step has the marginals of the flow's ODE (Flow-GRPO, arXiv 2505.05470), so its samples have
    the same distribution, up to the discretization error, which grows with noise squared times the step size. On a
    Gaussian the standard deviation after ten steps of noise 0.7 is a tenth above Euler's, so the band is 0.25 of
    Euler's value plus three standard errors of the difference, as there are few samples. On the embedded world noise
    0.3 to 1.0 stays below 0.11, and noise 2 is at 0.6 to 0.7.

    Compared from equal initial noise: brightness (the mean pixel, in units of the contrast), contrast (a picture's
    standard deviation), roughness (the mean difference of neighbouring pixels, which shows noise that was not removed).
    """
    noisy, quiet = (picture_features(s) for s in bench.statistics_pair)
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
        raise ProofError(
            f"{shown}, {len(change)} samples each",
            f"sampler.noise={bench.recipe.sampler.noise:g} is too much for {bench.recipe.sampler.steps} steps: the SDE "
            "leaves the region that the model knows, so the reward scores pictures that the model would not draw",
            f"lower sampler.noise ({usual:g} is usual), raise sampler.steps, or draw noise at fewer steps "
            "(sampler.window)",
        )
    return f"{shown}, {len(change)} samples each"


def picture_features(samples: Samples) -> Tensor:
    """Brightness, contrast and roughness of each sample, float32 [B, 3], over channels and frames; of sound, those of
    its spectrogram."""
    pixels = picture_of(samples) if samples.video is None else samples.video.flatten(0, 1)
    assert pixels is not None, "a pipeline draws pictures, video or sound"
    pixels = pixels.float().cpu()
    rough = (pixels.diff(dim=-1).abs().mean((-1, -2)) + pixels.diff(dim=-2).abs().mean((-1, -2))) / 2
    each = torch.stack([pixels.mean((-1, -2)), pixels.std((-1, -2)), rough], -1)
    return each.mean(1).reshape(len(samples), -1, 3).mean(1)
