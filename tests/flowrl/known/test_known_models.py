"""Names of models that stand for a folder of configs: random ones, known hub ids, cut ones."""

import json
from pathlib import Path

import pytest

from flowrl.known.models import IDS, LANGUAGE, files_of
from flowrl.known.places import config_place, cut, is_random, place_of, random_folder, random_problem
from flowrl.recipe.calls import frame_multiple, multiple
from flowrl.recipe.checks.steps import noise_scheduler
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.models import pipeline_class, reads_media


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(folder: Path, part: str) -> dict:
    return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))


def test_short_and_long_names_are_one_folder_written_once():
    folder = random_folder("random:FLUX.1-dev")
    before = (folder / "model_index.json").stat().st_mtime_ns
    for name in ("random:flux.1-dev", "random:black-forest-labs/FLUX.1-dev"):
        assert random_folder(name) == folder and is_random(name)
    assert config_place("black-forest-labs/FLUX.1-dev") == folder == place_of("random:FLUX.1-dev")
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    assert place_of("black-forest-labs/FLUX.1-dev") != folder  # from_pretrained goes to the hub
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half made is left


@pytest.mark.parametrize(
    ("model", "part", "left"),
    [
        ("FLUX.1-dev", "transformer", {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 24}),
        ("stable-diffusion-3.5-medium", "transformer", {"num_layers": 2, "dual_attention_layers": [0, 1]}),
        ("stable-diffusion-xl-base-1.0", "unet", {"transformer_layers_per_block": [1, 2, 2]}),
        ("Wan2.2-T2V-A14B", "transformer_2", {"num_layers": 2, "ffn_dim": 13824}),
        ("LTX-2", "connectors", {"text_proj_in_factor": 3, "video_connector_num_layers": 2}),
        ("Z-Image-Turbo", "text_encoder", {"num_hidden_layers": 2, "hidden_size": 2560}),
        ("Qwen2.5-VL-3B-Instruct", ".", {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}),
        ("FLUX.1-dev", "vae", {"layers_per_block": 2, "block_out_channels": [128, 256, 512, 512]}),
    ],
)
def test_blocks_are_cut_and_widths_are_not(model: str, part: str, left: dict):
    config = said(random_folder(f"random:{model}?blocks=2"), part)
    assert {name: config[name] for name in left} == left
    inner = [config[name] for name in ("text_config", "vision_config") if name in config]
    assert all(one.get("num_hidden_layers", one.get("depth")) == 2 for one in inner)


def test_a_local_folder_keeps_its_tokenizers_and_loses_its_weights():
    folder = random_folder("random:shapes-flux?blocks=1")
    assert said(folder, "transformer")["num_layers"] == 1 and (folder / "tokenizer" / "tokenizer.json").is_file()
    assert not list(folder.rglob("*.safetensors"))
    assert random_folder("random:shapes-flux") == place_of("shapes-flux")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("random:FLUX.1-def", "did you mean 'FLUX.1-dev'"),
        ("random:FLUX.1-dev?blocks=0", "blocks=N with N of 1 or more"),
        ("random:FLUX.1-dev?layers=1", "random:NAME?blocks=N"),
        ("random:Qwen3-0.6B", "model"),  # of another kind than the recipe
    ],
)
def test_what_names_nothing_is_refused(model: str, said: str):
    with pytest.raises(RecipeError, match=f"model.*{said}".replace("?", r"\?")):
        load("tiny_flow_grpo", [f"model={model}", "pipeline={height: 32, width: 32}"])


def test_what_configs_say_holds_of_hub_ids_and_random_models_alike():
    for model in ("black-forest-labs/FLUX.1-dev", "random:FLUX.1-dev?blocks=1"):
        assert (pipeline_class(model), multiple(model), noise_scheduler(model)) == ("FluxPipeline", 16, None)
    assert noise_scheduler("random:stable-diffusion-xl-base-1.0") == "EulerDiscreteScheduler"
    assert (multiple("Wan-AI/Wan2.1-T2V-14B-Diffusers"), frame_multiple("random:Wan2.1-T2V-14B")) == (16, 4)
    assert (multiple("random:stable-diffusion-3.5-large"), multiple("Qwen/Qwen-Image")) == (16, 16)
    assert multiple("random:stable-diffusion-xl-base-1.0") == 8 and multiple("random:Wan2.2-TI2V-5B") == 32
    assert (reads_media("random:Qwen2.5-VL-3B-Instruct"), reads_media("random:Qwen3-4B")) == (True, False)
    assert reads_media("nobody/nothing") is None and pipeline_class("nobody/nothing") is None
    assert random_problem("shapes-flux") is None


def test_every_known_model_says_what_its_folder_needs():
    for model in IDS:
        files = files_of(model)
        assert ("config.json" in files) == (model in LANGUAGE)
        index = files.get("model_index.json", {})
        parts = [name for name, value in index.items() if isinstance(value, list) and f"{name}/config.json" in files]
        assert model in LANGUAGE or (index["_class_name"].endswith("Pipeline") and "vae" in parts and len(parts) >= 3)


def test_a_cut_of_more_blocks_than_there_are_changes_nothing():
    config = files_of("Qwen/Qwen3-0.6B")["config.json"]
    assert cut(config, 99) == config == cut(config, None) and cut(config, 1)["num_hidden_layers"] == 1
