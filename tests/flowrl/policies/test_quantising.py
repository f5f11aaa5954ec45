"""Frozen weights in fewer bits: loaded by the libraries' own quantisation, trained over, and exported as adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from flowrl.contracts import Prompt, View
from flowrl.kinds import kind_of
from flowrl.planning.costs import plan_for
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.loading import load_language, load_pipeline
from flowrl.policies.quantising import is_quantised
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.recipe.load import load

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two blue squares left of a green triangle")]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoiser of shapes-flux as GGUF, its matrices in 8 bits."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path_factory.mktemp("gguf") / "transformer.gguf"
    writer = gguf.GGUFWriter(str(file), "flux")
    kind = gguf.GGMLQuantizationType
    for name, value in load_pipeline("shapes-flux", torch.float32).transformer.state_dict().items():
        array = value.numpy().astype(numpy.float32)
        small = array.ndim < 2 or array.shape[-1] % 32
        way = kind.F32 if small else kind.Q8_0
        writer.add_tensor(name, array if small else gguf.quants.quantize(array, way), raw_dtype=way)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def policy_of(*overrides: str) -> Any:
    recipe = load("tiny_flow_grpo", ["train.prompts=2", "train.group=2", "train.updates=1", *overrides])
    policy = kind_of(recipe).building.build(recipe)
    return recipe, policy


def check_training(policy: Any, recipe: Any) -> torch.Tensor:
    """A rollout and the gradient of its replay: the log-probs are the rollout's, and adapters alone have gradients."""
    rollout = policy.rollout(PROMPTS, group_size=2, plan=plan_for(recipe, 0), seed=0)
    gaps = []

    def visit(seen: Any) -> None:
        at = seen.rows[:, None], seen.columns[None]
        gaps.append(float((seen.logp.detach() - rollout.rollout_logp[at]).abs().max()))
        seen.logp.sum().backward()

    policy.look(rollout, torch.tensor([3]), View(), visit)
    assert max(gaps) < 1e-4
    learning = list(policy.trainable())
    assert learning
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    return rollout.samples.images


def exact() -> torch.Tensor:
    recipe, policy = policy_of()
    return policy.rollout(PROMPTS, group_size=2, plan=plan_for(recipe, 0), seed=0).samples.images


def test_a_denoiser_from_a_gguf_file_is_trained_over(gguf_file: Path) -> None:
    recipe, policy = policy_of(f"quantize={{weights: gguf, file: {gguf_file}}}")
    bits = {p.dtype for n, p in policy.modules["transformer"].named_parameters() if not p.requires_grad}
    assert torch.uint8 in bits
    assert is_quantised(policy.modules["transformer"])
    assert float((check_training(policy, recipe) - exact()).abs().mean()) < 0.05
    with pytest.raises(PolicyError, match="transformer is quantised: merged adapters would be rounded .*; export lora"):
        adapters.fuse(policy.modules)


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "other.gguf"
    file.write_bytes(b"no gguf at all")
    with pytest.raises(PolicyError, match=r"quantize.file: .*other.gguf cannot be read as the transformer of"):
        load_pipeline("shapes-flux", torch.float32, None, QuantizeKeys(weights="gguf", file=str(file)))


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_torchao_s_weights_are_trained_over_and_some_are_spared(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    recipe, policy = policy_of(f"quantize={{weights: {weights}, skip: [proj_out]}}")
    module = policy.modules["transformer"]
    kinds = {n: type(p.data).__name__ for n, p in module.named_parameters() if not p.requires_grad and p.ndim == 2}
    assert kinds["proj_out.weight"] == "Tensor"
    assert sum(kind != "Tensor" for kind in kinds.values()) > 10
    assert float((check_training(policy, recipe) - exact()).abs().mean()) < 0.1
    exporter = kind_of(recipe).exporter
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.01
    exporter.write(policy, tmp_path, "lora")
    drawn = exporter.draw(policy, recipe, PROMPTS)
    again = exporter.redraw(recipe, tmp_path, "lora", PROMPTS)
    assert max(float((a - b).abs().max()) for a, b in zip(drawn, again, strict=True)) < 1e-5
    with pytest.raises(PolicyError, match="is quantised"):
        exporter.write(policy, tmp_path / "merged", "merged")


def test_a_language_model_is_trained_over_eight_bits() -> None:
    pytest.importorskip("torchao")
    model, _ = load_language("arithmetic-qwen2", torch.float32, QuantizeKeys(weights="int8"))
    kinds = [type(p.data).__name__ for n, p in model.named_parameters() if p.ndim == 2 and "proj" in n]
    assert set(kinds) == {"Int8Tensor"}
    assert type(model.get_output_embeddings().weight.data) is torch.Tensor, "the head is spared"
    adapters.add_lora({"model": model}, rank=2, alpha=4.0)
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    model(input_ids=ids).logits.logsumexp(-1).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")  # of merging, which is refused anyway
def test_random_weights_are_quantised_where_they_are(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    keys = QuantizeKeys(weights="int8", skip=["proj_out"])
    pipe = load_pipeline("random:shapes-flux?blocks=1", torch.float32, None, keys)
    kinds = {n: type(p.data).__name__ for n, p in pipe.transformer.named_parameters() if p.ndim == 2}
    assert kinds["proj_out.weight"] == "Tensor" and kinds["x_embedder.weight"] == "Int8Tensor"
    assert is_quantised(pipe.transformer) and not is_quantised(pipe.text_encoder)
    plain = load_pipeline("random:shapes-flux?blocks=1", torch.float32)
    assert not is_quantised(plain.transformer)
    exact = plain.transformer.x_embedder.weight
    assert 0 < float((pipe.transformer.x_embedder.weight.dequantize() - exact).abs().max()) < 0.02
    recipe, policy = policy_of("model=random:shapes-flux?blocks=1", "quantize={weights: int8}")
    check_training(policy, recipe)
    model, _ = load_language("random:arithmetic-qwen2", torch.float32, QuantizeKeys(weights="int8"))
    assert is_quantised(model) and type(model.get_output_embeddings().weight.data) is torch.Tensor


def test_a_name_that_spares_nothing_is_refused() -> None:
    pytest.importorskip("torchao")
    keys = QuantizeKeys(weights="int8", skip=["proj_outt"])
    with pytest.raises(PolicyError, match=r"quantize.skip: no module of transformer is called 'proj_outt'"):
        load_pipeline("shapes-flux", torch.float32, None, keys)


def test_four_bits_need_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(PolicyError, match=r"quantize.weights: got 'nf4', which bitsandbytes makes on a GPU, .*"):
        load_pipeline("shapes-flux", torch.float32, None, QuantizeKeys(weights="nf4"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quantize={weights: int4}"], "quantize.weights"),
        (["quantize={weights: nf4}", "model=random:shapes-flux"], "quantize.weights: got 'nf4' with model=random:"),
        (["quantize={weights: gguf}"], "quantize.file: .*gguf alone has a file"),
        (["quantize={weights: gguf, file: nowhere.gguf}"], "quantize.file: .*there is no such file"),
        (["quantize={weights: gguf, file: nowhere.gguf}", "lora=null", "full=true"], "quantize: given with full: true"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_weights_are_loaded(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load("tiny_flow_grpo", overrides)


def test_a_language_model_in_a_file_is_given_as_the_model() -> None:
    with pytest.raises(RecipeError, match="quantize.weights: got 'gguf', but a language model"):
        load("tiny_lm_grpo", [f"quantize={{weights: gguf, file: {__file__}}}"])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl.recipe.checks import fitting

    monkeypatch.setattr(fitting, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"quantize.weights: got 'int8', which needs the package torchao"):
        load("tiny_flow_grpo", ["quantize={weights: int8}"])
