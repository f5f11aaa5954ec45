"""What each memory switch saves: the plan's word against what a run holds, in a process of its own.

Tensors are counted as they live (see held_support.py): what a process takes of its system is noisier than a tiny model
is large. The numbers of docs/large.md are printed by `pytest -s`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
BASE = [
    "train.prompts=2",
    "train.group=8",
    "train.updates=1",
    "train.iterations=2",
    "eval={at_start: false, at_end: false}",
    "watch=null",
]
PICTURES = [*BASE, "rewards={jpeg: {use: jpeg_compressibility}}"]
TEXTS = [*BASE, "generation.max_new_tokens=32"]
AGAIN = "train.gradient_checkpointing=true"
ROUNDING, OTHER = 1e-4, 0.03  # of brightness and contrast, where numbers are not equal


@dataclass(frozen=True)
class Switch:
    """keys save memory in a phase, beside others that are given in both runs. error: how far the mean brightness and
    contrast of the samples may be from those without; 0: loss and gradient too are those without, to the last digit."""

    keys: str
    phase: str
    beside: str = ""
    error: float = 0.0
    recipe: str = "tiny_flow_grpo"

    @property
    def lists(self) -> list[list[str]]:
        """The keys of the two runs."""
        base = PICTURES if self.recipe == "tiny_flow_grpo" else TEXTS
        return [[*base, *self.beside.split()], [*base, *self.beside.split(), *self.keys.split()]]


SWITCHES = [
    Switch("vae.batch=4", "decoding", error=ROUNDING),
    Switch("vae.slicing=true", "decoding", error=ROUNDING),
    Switch("vae.tiling=true", "decoding", "pipeline.height=128 pipeline.width=128", OTHER),
    Switch("vae.dtype=bfloat16", "decoding", error=OTHER),
    Switch("offload=true", "rollout"),
    Switch("offload=true", "training"),
    Switch(AGAIN, "training"),
    Switch(f"{AGAIN} train.recompute_every=2", "training"),
    Switch("train.offload_activations=true", "training"),
    Switch("block_offload=true", "training", AGAIN),
    Switch("train.ema_in_host=true", "rollout", "train.ema=0.9 lora.rank=64"),
    Switch('quantize={"weights":"int8"}', "rollout", error=OTHER),
    Switch('quantize={"weights":"int8"}', "training", AGAIN, error=OTHER),
    Switch("train.micro_batch=4", "training", error=ROUNDING),
    Switch("train.rollout_batch=4", "rollout", error=ROUNDING),
    Switch("rollout.merge=true", "rollout", error=ROUNDING),
    Switch("dtype.adapters=model", "training", "dtype.model=bfloat16 lora.targets=all", OTHER),
]


def measured(recipe: str, lists: list[list[str]]) -> list[dict]:
    child = subprocess.run(
        [sys.executable, str(TESTS / "held_support.py"), recipe, json.dumps(lists)], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: f"{switch.keys} {switch.phase}")
def test_a_switch_saves_what_the_plan_says(switch: Switch) -> None:
    if "quantize" in switch.keys and find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    without, given = measured(switch.recipe, switch.lists)
    for found in (without, given):
        for phase, planned in found["planned"].items():
            assert planned == pytest.approx(found["held"][phase], rel=0.25), phase
    plan, held = (without[place][switch.phase] - given[place][switch.phase] for place in ("planned", "held"))
    numbers = [found[place][switch.phase] / 2**20 for place in ("planned", "held") for found in (without, given)]
    print("| `{}` | {} | {:.1f} -> {:.1f} | {:.1f} -> {:.1f} |".format(switch.keys, switch.phase, *numbers))
    assert abs(plan) > 2**18 and plan == pytest.approx(held, rel=0.25)
    before, after = without["metrics"], given["metrics"]
    if switch.error == 0:
        assert {k: v for k, v in before.items() if "time" not in k} == {
            k: v for k, v in after.items() if "time" not in k
        }
    for name in ("samples/brightness", "samples/contrast"):
        assert after[name] == pytest.approx(before[name], abs=switch.error)
