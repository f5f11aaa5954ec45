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

import wide_language_support as wide

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
TEXTS = [*BASE, "generation.max_new_tokens=64", "rewards={place: {use: lengths_for_tests.place}}"]
AGAIN = "train.gradient_checkpointing=true"
ROUNDING, OTHER = 1e-4, 0.03  # of brightness and contrast, where numbers are not equal


@dataclass(frozen=True)
class Switch:
    """keys save memory in a phase, beside others that are given in both runs. error: how far the mean brightness and
    contrast of the samples may be from those without, of texts the norm of the gradient as a share; 0: loss and
    gradient too are those without, to the last digit."""

    keys: str
    phase: str
    beside: str = ""
    error: float = 0.0
    recipe: str = "tiny_flow_grpo"

    def lists(self, folder: Path) -> list[list[str]]:
        """The keys of the two runs. folder: for what they read."""
        base = PICTURES
        if self.recipe != "tiny_flow_grpo":
            model, prompts = wide.folder(folder / "wide"), wide.prompts(folder / "prompts.jsonl")
            base = [*TEXTS, f"model=random:{model}", f"prompts={{train: {prompts}, heldout: null}}"]
        return [[*base, *self.beside.split()], [*base, *self.beside.split(), *self.keys.split()]]


def of_text(keys: str, phase: str, beside: str = "", error: float = 0.0) -> Switch:
    """A switch of a language model's recipe."""
    return Switch(keys, phase, beside, error, "tiny_lm_grpo")


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
    of_text(AGAIN, "training"),
    of_text(f"{AGAIN} train.recompute_every=2", "training"),
    of_text("train.offload_activations=true", "training"),
    of_text("train.ema_in_host=true", "rollout", "train.ema=0.9 lora.rank=128"),
    of_text('quantize={"weights":"int8"}', "rollout", error=1.0),
    of_text('quantize={"weights":"int8"}', "training", AGAIN, error=1.0),
    of_text("train.micro_batch=4", "training", error=ROUNDING),
    of_text("train.rollout_batch=4", "rollout", error=ROUNDING),
    of_text("rollout.merge=true", "rollout", error=ROUNDING),
    of_text("dtype.adapters=model", "training", "dtype.model=bfloat16", 0.2),
]


def measured(recipe: str, lists: list[list[str]]) -> list[dict]:
    child = subprocess.run(
        [sys.executable, str(TESTS / "held_support.py"), recipe, json.dumps(lists)], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: f"{switch.recipe} {switch.keys} {switch.phase}")
def test_a_switch_saves_what_the_plan_says(switch: Switch, tmp_path: Path) -> None:
    if "quantize" in switch.keys and find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    without, given = measured(switch.recipe, switch.lists(tmp_path))
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
    if switch.recipe == "tiny_lm_grpo":
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=switch.error)
        return
    for name in ("samples/brightness", "samples/contrast"):
        assert after[name] == pytest.approx(before[name], abs=switch.error)


BESIDE = {
    "plain": "",
    "full": "lora=null full=true",
    "divergence": "objective.kl=0.1 objective.kl_kind=exact",
    "entropy": "objective.entropy=0.01",
    "critic": "objective.preset=ppo",
    "teacher": "objective.kl=0.1 objective.kl_kind=exact reference.use=model reference.path=MODEL",
    "copy": "rollout.dtype=bfloat16",
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", BESIDE.values(), ids=list(BESIDE))
def test_what_else_a_language_model_s_recipe_holds_is_planned(keys: str, tmp_path: Path) -> None:
    base, _ = of_text("", "").lists(tmp_path)
    keys = keys.replace("MODEL", f"random:{tmp_path / 'wide'}")
    (found,) = measured("tiny_lm_grpo", [[*base, *keys.split()]])
    for phase, planned in found["planned"].items():
        held = found["held"][phase]
        print(f"| {keys} | {phase} | {planned / 2**20:.1f} | {held / 2**20:.1f} |")
        assert planned == pytest.approx(held, rel=0.25), phase
