"""What a plan says of frozen weights in fewer bits, against the tensors of models that were loaded so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from flowrl.planning.sizes.few_bits import quantised_bytes
from flowrl.planning.sizes.fits import fitting, room
from flowrl.planning.sizes.measure import measure_quantised
from flowrl.planning.sizes.memory import sizes
from flowrl.planning.sizes.quantised import QuantisedBytes, copies_in_training
from flowrl.planning.sizes.query import SizeQuery
from flowrl.planning.sizes.saved import count_saved
from flowrl.policies import adapters
from flowrl.policies.loading import load_pipeline
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.recipe.load import load

LORA: dict[str, Any] = {"rank": 4, "alpha": 4.0, "targets": "attention"}
QUERY = SizeQuery("shapes-flux", LORA | {"modules": None}, "float32", {"height": 32, "width": 32}, "a red circle", {})


def parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantised weight is made of."""
    if type(tensor) is Tensor:
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


def held(module: nn.Module) -> int:
    return sum(part.numel() * part.element_size() for p in module.parameters() for part in parts(p.data))


def saved(module: nn.Module) -> int:
    """Bytes that autograd keeps of a forward beside weights."""
    config = module.config
    given = {
        "hidden_states": torch.randn(2, 64, config.in_channels),
        "timestep": torch.ones(2),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim),
        "encoder_hidden_states": torch.randn(2, 16, config.joint_attention_dim),
        "txt_ids": torch.zeros(16, 3),
        "img_ids": torch.zeros(64, 3),
        "guidance": torch.ones(2) if config.guidance_embeds else None,
    }
    own = [part for p in module.parameters() for part in parts(p.data)]
    with count_saved([*module.parameters(), *module.buffers(), *own]) as found:
        output = module(**given, return_dict=False)[0]
        return found.bytes if output.requires_grad else 0


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_torchao_s_weights_and_their_copies_are_counted(weights: str):
    pytest.importorskip("torchao")
    keys = QuantizeKeys(weights=weights, skip=["proj_out"])
    (found,) = [QuantisedBytes(*one) for one in measure_quantised(QUERY, keys)]
    plain = load_pipeline("shapes-flux", torch.float32).transformer
    few = load_pipeline("shapes-flux", torch.float32, None, keys).transformer
    assert held(plain) - held(few) == pytest.approx(found.spared, rel=0.01)
    for module in (plain, few):
        adapters.add_lora({"transformer": module}, **LORA)
    assert saved(few) - saved(plain) == found.copies > found.block > 0


def test_a_file_s_size_is_what_its_weights_take(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    module = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    file, kind = tmp_path / "small.gguf", gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(file), "flux")
    for name, value in module.state_dict().items():
        array = value.numpy().astype(numpy.float32)
        few = array.ndim == 2
        data = gguf.quants.quantize(array, kind) if few else array
        writer.add_tensor(name, data, raw_dtype=kind if few else gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = quantised_bytes(module, QuantizeKeys(weights="gguf", file=str(file)), set())
    assert found.spared == 4 * sum(p.numel() for p in module.parameters()) - file.stat().st_size
    assert file.stat().st_size == pytest.approx(2 * 64 * 96 * 34 / 32 + 4 * (64 + 96), rel=0.1)


def test_four_bits_are_half_a_byte_and_their_scales():
    layer = nn.Linear(256, 33, dtype=torch.bfloat16)
    found = quantised_bytes(nn.ModuleDict({"a": layer}), QuantizeKeys(weights="nf4"), set())
    assert found == QuantisedBytes(2 * 256 * 33 - 256 * 33 // 2 - 4 * 256 * 33 // 64)
    assert quantised_bytes(nn.ModuleDict({"a": layer}), QuantizeKeys(weights="nf4", skip=["a"]), set()).spared == 0


def test_copies_go_with_the_blocks_that_are_computed_again():
    train = load("quickstart").train
    found = QuantisedBytes(5, 100, 10)
    again = train.model_copy(update={"gradient_checkpointing": True})
    assert copies_in_training(found, train) == 100 and copies_in_training(found, again) == 10
    assert copies_in_training(found, again.model_copy(update={"recompute_every": 3})) == 70


def test_a_quantised_denoiser_is_smaller_and_stays_while_texts_are_encoded():
    keys = {"quantize": QuantizeKeys(weights="int8")}
    base = load("quickstart", ["offload=true"])
    plain, few = (sizes(recipe, []) for recipe in (base, base.model_copy(update=keys)))
    assert plain is not None and few is not None
    spared = {a.name: a.weights - b.weights for a, b in zip(plain.phases, few.phases, strict=True)}
    assert spared["rollout"] == spared["decoding"] > spared["training"] > 0
    assert few.phases[0].weights - plain.phases[0].weights == 4 * plain.parameters["transformer"] - spared["rollout"]


@pytest.mark.slow
def test_flux_at_512_fits_24_gb_in_eight_bits_and_32_without():
    """LoRA, texts encoded first, activations computed again, a row at a time."""
    recipe = load("flux_32gb", ["pipeline.height=512", "pipeline.width=512"])
    whole = {card: changes for card, changes in fitting(recipe, []) or []}
    few = {card: changes for card, changes in fitting(recipe, [], quantised=True) or []}
    assert whole[32] == []
    assert few[24] is not None and any(str(change) == "quantize.weights=int8" for change in few[24])
    changed = recipe.model_copy(update={"quantize": QuantizeKeys(weights="int8")})
    found = sizes(changed, [])
    assert found is not None and max(p.weights for p in found.phases if p.name == "rollout") < 13 * 2**30 < room(24)
