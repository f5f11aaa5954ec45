"""What a run holds on its device by phase, counted on a CPU: bytes of the tensors that live, of those on the device.

A GPU is imitated as to where tensors rest: `.cpu()` and memory for copies in the host give tensors of the host, `.to` a
device brings those back, what is computed from the host's alone stays there; all others are the device's. So switches
that move tensors to the host are counted as they act, and copies that a CPU would not make are made.

As a program: runs a recipe with each of several lists of further keys (JSON), and prints as JSON, for each of them, the
bytes at most by phase from the second iteration on, what a plan says of the same, and metrics of the last iteration.
"""

import contextlib
import gc
import json
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowrl.core.learning import activations
from flowrl.core.learning.learner import AVERAGE
from flowrl.kinds import kind_of
from flowrl.planning.sizes.saved import storage_of
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs import loop, start
from flowrl.runs.console import Console
from flowrl.runs.start import run

NAMES = {"score": "scoring", "train": "training"}  # phases of the loop by what plans call them


class Held(TorchDispatchMode):
    """Within, the storages that operations make are watched. `most`: by phase, the most bytes on the device at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.phases = 0, dict[str, int](), ["before"]
        self._made: bool | None = None  # whether what is made now is the host's; None: by what it is made of
        self._live: dict[int, tuple[weakref.ref, int, bool]] = {}  # storage -> (it, its bytes, whether on the device)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """The operation's own result."""
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        in_host = (bool(given) and all(map(self.in_host, given))) if self._made is None else self._made
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf, in_host=in_host)
        self.most[self.phases[-1]] = max(self.most.get(self.phases[-1], 0), self.now)
        return result

    def note(self, tensor: Tensor, *, in_host: bool = False) -> None:
        """Watches the storages of a tensor, where they are not watched yet."""
        for part in plain(tensor):
            where, storage = storage_of(part), part.untyped_storage()
            if where not in self._live:
                size = 0 if in_host else storage.nbytes()
                self._live[where] = weakref.ref(storage, lambda _, at=where: self._gone(at)), size, in_host
                self.now += size

    def in_host(self, tensor: Tensor) -> bool:
        """Whether a tensor rests in the host."""
        return any(self._live.get(storage_of(part), (None, 0, False))[2] for part in plain(tensor))

    def to_host(self, tensor: Tensor) -> None:
        """From now on a tensor counts as the host's."""
        for part in plain(tensor):
            held, size, in_host = self._live[storage_of(part)]
            self._live[storage_of(part)] = held, 0, True
            self.now -= size

    @contextlib.contextmanager
    def making(self, *, in_host: bool) -> Iterator[None]:
        """Within, what operations make is the host's, or the device's."""
        before, self._made = self._made, in_host
        try:
            yield
        finally:
            self._made = before

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within, what is held counts for this phase."""
        self.enter(name, deeper=True)
        try:
            yield
        finally:
            self.phases.pop()

    def enter(self, name: str, *, deeper: bool = False) -> None:
        """A phase begins, in the place of the present one or within it."""
        self.phases = [*(self.phases if deeper else self.phases[:-1]), name]
        self.most[name] = max(self.most.get(name, 0), self.now)

    def _gone(self, where: int) -> None:
        _, size, _ = self._live.pop(where)
        self.now -= size


class Apart(TorchFunctionMode):
    """Within, host and device are apart as with a GPU: what travels is a copy."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result."""
        given, held = kwargs or {}, self.held
        if func is Tensor.cpu:
            with held.making(in_host=True):
                return args[0].clone()
        if func is Tensor.to and held.in_host(args[0]) and any(isinstance(one, torch.device) for one in args):
            with held.making(in_host=False):
                result = func(*args, **given)
                return result.clone() if held.in_host(result) else result
        return func(*args, **given)


def plain(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of, several if it is quantised."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain(getattr(tensor, name))]


def measure(recipe: Recipe) -> dict[str, Any]:
    """{phase: bytes at most} of a run, {phase: bytes} of its plan, and its metrics."""
    held, building, iterate = Held(), kind_of(recipe).building, loop.iterate
    build, build_learner = building.build, start.build_learner

    def watch(module: nn.Module, method: str, phase: str) -> None:
        own = getattr(module, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with held.phase(phase):
                return own(*args, **kwargs)

        setattr(module, method, watched)

    def build_watched(recipe: Recipe) -> Any:
        policy = build(recipe)
        whole = modules_of(policy.source) if hasattr(policy.source, "components") else policy.modules
        for tensor in (t for m in whole.values() for t in m.parameters()):
            held.note(tensor)
        for name, module in whole.items():
            if hasattr(module, "decode"):
                watch(module, "decode", "decoding")
            elif name not in policy.modules:
                watch(module, "forward", "encoding")
        return policy

    def build_learner_watched(*args: Any) -> Any:
        learner = build_learner(*args)
        if learner.average is not None and recipe.train.ema_in_host:
            for tensor in learner.copies[AVERAGE]:
                held.to_host(tensor)
        return learner

    hooks = activations.saved_tensors_hooks

    def hooks_watched(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Any:
        """The hooks of activations in the host, whose copies a CPU would not tell apart."""

        def packed(tensor: Tensor) -> Any:
            with held.making(in_host=True):
                return pack(tensor)

        def unpacked(packed: Any) -> Tensor:
            with held.making(in_host=False):
                tensor = unpack(packed)
                return tensor.clone() if held.in_host(tensor) else tensor

        return hooks(packed, unpacked)

    begun: list[int] = []

    def iterate_watched(*args: Any, enter: Callable[[str], None], **kwargs: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:  # when the optimizer has its moments
            gc.collect()
            held.most.clear()

        def entered(name: str) -> None:
            held.enter(NAMES.get(name, name))
            enter(name)

        with held.phase("between"):
            return iterate(*args, enter=entered, **kwargs)

    building.build, start.build_learner, loop.iterate = build_watched, build_learner_watched, iterate_watched
    activations.saved_tensors_hooks = hooks_watched
    try:
        prompts, _, _ = planned_prompts(recipe)
        planned = kind_of(recipe).planning.sizes(recipe, prompts or [])
        with tempfile.TemporaryDirectory() as folder, held, Apart(held):
            where = run(recipe.model_copy(update={"output": folder + "/run"}), Console(RichConsole(quiet=True)))[
                "folder"
            ]
            lines = Path(where, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    finally:
        building.build, start.build_learner, loop.iterate = build, build_learner, iterate
        activations.saved_tensors_hooks = hooks
    metrics = [one for one in map(json.loads, lines) if "time_rollout" in one]
    return {
        "held": held.most,
        "planned": {} if planned is None else {phase.name: phase.total for phase in planned.phases},
        "metrics": metrics[-1],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([measure(load(sys.argv[1], keys)) for keys in json.loads(sys.argv[2])]))
