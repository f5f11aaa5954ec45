"""What is trained, and that what was saved is what is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import families
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from policies_support import PROMPTS, FamilyPolicy, gap, shake, untouched

NAMES = ["flux", "sd3", "qwen_image", "z_image", "wan", "wan22", "sana", "hunyuan_video", "ltx", "kandinsky5", "sdxl"]
LOADERS = ["flux", "sd3", "wan22", "qwen_image", "z_image", "ltx", "hunyuan_video", "sdxl", "sd15"]


def built(name: str) -> tuple[Any, dict[str, nn.Module]]:
    """A fresh pipeline and its denoisers."""
    pipe = families.get(name).build()
    return pipe, adapters.denoisers(pipe)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(name: str, targets: str) -> None:
    pipe, modules = built(name)
    policy = FamilyPolicy(name, pipe)
    before = untouched(policy, PROMPTS)
    adapters.add_lora(modules, rank=2, alpha=8, targets=targets)
    assert gap(untouched(policy, PROMPTS), before) <= 1e-5
    for module in modules.values():
        learning = [n for n, p in module.named_parameters() if p.requires_grad]
        assert learning
        assert all("lora_" in n for n in learning)
    shake(modules)
    assert gap(untouched(policy, PROMPTS), before) > 1e-4
    with adapters.disable_adapters(modules):
        assert gap(untouched(policy, PROMPTS), before) <= 1e-5
    assert gap(untouched(policy, PROMPTS), before) > 1e-4


def test_attention_is_part_of_all() -> None:
    sizes = {}
    for targets in ("attention", "all"):
        _, modules = built("flux")
        adapters.add_lora(modules, rank=2, alpha=2, targets=targets)
        sizes[targets] = {n for n, p in modules["transformer"].named_parameters() if p.requires_grad}
    assert sizes["attention"] < sizes["all"]
    assert all("attn" in n for n in sizes["attention"])
    assert not any("x_embedder" in n or "proj_out.lora" in n and "blocks" not in n for n in sizes["all"])


def test_attention_of_a_unet_is_its_projections_alone() -> None:
    """Its `attentions` hold feed-forward layers too."""
    _, modules = built("sdxl")
    adapters.add_lora(modules, rank=2, alpha=2, targets="attention")
    layers = {n.split(".lora_")[0] for n, p in modules["unet"].named_parameters() if p.requires_grad}
    ends = {re.sub(r".*\.attn\d\.", "", name) for name in layers}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}


def test_targets_may_be_names() -> None:
    _, modules = built("flux")
    adapters.add_lora(modules, rank=2, alpha=2, targets=["to_q", "to_v"])
    layers = {
        n.split(".lora_")[0].rsplit(".", 1)[1] for n, p in modules["transformer"].named_parameters() if p.requires_grad
    }
    assert layers == {"to_q", "to_v"}


def test_the_outer_factor_starts_at_zero_and_the_seed_decides_the_inner() -> None:
    weights = []
    for seed, init in ((0, "default"), (0, "default"), (1, "default"), (0, "gaussian")):
        _, modules = built("flux")
        state = torch.get_rng_state()
        adapters.add_lora(modules, rank=2, alpha=2, init=init, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        named = dict(modules["transformer"].named_parameters())
        assert all(float(p.detach().abs().max()) == 0 for n, p in named.items() if "lora_B" in n)
        weights.append(torch.cat([p.detach().flatten() for n, p in named.items() if "lora_A" in n]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_adapters_are_float32_on_a_half_precision_model() -> None:
    pipe, modules = built("flux")
    pipe.transformer.to(torch.bfloat16)
    adapters.add_lora(modules, rank=2, alpha=2)
    assert {p.dtype for p in adapters.trainable(modules)} == {torch.float32}
    assert pipe.transformer.x_embedder.weight.dtype == torch.bfloat16


def test_every_weight_is_trained_in_full() -> None:
    _, modules = built("wan22")
    for module in modules.values():
        module.requires_grad_(False)
    assert list(adapters.trainable(modules)) == []
    adapters.train_full(modules)
    assert list(adapters.trainable(modules)) == [p for m in modules.values() for p in m.parameters()]


# ---------------------------------------------------------------------- refusals


def test_denoisers_are_found_by_their_usual_names_or_taken_as_named() -> None:
    pipe = families.get("wan22").build()
    assert list(adapters.denoisers(pipe)) == ["transformer", "transformer_2"]
    assert list(adapters.denoisers(pipe, ["transformer_2"])) == ["transformer_2"]
    assert adapters.denoisers(pipe)["transformer"] is pipe.transformer
    (outside,) = families.OUTSIDE
    assert list(adapters.denoisers(families.get(outside).build())) == ["unet"]


def test_an_unknown_module_is_named_with_those_there_are() -> None:
    with pytest.raises(PolicyError, match="FluxPipeline has no module 'unet'; it has .*transformer"):
        adapters.denoisers(families.pipeline("flux"), ["transformer", "unet"])


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    class Nothing:
        components = {"vae": nn.Linear(1, 1), "tokenizer": object()}

    with pytest.raises(PolicyError, match="Nothing has no component named transformer.*its modules are vae"):
        adapters.denoisers(Nothing())


def test_unknown_targets_are_refused() -> None:
    _, modules = built("flux")
    with pytest.raises(PolicyError, match="lora.targets='atention' is not known"):
        adapters.add_lora(modules, rank=2, alpha=2, targets="atention")
    with pytest.raises(PolicyError, match="matches no linear layer of transformer"):
        adapters.add_lora(modules, rank=2, alpha=2, targets=[])


def test_names_that_match_no_layer_or_one_that_cannot_be_adapted_are_refused() -> None:
    _, modules = built("flux")
    for targets in (["to_x"], ["to_q", "to_x"]):  # peft would take the second
        with pytest.raises(PolicyError, match="'to_x' matches no layer of transformer"):
            adapters.add_lora(modules, rank=2, alpha=2, targets=targets)
    with pytest.raises(PolicyError, match="do not fit transformer"):
        adapters.add_lora(modules, rank=2, alpha=2, targets=["norm_out.norm"])


# ---------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("name", LOADERS)
def test_a_saved_adapter_is_loaded_by_diffusers(name: str, tmp_path: Path) -> None:
    pipe, modules = built(name)
    bare = untouched(FamilyPolicy(name, pipe), PROMPTS)
    adapters.add_lora(modules, rank=2, alpha=8, targets="attention")
    shake(modules)
    trained = untouched(FamilyPolicy(name, pipe), PROMPTS)
    assert gap(trained, bare) > 1e-3
    adapters.save(pipe, modules, tmp_path / "lora")

    fresh = families.get(name).build()
    fresh.load_lora_weights(tmp_path / "lora")
    if "transformer_2" in modules:
        fresh.load_lora_weights(tmp_path / "lora" / "transformer_2", load_into_transformer_2=True)
    assert gap(untouched(FamilyPolicy(name, fresh), PROMPTS), trained) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_its_own_adapter(name: str, tmp_path: Path) -> None:
    pipe, modules = built(name)
    adapters.add_lora(modules, rank=2, alpha=8)
    shake(modules)
    adapters.save(pipe, modules, tmp_path)
    fresh, again = built(name)
    adapters.add_lora(again, rank=2, alpha=8, seed=5)
    adapters.restore(fresh, again, tmp_path)
    kept = [p.detach() for p in adapters.trainable(modules)]
    found = [p.detach() for p in adapters.trainable(again)]
    assert len(kept) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))


@pytest.mark.parametrize("name", ["flux", "wan22", "sdxl"])
def test_another_run_begins_at_the_adapter_of_a_run(name: str, tmp_path: Path) -> None:
    pipe, modules = built(name)
    adapters.add_lora(modules, rank=2, alpha=8, dora=name == "flux", rslora=True)
    shake(modules)
    adapters.save(pipe, modules, tmp_path / "lora")
    _, again = built(name)
    adapters.add_lora(again, rank=2, alpha=8, dora=name == "flux", rslora=True, seed=5)
    adapters.go_on_from(again, tmp_path)
    kept, found = (dict(adapters.trainable_by_name(m)) for m in (modules, again))
    assert kept.keys() == found.keys() and all(torch.equal(kept[n], found[n]) for n in kept)
    assert name != "flux" or any("magnitude" in n for n in kept)
    _, other = built(name)
    adapters.add_lora(other, rank=4, alpha=8, rslora=True)
    with pytest.raises(PolicyError, match=r"is \[2, \d+\] there and \[4, \d+\] here|is missing|and missing here"):
        adapters.go_on_from(other, tmp_path)


def test_layers_are_named_by_a_pattern_and_scaled_by_the_root_of_the_rank() -> None:
    _, modules = built("flux")
    adapters.add_lora(modules, rank=4, alpha=8, targets=r"match:.*\.0\..*to_[qv]", rslora=True)
    layers = {n.partition(".lora_A")[0]: m for n, m in modules["transformer"].named_modules() if n.endswith("lora_A")}
    assert layers and all(re.fullmatch(r".*\.0\..*to_[qv]", n) for n in layers)
    scales = {modules["transformer"].get_submodule(n).scaling["default"] for n in layers}
    assert scales == {4.0}  # 8 / sqrt(4)
    with pytest.raises(PolicyError, match="matches no linear layer"):
        adapters.add_lora(built("flux")[1], rank=2, alpha=2, targets="match:nothing")


def test_either_of_two_denoisers_may_be_trained_alone(tmp_path: Path) -> None:
    for part in ("transformer", "transformer_2"):
        pipe = families.get("wan22").build()
        modules = adapters.denoisers(pipe, [part])
        adapters.add_lora(modules, rank=2, alpha=8)
        shake(modules)
        adapters.save(pipe, modules, tmp_path / part)
        fresh = families.get("wan22").build()
        again = adapters.denoisers(fresh, [part])
        adapters.add_lora(again, rank=2, alpha=8)
        adapters.restore(fresh, again, tmp_path / part)
        expected = untouched(FamilyPolicy("wan22", pipe), PROMPTS)
        assert gap(untouched(FamilyPolicy("wan22", fresh), PROMPTS), expected) <= 1e-6
        assert gap(untouched(FamilyPolicy("wan22"), PROMPTS), expected) > 1e-3


@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_full_weights_are_saved_as_models(name: str, tmp_path: Path) -> None:
    pipe, modules = built(name)
    adapters.train_full(modules)
    shake(modules, 0.05)
    trained = untouched(FamilyPolicy(name, pipe), PROMPTS)
    adapters.save(pipe, modules, tmp_path)
    fresh, again = built(name)
    assert gap(untouched(FamilyPolicy(name, fresh), PROMPTS), trained) > 1e-3
    for part, module in again.items():
        loaded, kept = type(module).from_pretrained(tmp_path / part).state_dict(), modules[part].state_dict()
        assert loaded.keys() == kept.keys()
        assert all(torch.equal(loaded[key], kept[key]) for key in kept)
    adapters.restore(fresh, again, tmp_path)
    assert torch.equal(untouched(FamilyPolicy(name, fresh), PROMPTS), trained)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe, modules = built("flux")
    adapters.add_lora(modules, rank=2, alpha=2, targets=["to_q"])
    with pytest.raises(PolicyError, match="holds no LoRA weights"):
        adapters.restore(pipe, modules, tmp_path)
    adapters.save(pipe, modules, tmp_path)
    other, more = built("flux")
    adapters.add_lora(more, rank=2, alpha=2, targets=["to_q", "to_k"])
    with pytest.raises(PolicyError, match="does not fit transformer"):
        adapters.restore(other, more, tmp_path)
    whole, everything = built("flux")
    with pytest.raises(PolicyError, match="does not exist"):
        adapters.restore(whole, everything, tmp_path)


def test_a_model_that_takes_no_adapters_is_refused_in_one_line() -> None:
    pipe = families.get("longcat_audio").build()
    with pytest.raises(PolicyError, match="no adapters for LongCatAudioDiTTransformer; train all weights"):
        adapters.add_lora({"transformer": pipe.transformer}, rank=2, alpha=2, targets="all")
