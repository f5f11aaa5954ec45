"""What a plan records of a pipeline, against the shapes that its denoiser is given when it is called for real."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

import families
from flowrl.planning.sizes.components import components
from flowrl.planning.sizes.inputs import NotRecordedError, record

QUICK = ("kontext", "z_image", "wan_i2v", "flux2")
UNKNOWN = {
    "hidream": "bincount",
    "hunyuan_image": "nonzero",
    "mochi": "autocast",
}  # what needs values, or a real device
NAMES = sorted(set(families.NAMES) - {"cosmos2"})  # whose judge of pictures cannot be saved


def shapes(given: object) -> list[object]:
    leaves, _ = tree_flatten(given)
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_denoiser_is_passed_what_the_plan_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first step's calls, their arguments by name and shape, and the final states as they are decoded."""
    family = families.get(name)
    family.build().save_pretrained(tmp_path)
    pipe = type(families.pipeline(name)).from_pretrained(tmp_path)
    rows = 1 if family.max_rows == 1 else 2
    text = "a small red circle above two blue squares"
    call = family.batched_call([text] * rows)
    given: list[tuple] = []
    steps: list[int] = []
    module = getattr(pipe, family.modules[0])
    module.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    step = type(pipe.scheduler).step

    def stepped(*args: Any, **kwargs: Any) -> Any:
        steps.append(len(given))
        return step(*args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", stepped)
    noise = [torch.Generator().manual_seed(row) for row in range(rows)]
    with torch.no_grad():
        pipe(**call, generator=noise[0] if rows == 1 else noise, num_inference_steps=12, output_type="pt")
    monkeypatch.undo()

    call.pop("prompt")
    modules = {n: part.build(torch.float32) for n, part in (components(str(tmp_path)) or {}).items()}
    if name in UNKNOWN:
        with pytest.raises(NotRecordedError, match=UNKNOWN[name]):
            record(tmp_path, modules, family.modules, call, rows=rows, text=text, pictures={})
        return
    found = record(tmp_path, modules, family.modules, call, rows=rows, text=text, pictures={})
    calls = found.calls[family.modules[0]]
    assert len(calls) == steps[0]
    for mine, real in zip(calls, given, strict=False):
        assert shapes(mine) == shapes(real)
    assert found.latent > 0 and all(p.is_meta for m in modules.values() for p in m.parameters())
    assert not any("forward" in vars(m) or type(m).__module__ == "flowrl" for m in modules.values())


def test_a_call_that_cannot_be_made_says_why(tmp_path: Path):
    pipe = families.get("flux").build()
    pipe.save_pretrained(tmp_path)
    modules = {n: part.build(torch.float32) for n, part in (components(str(tmp_path)) or {}).items()}
    with pytest.raises(NotRecordedError, match="ValueError: Cannot forward both"):
        call = {"prompt_embeds": torch.zeros(1, 4, 32)}
        record(tmp_path, modules, ["transformer"], call, rows=1, text="a", pictures={})
    assert "forward" not in vars(modules["transformer"])
