"""A gate is its module to all who look, and skips exactly the calls of skipped iterations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, CacheMixin, ModelMixin
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn

import families
from flowrl.policies.pipelines.calls.gates import GateKeeper, ModuleGate, Use
from flowrl.policies.pipelines.steps.intercepted import Session


class Doubling(nn.Module):
    """Returns what denoisers return: a tensor for 2R rows, a list with one entry a row, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls += 1
        both = torch.cat([x, x]) * self.weight
        return {"both": both, "list": list((x * self.weight).unsqueeze(1)), "name": "doubled"}


class FakeWalk:
    """Real from iteration `begin` on."""

    def __init__(self, rows: int, begin: int = 0):
        self.rows, self.begin = rows, begin

    def is_real(self, iteration: int) -> bool:
        return iteration >= self.begin

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        raise NotImplementedError

    def step(self, step: Any) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def keeper() -> GateKeeper:
    return GateKeeper(Session())


def run(keeper: GateKeeper, walk: FakeWalk, gate: Any, steps: int, *, rollout_walk: bool = False) -> list[Any]:
    """A loop of denoiser calls and steps."""
    keeper.session.begin(walk)
    keeper.begin()
    keeper.rollout_walk = rollout_walk
    outputs = []
    for _ in range(steps):
        outputs.append(gate(torch.ones(walk.rows, 3)))
        keeper.session.arrive()
    keeper.rollout_walk, keeper.session.walk = False, None
    return outputs


def probed(keeper: GateKeeper, steps: int = 3) -> tuple[Doubling, ModuleGate]:
    """A module whose calls the keeper has seen."""
    module = Doubling()
    gate = ModuleGate(module, "transformer", keeper)
    run(keeper, FakeWalk(1), gate, steps, rollout_walk=True)
    keeper.denoisers = {"transformer"}
    module.calls = 0
    return module, gate


def test_a_gate_passes_for_its_module(keeper: GateKeeper) -> None:
    vae = families.get("flux").build().vae
    gate = ModuleGate(vae, "vae", keeper)
    assert isinstance(gate, AutoencoderKL)
    assert isinstance(gate, nn.Module)
    assert gate.config is vae.config
    assert gate.dtype == vae.dtype
    assert gate.encode == vae.encode
    assert list(gate.parameters())[0] is next(vae.parameters())
    gate.marker = 5
    assert vae.marker == 5
    with pytest.raises(AttributeError, match="nonsense"):
        _ = gate.nonsense


def test_a_module_is_fetched_for_work_and_not_for_a_look(keeper: GateKeeper) -> None:
    fetched: list[int] = []
    gate = ModuleGate(families.get("flux").build().vae, "vae", keeper, Use(fetch=lambda: fetched.append(1)))
    _ = gate.config, gate.dtype, isinstance(gate, nn.Module)
    assert not fetched
    gate.decode(torch.zeros(1, 4, 8, 8))
    assert len(fetched) == 1
    gate(torch.zeros(1, 3, 16, 16))
    assert len(fetched) == 2


def test_outside_a_walk_calls_go_through(keeper: GateKeeper) -> None:
    module, gate = probed(keeper)
    assert torch.equal(gate(torch.ones(1, 3))["both"], torch.full((2, 3), 2.0))
    assert module.calls == 1


def test_skipped_calls_get_zeros_of_the_recorded_structure(keeper: GateKeeper) -> None:
    module, gate = probed(keeper)
    outputs = run(keeper, FakeWalk(5, begin=2), gate, 3)
    assert module.calls == 1
    for output in outputs[:2]:
        assert output["name"] == "doubled"
        assert torch.equal(output["both"], torch.zeros(10, 3))
        assert [tuple(entry.shape) for entry in output["list"]] == [(1, 3)] * 5
    assert torch.equal(outputs[2]["both"], torch.full((10, 3), 2.0))
    assert outputs[2]["both"].requires_grad


def test_calls_beyond_the_probe_are_like_its_last(keeper: GateKeeper) -> None:
    module, gate = probed(keeper, steps=2)
    outputs = run(keeper, FakeWalk(2, begin=6), gate, 7)
    assert module.calls == 1
    assert torch.equal(outputs[5]["both"], torch.zeros(4, 3))


def test_without_skipping_earlier_calls_run_with_the_gradient_of_what_they_leave_behind(keeper: GateKeeper) -> None:
    module, gate = probed(keeper)
    keeper.skip = False
    outputs = run(keeper, FakeWalk(1, begin=2), gate, 3)
    assert module.calls == 3
    assert [output["both"].requires_grad for output in outputs] == [True, True, True]
    assert torch.equal(outputs[0]["both"], outputs[2]["both"])


def test_only_denoisers_are_skipped(keeper: GateKeeper) -> None:
    module, gate = probed(keeper)
    keeper.denoisers = {"another"}
    run(keeper, FakeWalk(1, begin=3), gate, 3)
    assert module.calls == 3


def test_the_keeper_knows_which_iterations_called_what(keeper: GateKeeper) -> None:
    probed(keeper)
    assert keeper.iterations_by_module() == {"transformer": [0, 1, 2]}
    keeper.forget()
    assert keeper.iterations_by_module() == {}


class Cached(ModelMixin, CacheMixin):
    """A diffusers model with blocks, one of them listed twice, and a hook that holds a state where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing: nn.Module | None = None
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))
        self.again = self.blocks[1]


class Counting(ModelHook):
    """How often its state was reset."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.resets += 1
        return module


def test_what_diffusers_asks_of_all_modules_within_a_gate_is_what_its_module_says(keeper: GateKeeper):
    module = Cached()
    gate: Any = ModuleGate(module, "denoiser", keeper)
    assert list(gate.modules()) == list(module.modules()) and len(list(gate.modules())) == 11
    assert gate.device == module.device == torch.device("cpu")
    gate.to("meta")
    assert gate.device == get_module_execution_device(gate) == torch.device("meta")
    gate._reset_stateful_cache()
    hook = Counting()
    HookRegistry.check_if_exists_or_initialize(module.blocks[2][0]).register_hook(hook, "counting")
    gate._reset_stateful_cache()
    assert hook.resets == 1
    plain: Any = ModuleGate(Doubling(), "other", keeper)
    assert not hasattr(plain, "_reset_stateful_cache") and not hasattr(plain, "device")


def test_a_group_that_is_offloaded_says_where_its_inputs_go(keeper: GateKeeper):
    module, here = Cached(), torch.device("cpu")
    gate: Any = ModuleGate(module, "denoiser", keeper)
    apply_group_offloading(module, here, here, offload_type="leaf_level")
    registries = [part._diffusers_hook for part in module.modules() if hasattr(part, "_diffusers_hook")]
    hooks = [hook for registry in registries for hook in registry.hooks.values() if hasattr(hook, "config")]
    assert hooks and gate.device == here
    hooks[0].config.onload_device = torch.device("meta")  # a device that every machine has
    assert gate.device == module.device == torch.device("meta")
