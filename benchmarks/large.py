"""What an iteration of a recipe takes on this machine: seconds by phase, what flowrl adds to bare calls, memory.

    python benchmarks/large.py RECIPE [KEY=VALUE ...] [--iterations 3] [--json FILE]
    python benchmarks/large.py flow_grpo_flux model=random:FLUX.1-dev train.prompts=1 train.group=4

The recipe runs as it is, from its own command, for a few iterations, without evaluations; the first is a warm-up. With
`model: random:NAME` nothing is downloaded. Afterwards the network is called by itself with inputs of the same shapes:
  rollout    seconds of the phase over those spent in the network's forwards
  training   seconds of the phase over those of its forwards and backwards, called bare
  share      FLOP/s of an iteration's calls over those of a large matrix product in the same dtype. Calls with a cache
             of keys and values cannot be made bare: of a language model it is the operations of training alone
  memory     the most that was held, over the estimate of the plan. On a CPU it is the resident memory of the process
             beyond what it had without the model, libraries and kernels' workspaces that come later included
"""

import argparse
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from flowrl.kinds import kind_of
from flowrl.planning.sizes.fits import peak
from flowrl.policies.devices import device_of
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs import loop
from flowrl.runs.console import Console
from flowrl.runs.start import run

PHASES = ("rollout", "score", "train")
KINDS_OF_CALL = 8  # different shapes that are called bare, at most


class Calls:
    """The forwards of what is trained: how many of each shape, with and without gradient, and seconds of rollouts."""

    def __init__(self, device: torch.device):
        self.device = device
        self.number: Counter[str] = Counter()
        self.given: dict[str, tuple[nn.Module, Any, bool]] = {}
        self.drawing = 0.0  # seconds of the forwards of rollouts
        self.phase = ""
        self.before = 0  # bytes of the process without the model
        self._start = 0.0

    def watch(self, module: nn.Module) -> None:
        """Counts the calls of a module from now on."""
        module.register_forward_pre_hook(self._enter, with_kwargs=True)
        module.register_forward_hook(self._leave)

    def reset(self) -> None:
        """Begins to count anew."""
        self.number.clear()
        self.drawing = 0.0

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        grad = torch.is_grad_enabled()
        shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = f"{id(module)} {grad} {shapes}"
        self.number[name] += 1
        plain = all(isinstance(leaf, Tensor | int | float | str | None) for leaf in tree_leaves((args, kwargs)))
        if plain and name not in self.given and len(self.given) < KINDS_OF_CALL:
            self.given[name] = module, tree_map(_like, (args, kwargs)), grad
        self._start = _now(self.device)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if self.phase == "rollout":
            self.drawing += _now(self.device) - self._start

    def bare(self, repeats: int) -> dict[str, float]:
        """Seconds and FLOP of the counted calls when the module is called by itself, with backward where it had one."""
        found = {"seconds": 0.0, "seconds with gradient": 0.0, "flop": 0.0, "calls": 0.0}
        for name, (module, (args, kwargs), grad) in self.given.items():
            seconds = []
            for _ in range(repeats + 1):
                start = _now(self.device)
                _call(module, args, kwargs, grad)
                seconds.append(_now(self.device) - start)
            with FlopCounterMode(display=False) as counted:
                _call(module, args, kwargs, grad)
            times = self.number[name]
            found["seconds with gradient" if grad else "seconds"] += times * statistics.median(seconds[1:])
            found["flop"] += times * counted.get_total_flops()
            found["calls"] += times
        return found


def _call(module: nn.Module, args: tuple, kwargs: dict[str, Any], grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        output = module.forward(*args, **kwargs)
        if grad:
            sum(x.float().sum() for x in tree_leaves(_tensors(output)) if x.requires_grad).backward()
    for parameter in module.parameters():
        parameter.grad = None


def _tensors(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
    return [leaf for value in values for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.dim() > 1]


def _like(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = _now(device)
        a @ b
        seconds.append(_now(device) - start)
    return 2 * size**3 / min(seconds[1:])


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 0 if found is None else 1024 * int(found[1])


@contextlib.contextmanager
def watched(recipe: Recipe, calls: Calls) -> Iterator[None]:
    """Within, the policy that a run builds is watched."""
    building = kind_of(recipe).building
    build = building.build

    def build_watched(recipe: Recipe) -> Any:
        policy = build(recipe)
        for module in policy.modules.values():
            calls.watch(module)
        whole = modules_of(policy.source) if hasattr(policy.source, "components") else policy.modules
        calls.before = resident() - sum(p.numel() * p.element_size() for m in whole.values() for p in m.parameters())
        return policy

    iterate, begun = loop.iterate, []

    def iterate_counted(*args: Any, enter: Callable[[str], None], **kwargs: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:  # the first was a warm-up
            calls.reset()

        def entered(name: str) -> None:
            calls.phase = name
            enter(name)

        return iterate(*args, enter=entered, **kwargs)

    building.build, loop.iterate = build_watched, iterate_counted
    try:
        yield
    finally:
        building.build, loop.iterate = build, iterate


def measure(recipe: Recipe, *, repeats: int = 3) -> dict[str, Any]:
    """The numbers, in seconds, bytes, FLOP and FLOP/s; see the head of the file."""
    device, calls = device_of(recipe.device), Calls(device_of(recipe.device))
    prompts, _, _ = planned_prompts(recipe)
    planning = kind_of(recipe).planning
    estimate, planned = peak(planning.sizes(recipe, prompts or [])), planning.flops(recipe, prompts or [])
    with tempfile.TemporaryDirectory() as folder, watched(recipe, calls):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        where = run(recipe.model_copy(update={"output": folder + "/run"}), Console(RichConsole(quiet=True)))["folder"]
        lines = Path(where, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM") - calls.before
    iterations = [one for one in map(json.loads, lines) if "time_rollout" in one]
    iterations = iterations[1:] or iterations
    seconds = {name: statistics.fmean(one.get(f"time_{name}", 0.0) for one in iterations) for name in PHASES}
    number = len(iterations)
    bare = calls.bare(repeats)
    rate = matmul_rate(device, getattr(torch, recipe.dtype.model))
    whole = sum(seconds.values())
    return {
        "recipe": recipe.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": recipe.dtype.model,
        "iterations": number,
        "seconds": seconds,
        "seconds an iteration": whole,
        "rollout over forwards": _over(seconds["rollout"] * number, calls.drawing),
        "training over bare calls": _over(seconds["train"] * number, bare["seconds with gradient"]),
        "calls that were tried bare": bare["calls"] / max(sum(calls.number.values()), 1),
        "FLOP an iteration": bare["flop"] / number,
        "FLOP an iteration by the plan": None if planned is None else planned.total,
        "FLOP/s": bare["flop"] / number / whole,
        "share of a matrix product's rate": bare["flop"] / number / whole / rate,
        "bytes held at most": held,
        "bytes estimated": estimate,
        "held over estimated": _over(held, estimate),
    }


def _over(value: float, base: float | None) -> float | None:
    return value / base if base else None


def main() -> None:
    """Prints the numbers, and writes them as JSON where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    none = ["eval={at_start: false, at_end: false}", f"train.iterations={options.iterations}"]
    found = measure(load(options.recipe, [*options.overrides, *none]), repeats=options.repeats)
    for name, value in found.items():
        told = ", ".join(f"{k} {v:.3g}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:36}{f'{told:.4g}' if isinstance(told, float) else told}")
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"overrides": options.overrides, "name": options.recipe, **found}) + "\n")


if __name__ == "__main__":
    main()
