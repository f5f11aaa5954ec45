"""The strength of noise that a recipe leaves open, and which steps a model's scheduler allows."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import families
from families.noise import STABLE
from flowrl import names
from flowrl.build import build_policy
from flowrl.policies.pipelines.steps.ddim import predicts_noise
from flowrl.policies.pipelines.steps.first_order import predicts_flow
from flowrl.recipe.checks.steps import noise_scheduler
from flowrl.recipe.default_noise import FAMILIES, NOISE, default_noise, family_of
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import build, dump, load
from samplers import renoising

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")


@pytest.fixture
def folder(tmp_path: Path):
    """Writes a model's folder that tells its pipeline and its scheduler, and holds no weights."""

    def write(pipeline: str, scheduler: dict | None = None) -> str:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        if scheduler is not None:
            (tmp_path / "scheduler").mkdir(exist_ok=True)
            (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("pipeline", "hub", "family", "flow_sde", "dance_sde"),
    [
        ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-medium", "sd3", 0.7, 0.3),
        ("FluxPipeline", "black-forest-labs/FLUX.1-dev", "flux", 0.9, 0.3),
        ("FluxKontextPipeline", "black-forest-labs/FLUX.1-Kontext-dev", "flux", 0.9, 0.3),
        ("QwenImagePipeline", "Qwen/Qwen-Image", "qwen_image", 1.2, 0.3),
        ("QwenImageEditPlusPipeline", "Qwen/Qwen-Image-Edit-2509", "qwen_image_edit", 1.5, 0.3),
        ("HunyuanVideoPipeline", "hunyuanvideo-community/HunyuanVideo", "hunyuan", 0.7, 0.25),
        ("WanPipeline", "Wan-AI/Wan2.1-T2V-14B-Diffusers", None, 0.7, 0.3),
        ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0", None, 0.7, 0.3),
    ],
)
def test_the_family_decides_by_class_or_by_name(folder, pipeline, hub, family, flow_sde, dance_sde):
    for model in (folder(pipeline), hub):
        assert family_of(model) == family
        assert (default_noise("flow_sde", model), default_noise("dance_sde", model)) == (flow_sde, dance_sde)
        assert [default_noise(step, model) for step in ("cps", "ddim", "wan_sde")] == [0.8, 1.0, 1.0]
        assert default_noise("mine.step", model) == 0.7


def test_a_folder_is_known_by_its_class_whatever_it_is_called(folder, tmp_path: Path):
    place = tmp_path / "flux-like"
    place.mkdir()
    (place / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    assert family_of(str(place)) is None
    assert family_of("shapes-flux") == "flux"


def test_the_table_is_about_steps_and_families_that_there_are():
    assert set(NOISE) <= set(names.steps())
    assert {family for by_family in NOISE.values() for family in by_family} <= {None, *FAMILIES}
    assert all(None in by_family and min(by_family.values()) > 0 for by_family in NOISE.values())
    shares = [name for name, entry in names.steps().items() if entry.facts.get("share")]
    assert shares == ["cps", "ddim"]
    for step in shares:  # whose functions refuse more
        with pytest.raises(ValueError, match=r"noise=1\.5"):
            getattr(renoising, step)(torch.ones(1, 2), torch.ones(1, 2), 0.8, 0.5, noise=1.5)


def test_null_and_missing_are_filled_in_and_written_down(tmp_path: Path):
    recipe = load(BASE, ["sampler.noise=null"])
    assert recipe.sampler.noise == 0.9
    assert yaml.safe_load(dump(recipe))["sampler"]["noise"] == 0.9
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(str(tmp_path / "again.yaml")) == recipe
    values = yaml.safe_load(Path(BASE).read_text())
    for sampler in ({"noise": None}, {}):
        assert build(values | {"sampler": sampler}).sampler.noise == 0.9
        assert build(values | {"sampler": sampler | {"step": "ddim"}}).sampler.noise == 1.0
    assert build({k: v for k, v in values.items() if k != "sampler"}).sampler.noise == 0.9


def test_a_number_wins_and_the_values_given_are_left_alone():
    assert load(BASE, ["sampler.noise=0.31", "sampler.step=ddim"]).sampler.noise == 0.31
    values = yaml.safe_load(Path(BASE).read_text())
    values["sampler"]["noise"] = None
    build(values)
    assert values["sampler"]["noise"] is None


@pytest.mark.parametrize(
    ("config", "predicted"),
    [
        ({"_class_name": "EulerDiscreteScheduler", **STABLE}, "EulerDiscreteScheduler"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, "DDIMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, None),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, None),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, None),
    ],
)
def test_a_flows_step_on_a_model_that_predicts_noise_is_refused_before_it_is_loaded(folder, config, predicted):
    model = folder("StableDiffusionXLPipeline", config)
    assert noise_scheduler(model) == predicted
    overrides = [f"model={model}", "pipeline={}"]
    load(BASE, [*overrides, "sampler.step=ddim"])
    if predicted is None:
        load(BASE, overrides)
        return
    with pytest.raises(RecipeError) as error:
        load(BASE, overrides)
    assert error.value.place == "sampler.step" and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ("'flow_sde'", predicted, "accepted: ddim", "eta"))


def test_a_model_known_only_once_it_is_loaded_is_refused_then(tmp_path: Path):
    families.get("sd15").build().save_pretrained(tmp_path)
    recipe = load(BASE, [f"model={tmp_path}", "pipeline={height: 16, width: 16}", "sampler.step=ddim"])
    assert build_policy(recipe).dynamics.noise == recipe.sampler.noise
    wrong = recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"step": "flow_sde"})})
    with pytest.raises(RecipeError, match=r"sampler\.step: got 'flow_sde'.*PNDMScheduler") as error:
        build_policy(wrong)
    assert error.value.place == "sampler.step"


@pytest.mark.parametrize("name", families.NAMES)
def test_a_scheduler_file_says_what_its_scheduler_is(name: str, tmp_path: Path):
    """What is read of the file before a model is loaded is what the loaded scheduler answers."""
    scheduler = families.pipeline(name).scheduler
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert (noise_scheduler(str(tmp_path)) is None) == predicts_flow(scheduler)
    assert predicts_flow(scheduler) != predicts_noise(scheduler)
