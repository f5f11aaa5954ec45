"""Checkpoints that ranks write part by part are whole, or refused."""

import shutil

import pytest
import torch
from torch import distributed as dist
from torch import nn

from flowrl.core.learning.optimizers import make_optimizer
from flowrl.core.learning.shards import clip_gradients, is_shard
from flowrl.engines.shard_files import read_shards, sharded_like, write_shards
from flowrl.engines.sharding import _whole_state
from flowrl.runs import checkpoint_files
from flowrl.runs.checkpoints import Checkpoints, StateError, find_damage, load


@pytest.fixture(scope="module")
def mesh():
    """A group of one rank: tensors are sharded as among many, and files are written as by many."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Alone:
    """The only rank that shares out a state."""

    rank = 0

    def write(self, folder, tensors) -> None:
        write_shards(folder, tensors)


def state_of(mesh) -> dict:
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = torch.arange(15.0).view(5, 3)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    return {
        "parameters": {"a.b": sharded},
        "learner": {"moments": {0: {"exp_avg": sharded * 2, "step": torch.tensor(3.0)}}},
    }


def test_one_process_reads_what_ranks_wrote(mesh, tmp_path):
    kept, state = Checkpoints(tmp_path), state_of(mesh)
    there = kept.save(1, state, Alone())
    assert find_damage(there) is None
    found = load(there)
    assert type(found["parameters"]["a.b"]) is torch.Tensor
    assert torch.equal(found["parameters"]["a.b"], torch.arange(15.0).view(5, 3))
    assert torch.equal(found["learner"]["moments"][0]["exp_avg"], 2 * torch.arange(15.0).view(5, 3))
    assert float(found["learner"]["moments"][0]["step"]) == 3.0
    sharded = state["parameters"]["a.b"]
    again = load(there, like=lambda path: sharded if path == "/parameters/a.b" else None)["parameters"]["a.b"]
    assert again.placements == sharded.placements and torch.equal(again.full_tensor(), sharded.full_tensor())
    files = [path for path in there.path.rglob("*") if path.is_file()]
    assert len(files) == 4 and not [path for path in files if path.read_bytes()[:1] == b"\x80"]  # a pickle


def test_a_whole_tensor_is_parted_as_a_run_that_shares_out_needs_it(mesh, tmp_path):
    state = state_of(mesh)
    whole = torch.arange(15.0).view(5, 3)
    there = Checkpoints(tmp_path).save(1, {"parameters": {"a.b": whole}})
    found = load(there, like=lambda path: state["parameters"]["a.b"])["parameters"]["a.b"]
    assert torch.equal(found.full_tensor(), whole) and found.placements == state["parameters"]["a.b"].placements
    assert sharded_like(torch.ones(2), state["parameters"]["a.b"]).shape == (2,)  # of another shape: as it is


def test_parts_are_never_written_as_if_they_were_whole(mesh, tmp_path):
    with pytest.raises(TypeError, match="ranks hold parts of this state"):
        Checkpoints(tmp_path).save(1, state_of(mesh))
    assert Checkpoints(tmp_path).all() == []


def test_a_missing_part_is_an_error_and_no_memory(mesh, tmp_path, monkeypatch):
    there = Checkpoints(tmp_path).save(1, state_of(mesh), Alone())
    (file,) = (there.path / "shards").iterdir()
    shutil.move(file, tmp_path / "away")
    assert find_damage(there) == f"shards/{file.name} is missing"
    half = {"/parameters/a.b": torch.zeros(1)}
    write_shards(there.path / "shards", half)
    monkeypatch.setattr(checkpoint_files, "find_damage", lambda _: None, raising=False)
    with pytest.raises(StateError, match="is not whole: the part of a rank is missing"):
        load(there)


def test_a_tensor_that_only_one_of_two_ranks_wrote_is_refused(mesh, tmp_path):
    """The header of a part says that it is one: the other half would be whatever lies in memory."""
    import json
    import struct

    from torch.distributed.tensor import Shard, distribute_tensor

    write_shards(tmp_path / "shards", {"a": distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])})
    (file,) = (tmp_path / "shards").iterdir()
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    custom = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    custom["a"]["saved_offsets"] = [4, 0]  # as if it were the second half
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(custom)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(ValueError, match="a is not whole: the part of a rank is missing"):
        read_shards(tmp_path / "shards", ["a"])


class Tied(nn.Module):
    """A layer whose weight two names have, and one that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.frozen = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False), nn.Linear(3, 3)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)


@pytest.mark.parametrize("adapted", [False, True])
def test_files_are_written_of_whole_weights_that_share_what_they_shared(mesh, adapted):
    from torch.distributed.fsdp import fully_shard

    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module._hf_peft_config_loaded = adapted
    fully_shard(module, mesh=mesh)
    hook = _whole_state(module, True)
    state = module.state_dict()
    names = {"embed.weight", "head.weight"} if adapted else set(before)  # of adapters, what learns alone
    for name in names:
        assert not is_shard(state[name]) and torch.equal(state[name], before[name])
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    hook.remove()
    assert is_shard(module.state_dict()["embed.weight"])


@pytest.mark.parametrize("most", [0.5, 100.0])
def test_the_norm_of_gradients_in_parts_and_whole_ones_is_that_of_all(mesh, most):
    """A critic has its model in parts and its head whole; torch takes them for no operation at once."""
    from torch.distributed.tensor import Shard, distribute_tensor

    gradients = [torch.arange(15.0).view(5, 3) / 10, torch.tensor([2.0, -1.0]), None]
    plain = [nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    sharded = [nn.Parameter(distribute_tensor(torch.ones(5, 3), mesh, [Shard(0)])), *map(nn.Parameter, plain[1:])]
    for parameter, gradient in zip(plain, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    sharded[0].grad, sharded[1].grad = distribute_tensor(gradients[0].clone(), mesh, [Shard(0)]), gradients[1].clone()
    norms = [float(clip_gradients(parameters, most)) for parameters in (plain, sharded)]
    assert norms[1] == pytest.approx(norms[0]) and norms[0] == pytest.approx(
        float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    )
    assert torch.allclose(sharded[0].grad.full_tensor(), plain[0].grad) and torch.allclose(
        sharded[1].grad, plain[1].grad
    )
    for parameters in (plain, sharded):  # and both are moved by one optimizer
        how = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
        make_optimizer("adamw_fused", parameters, **how).step()
    assert torch.allclose(sharded[0].full_tensor(), plain[0]) and torch.allclose(sharded[1], plain[1])
