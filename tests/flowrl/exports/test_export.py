"""Exports: what other tools load draws what the policy draws, and an export that does not is found out."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import load_file, save_file

import families
from cli_support import call
from flowrl import names
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.exports import pipelines, writer
from flowrl.names import UserError
from flowrl.policies import adapters
from flowrl.recipe.load import dump, load
from flowrl.recipe.schema import Recipe
from flowrl.runs.weights import load_weights

PROMPTS = [Prompt(t, t) for t in ("a red circle", "two blue squares")]
FULL = ["lora=null", "full=true"]


def trained(folder: Path, *overrides: str, name: str = "tiny_flow_grpo") -> Recipe:
    """The folder of a run that ended, with weights that are far from the model's own; its recipe."""
    recipe = load(name, ["sampler.window.size=1", "eval.steps=3", "sampler.steps=3", *overrides])
    policy = build_policy(recipe)
    generator = torch.Generator().manual_seed(3)
    scale = 0.05 if recipe.lora is not None else 0.01
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale)
    folder.mkdir(parents=True)
    adapters.save(policy.source, policy.modules, folder / ("lora" if recipe.lora is not None else "model"))
    (folder / "recipe.yaml").write_text(dump(recipe))
    mean = {"value": 0.25, "error": 0.125, "number": 8}
    heldout = {"0": {"strict": mean}, "10": {"strict": mean | {"value": 0.75}}}
    (folder / "summary.json").write_text(json.dumps({"iterations": 10, "seconds": 1.0, "heldout": heldout}))
    return recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the quickstart with LoRA weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder)
    return folder


def tampered(folder: Path, pattern: str) -> None:
    """Makes one tensor of the export another."""
    file = next(iter(sorted(folder.glob(pattern))))
    state = load_file(file)
    name = next(n for n in sorted(state) if n.endswith("lora_B.weight") or n.endswith("to_q.weight"))
    state[name] = state[name] + 0.1
    save_file(state, file, metadata={"format": "pt"})


# ------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("kind", "weights"), [("lora", "*.safetensors"), ("merged", "transformer/diffusion_pytorch_model.safetensors")]
)
def test_an_export_is_verified_and_a_tampered_one_is_not(kind, weights, run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    arguments = ["export", run, "--kind", kind, "--verify", "--prompts", "2"]
    code, out, err = call(capsys, monkeypatch, *arguments, "--to", folder)
    assert code == 0 and "verified on 2 prompts" in out, err
    assert "too little" not in out  # the planted weights draw other pictures than the base model

    original = pipelines.write

    def write(policy, place, kind):
        original(policy, place, kind)
        tampered(place, weights)

    monkeypatch.setattr(pipelines, "write", write)
    code, _, err = call(capsys, monkeypatch, *arguments, "--to", tmp_path / "tampered")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "does not draw what the policy draws" in err


def test_a_lora_export_is_the_runs_own_lora(run, capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "export", run)
    folder = run / "export" / "lora"
    assert code == 0 and str(folder) in out
    assert {p.name for p in folder.iterdir()} == {"README.md", "pytorch_lora_weights.safetensors"}
    mine, theirs = (load_file(place / "pytorch_lora_weights.safetensors") for place in (folder, run / "lora"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    code, _, err = call(capsys, monkeypatch, "export", run)
    assert code == 2 and "not empty" in err  # never written over


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tiny_flow_grpo"], ["RUN", "tiny_flow_grpo", "a run's folder"]),
        (["RUN", "--weights", "best"], ["--weights", "best", "no checkpoints"]),
        (["RUN", "--raw"], ["final --raw", "no checkpoints"]),
        (["RUN", "--weights", "bset"], ["'bset'", "final, best, last"]),
        (["RUN", "--dtype", "float16"], ["--dtype", "float16", "--kind merged"]),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, parts, run, tmp_path, capsys, monkeypatch):
    arguments = [run if a == "RUN" else a for a in arguments]
    code, _, err = call(capsys, monkeypatch, "export", *arguments, "--to", tmp_path / "out")
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert all(part in err for part in parts) and not (tmp_path / "out").exists()


def test_a_run_without_weights_is_refused_before_the_model_is_loaded(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    code, _, err = call(capsys, monkeypatch, "export", tmp_path)
    assert code == 2 and "no weights yet" in err


# ------------------------------------------------------------------------ what is written


def test_a_merged_pipeline_is_plain_and_draws_the_same(run, tmp_path):
    """W + alpha / rank * B A, weight by weight, and nothing of peft."""
    recipe = load(str(run / "recipe.yaml"))
    writer.export_run(recipe, run, tmp_path / "merged", "merged")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "merged")
    base = DiffusionPipeline.from_pretrained(names.MODELS["shapes-flux"])
    assert not hasattr(pipe.transformer, "peft_config")
    merged, plain = pipe.transformer.state_dict(), base.transformer.state_dict()
    assert merged.keys() == plain.keys()
    lora = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    layers = {n.removeprefix("transformer.").rpartition(".lora_")[0] for n in lora}
    for name, weight in merged.items():
        layer = name.removesuffix(".weight")
        delta = torch.zeros(())
        if layer in layers and name != layer:
            a, b = (lora[f"transformer.{layer}.lora_{side}.weight"] for side in "AB")
            delta = recipe.lora.alpha / recipe.lora.rank * b @ a
            assert delta.abs().max() > 1e-3
        torch.testing.assert_close(weight, plain[name] + delta, rtol=1e-6, atol=1e-6)


def test_a_merged_pipeline_has_the_dtype_asked_for(run, tmp_path):
    """The fused weights are rounded once: to bfloat16, of the sum in float32."""
    recipe = load(str(run / "recipe.yaml"), ["dtype.model=bfloat16"])
    found = writer.export_run(recipe, run, tmp_path / "half", "merged", prompts=PROMPTS)
    assert found is not None and found.accepted and found.tolerance == writer.TOLERANCE["bfloat16"] < found.moved
    half = load_file(tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in half.values()} == {torch.bfloat16}
    plain = load_file(names.MODELS["shapes-flux"] / "transformer" / "diffusion_pytorch_model.safetensors")
    lora = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    name = "transformer_blocks.0.attn.to_q"
    a, b = (lora[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
    base = plain[f"{name}.weight"].bfloat16().float()
    assert torch.equal(half[f"{name}.weight"], (base + recipe.lora.alpha / recipe.lora.rank * b @ a).bfloat16())


def test_full_weights_are_exported_as_a_pipeline(tmp_path, capsys, monkeypatch):
    recipe = trained(tmp_path / "run", *FULL)
    code, out, err = call(capsys, monkeypatch, "export", tmp_path / "run", "--verify", "--prompts", "2")
    assert code == 0 and "verified" in out and "too little" not in out, err
    policy = build_policy(recipe)
    load_weights(policy, tmp_path / "run")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "export" / "merged")
    assert all(
        torch.equal(v, pipe.transformer.state_dict()[n]) for n, v in policy.source.transformer.named_parameters()
    )
    code, _, err = call(capsys, monkeypatch, "export", tmp_path / "run", "--kind", "lora", "--to", tmp_path / "lora")
    assert code == 2 and "full: true" in err


@pytest.mark.parametrize("family", ["wan22", "wan_unipc"])
def test_exports_of_other_families_draw_what_their_policies_draw(family: str, tmp_path: Path):
    """Wan 2.2 has two denoisers, the second with a LoRA folder of its own; UniPC is a multistep solver."""
    record = families.get(family)
    record.build().save_pretrained(tmp_path / "model")
    size = {"height": 16, "width": 16, "num_frames": 5}
    more = [f"pipeline={json.dumps(size)}", "lora.targets=attention", "eval.steps=4"]
    recipe = trained(tmp_path / "run", f"model={tmp_path / 'model'}", *more)
    for kind in ("lora", "merged"):
        found = writer.export_run(recipe, tmp_path / "run", tmp_path / kind, kind, prompts=PROMPTS[:1])
        assert found is not None and found.largest <= 1e-4 < 1e-2 < found.moved
    text = (tmp_path / "lora" / "README.md").read_text()
    assert ("load_into_transformer_2=True" in text) == (family == "wan22")


def test_a_pipeline_without_a_lora_loader_is_exported_by_denoiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FluxPipeline, "save_lora_weights", None)
    recipe = trained(tmp_path / "run")
    found = writer.export_run(recipe, tmp_path / "run", tmp_path / "out", "lora", prompts=PROMPTS[:1])
    assert found is not None and found.largest <= 1e-5 < 1e-2 < found.moved
    assert "pipe.transformer.load_lora_adapter(" in (tmp_path / "out" / "README.md").read_text()


def test_only_the_second_denoiser_is_exported_where_only_it_is_trained(tmp_path: Path):
    pipe = families.get("wan22").build()
    modules = adapters.denoisers(pipe, ["transformer_2"])
    adapters.add_lora(modules, rank=2, alpha=8)
    adapters.save(pipe, modules, tmp_path)
    (part,) = pipelines._weight_files(tmp_path)
    assert part == (tmp_path / "transformer_2", None, {"load_into_transformer_2": True})


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipelines, "write", fail)
    with pytest.raises(UserError, match="No space left"):
        writer.export_run(load(str(run / "recipe.yaml")), run, tmp_path / "out", "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_is_no_number_is_not_fine():
    ones, nothing = [torch.ones(2)], [torch.tensor([1.0, float("nan")])]
    assert not writer.compare_samples(ones, nothing, ones, 1.0).accepted
    found = writer.compare_samples([torch.tensor([0.5, 0.5])], [torch.tensor([0.5, 0.25])], [torch.zeros(2)], 0.2)
    assert (found.largest, found.mean, found.moved, found.accepted) == (0.25, 0.125, 0.5, False)


# ------------------------------------------------------------------------ the card


def test_the_card_says_what_it_is_and_its_code_loads_it(run, tmp_path):
    recipe = load(str(run / "recipe.yaml"))
    writer.export_run(recipe, run, tmp_path / "out", "lora")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "diffusers" and "lora" in yaml.safe_load(front)["tags"]
    assert "| strict | 0.250 ± 0.125 | 0.750 ± 0.125 | 8 |" in body and "10 iterations" in body
    resolved = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert resolved["train"] == recipe.model_dump()["train"] and str(tmp_path) not in text
    code = body.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out"))
    scope: dict = {}
    exec(code, scope)  # what a reader would paste
    assert scope["pipe"].transformer.peft_config and scope["picture"].size == (32, 32)


def test_the_card_names_a_hub_model_and_no_folder_of_this_machine(run, tmp_path):
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a\nb\nc\nd\n")
    recipe = load("flow_grpo_sd3", [f"prompts.train={prompts}", "train.prompts=2", "train.micro_batch=null"])
    from flowrl.exports.card import model_card

    text = model_card(recipe, run, "lora", "final", "code")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == recipe.model and front["base_model_relation"] == "adapter"
    assert "train: mine.txt" in text and str(tmp_path) not in text
