"""Each tiny pipeline runs, is finite, differs between rows, depends on the prompt, the seed and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import families

PROMPTS = ["a red fox in snow", "two blue boats"]


def run(name: str, prompts: list[str], seeds: list[int], **overrides: Any) -> torch.Tensor:
    """Call the shared pipeline of a family and return the first output as one tensor."""
    kwargs = families.get(name).batched_call(prompts) | overrides
    out = families.pipeline(name)(
        **kwargs, generator=families.generators(seeds), num_inference_steps=4, output_type="pt", return_dict=False
    )[0]
    return torch.stack(list(out)) if isinstance(out, (list, tuple)) else out


@pytest.mark.parametrize("name", families.NAMES + families.OUTSIDE)
def test_family(name: str) -> None:
    rows = min(2, families.get(name).max_rows or 2)
    prompts, seeds = PROMPTS[:rows], [1, 2][:rows]
    out = run(name, prompts, seeds)
    assert out.shape[0] == rows
    assert torch.isfinite(out).all()
    if rows == 2:
        assert (out[0] - out[1]).abs().max() > 1e-3
    assert torch.equal(out, run(name, prompts, seeds))
    other = run(name, prompts, seeds, prompt=["something green"] * rows)
    assert (out - other).abs().amax(dim=tuple(range(1, out.ndim))).min() > 1e-4
    assert (out - run(name, prompts, [s + 9 for s in seeds])).abs().max() > 1e-3


@pytest.mark.parametrize("name", families.NAMES)
def test_gradient_reaches_denoiser(name: str) -> None:
    family = families.get(name)
    pipe = family.build()
    seen = {}
    for part in family.modules:
        module = getattr(pipe, part)
        seen[part] = 0
        weights = [p for p in module.parameters() if p.requires_grad]
        assert weights

        def hook(mod: torch.nn.Module, args: Any, out: Any, part: str = part, weights: Any = weights) -> None:
            first = out[0] if isinstance(out, tuple) else out.sample
            total = sum(o.float().square().sum() for o in (first if isinstance(first, list) else [first]))
            if not seen[part]:
                grads = torch.autograd.grad(total, weights, allow_unused=True)
                seen[part] = sum(1 for g in grads if g is not None and g.abs().max() > 0) / len(weights)

        module.register_forward_hook(hook)
    prompts = PROMPTS[: min(2, family.max_rows or 2)]
    inner = type(pipe).__call__.__wrapped__
    with torch.enable_grad():
        inner(
            pipe,
            **family.batched_call(prompts),
            generator=families.generators(list(range(len(prompts)))),
            num_inference_steps=4,
            output_type="latent",
            return_dict=False,
        )
    assert all(share > 0.5 for share in seen.values()), seen


def test_batched_call_is_fresh() -> None:
    family = families.get("z_image")
    first = family.batched_call(PROMPTS)
    families.pipeline("z_image")(
        **first, generator=families.generators([0, 1]), num_inference_steps=1, output_type="latent"
    )
    assert first["prompt"] != PROMPTS  # the pipeline edits the list it is given
    assert family.batched_call(PROMPTS)["prompt"] == PROMPTS


def test_single_prompt_family_refuses_more() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        families.get("qwen_edit_plus").batched_call(PROMPTS)
