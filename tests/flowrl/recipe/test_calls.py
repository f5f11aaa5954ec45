"""Values that a pipeline, a reward, a device or a layer cannot take are one line already at --dry-run."""

import inspect
import json
from pathlib import Path
from typing import Any, Literal, Optional, Union

import diffusers
import pytest
import torch

from cli_support import call
from flowrl import names
from flowrl.recipe.annotations import accepted_if_misfit
from flowrl.recipe.calls import check_types, check_values, frame_multiple, multiple
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))


WRONG = [
    ("pipeline.height=.nan", "a whole number from 1 to 16384"),
    ("pipeline.height='32'", "a multiple of 8 from 8 to 16384"),
    ("pipeline.height=-32", "a multiple of 8 from 8 to 16384"),
    ("pipeline.height=0", "a multiple of 8 from 8 to 16384"),
    ("pipeline.height=33", "a multiple of 8, such as 32 or 40"),
    ("pipeline.width=4", "a multiple of 8, such as 8"),
    ("pipeline.height=1e9", "a multiple of 8 from 8 to 16384"),
    ("pipeline.height=1000000000", "a multiple of 8 from 8 to 16384"),
    ("pipeline.height=true", "a multiple of 8 from 8 to 16384"),
    ("pipeline.guidance_scale=.nan", "a number >= 0"),
    ("pipeline.guidance_scale=1e999", "a number >= 0"),
    ("pipeline.guidance_scale=-1", "a number >= 0"),
    ("pipeline.guidance_scale=[1.0]", "a number >= 0"),
    ("pipeline.max_sequence_length=0", "a whole number from 1"),
    ("pipeline.max_sequence_length=16.0", "a whole number from 1"),
    ("pipeline.negative_prompt=3", "a text or a list of: a text or null"),
    ("pipeline.negative_prompt=[1]", "a text or a list of: a text or null"),
    ("pipeline.joint_attention_kwargs=[1]", "a mapping or null"),
    ("pipeline.joint_attention_kwargs={x: [.inf]}", "finite numbers"),
    ("device=cuda", "auto, cpu"),
    ("device=cuda:1", "auto, cpu"),
    ("rewards.shapes.device=cuda:3", "auto, cpu"),
    ("lora.rank=1000000000", "a whole number from 1 to 16384"),
    ("lora.rank=16384", "at most 256; the widest layer that is adapted in transformer has 128 features"),
    ("lora.modules=[unet]", "text_encoder, text_encoder_2, transformer, vae"),
    ("lora.modules=[transformre]", "did you mean 'transformer'"),
    ("lora.modules=[]", "at least one"),
    ("rewards.shapes.args={strict: much}", "a number"),
    ("rewards.shapes.args={strict: true}", "a number"),
    ("rewards.shapes.args={strict: .nan}", "finite"),
]


@pytest.mark.parametrize(("override", "accepted"), WRONG)
def test_a_wrong_value_is_one_line_at_dry_run(override, accepted, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run", override)
    assert code == 2 and len(error.splitlines()) == 1, error
    place = override.partition("=")[0].removesuffix(".args")
    assert error.startswith(f"flowrl: {place}") and accepted in error, error


def test_a_number_of_a_gpu_beyond_those_that_are_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, code in (("cuda:1", 0), ("cuda:2", 2)):
        found, _, error = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run", f"device={device}")
        assert found == code and ("auto, cuda, cuda:0, cuda:1, cpu" in error) == (code == 2)


@pytest.mark.parametrize("value", [32, 40, None])
def test_a_right_value_passes(value, capsys, monkeypatch):
    override = f"pipeline={{height: {'null' if value is None else value}, joint_attention_kwargs: {{a: 1}}}}"
    assert call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run", override)[0] == 0


# ------------------------------------------------------------------------------------ multiples

FOLDERS: list[tuple[dict, dict, int, int]] = [
    # vae, transformer, multiple of the sides, of the frames less one
    ({"_class_name": "AutoencoderKL", "block_out_channels": [1] * 4, "latent_channels": 16}, {"patch_size": 2}, 16, 1),
    (
        {"_class_name": "AutoencoderKL", "block_out_channels": [1] * 4, "latent_channels": 16},
        {"patch_size": 1, "in_channels": 64},
        16,
        1,
    ),
    ({"_class_name": "AutoencoderKL", "block_out_channels": [1] * 4, "latent_channels": 4}, {}, 8, 1),
    (
        {"_class_name": "AutoencoderKLQwenImage", "temperal_downsample": [False, True, True], "z_dim": 16},
        {"patch_size": 2, "in_channels": 64},
        16,
        1,
    ),
    (
        {"_class_name": "AutoencoderKLWan", "z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4},
        {"patch_size": [1, 2, 2], "in_channels": 16},
        16,
        4,
    ),
    ({"_class_name": "AutoencoderDC", "encoder_block_out_channels": [1] * 6}, {"patch_size": 1}, 32, 1),
    ({"_class_name": "AutoencoderOobleck"}, {"patch_size": 2}, 1, 1),
]


@pytest.mark.parametrize(("vae", "transformer", "side", "frames"), FOLDERS)
def test_multiples_are_read_from_the_configs_of_a_folder(vae, transformer, side, frames, tmp_path: Path):
    for name, config in (("vae", vae), ("transformer", transformer)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert (multiple(str(tmp_path)), frame_multiple(str(tmp_path))) == (side, frames)


@pytest.mark.parametrize("model", ["black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3.5-medium"])
def test_a_known_hub_id_has_its_multiple(model: str):
    assert [e.place for e in check_values({"height": 520, "width": 512}, model)] == ["pipeline.height"]


def test_a_known_hub_id_has_its_arguments(capsys, monkeypatch):
    for override, words in (("pipeline.hieght=512", "height"), ("pipeline.negative_prompt=3", "a text")):
        code, _, error = call(capsys, monkeypatch, "run", "flow_grpo_flux", "--dry-run", override)
        assert code == 2 and len(error.splitlines()) == 1 and words in error


def test_frames_of_wan():
    wan = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert not list(check_values({"num_frames": 33}, wan))
    assert ["33 or 37" in str(e) for e in check_values({"num_frames": 34}, wan)] == [True]


def test_a_damaged_config_says_nothing(tmp_path: Path):
    (tmp_path / "vae").mkdir()
    for text in ("[" * 5000, "{", "[1]", '{"block_out_channels": 3, "_class_name": "AutoencoderKL"}'):
        (tmp_path / "vae" / "config.json").write_text(text)
        assert multiple(str(tmp_path)) == 1


# ---------------------------------------------------------------------------------- annotations


def typed(
    a: int = 1,
    b: float | None = None,
    c: Union[str, list[str]] = "x",  # noqa: UP007 - as diffusers writes them
    d: Optional[tuple[int, int]] = None,  # noqa: UP045
    e: Literal["x", 2] = "x",
    f: dict[str, Any] | None = None,
    g: torch.Tensor | None = None,
    h: bool = True,
    i: "list[float]" = None,  # noqa: RUF013
    j=3,
) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("a", [1, -5], [1.0, "1", True, None, [1]]),
        ("b", [1, 1.5, None], ["1", True, [1.0]]),
        ("c", ["x", ["x", "y"], []], [1, [1], None, {"x": 1}]),
        ("d", [[1, 2], None], [[1.5, 2], 1, "12"]),
        ("e", ["x", 2], ["y", 2.0, None, True]),
        ("f", [{}, {"x": [1]}, None], [[1], "x"]),
        ("g", [1, "x", None], []),
        ("h", [True, False], [0, 1, "yes", None]),
        ("i", [[1, 2.5], None], [["x"], 1]),
        ("j", [1, "x", None, [1]], []),
    ],
)
def test_annotations(name: str, right: list, wrong: list):
    text = names.types(typed).get(name, "object")
    assert [accepted_if_misfit(text, value) for value in right] == [None] * len(right)
    assert all(accepted_if_misfit(text, value) for value in wrong)


def test_annotations_read_without_importing_are_those_of_the_object():
    from reward_models.shapes import shapes

    assert names.rewards()["shapes"].types["strict"] == names.types(shapes)["strict"] == "float"
    for name, entry in names.rewards().items():
        assert set(entry.accepts or ()) <= set(entry.types), f"{name} has arguments without annotation"


def pipelines() -> list[str]:
    return [n for n in dir(diffusers) if n.endswith("Pipeline") and n != "DiffusionPipeline"]


@pytest.mark.filterwarnings("ignore")  # of modules that are imported here and nowhere else
def test_the_defaults_of_every_pipeline_fit():
    """A null where nothing is given, and whatever an author took for a default, pass."""
    refused = {}
    for name in pipelines():
        try:
            kind: Any = getattr(diffusers, name)
            parameters = inspect.signature(kind.__call__).parameters.values()
        except (ImportError, RuntimeError, ValueError):  # what another library's version does not bear
            continue
        for parameter in parameters:
            value = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if value is parameter.empty or parameter.name == "self" or callable(value):
                continue
            try:
                check_types(kind, {parameter.name: value})
                assert not list(check_values({parameter.name: value}, "owner/unknown"))
            except (RecipeError, AssertionError) as error:
                refused[f"{name}.{parameter.name}"] = str(error)
    assert refused == {}


def test_every_shipped_recipe_still_loads():
    assert all(load(name).pipeline is not None for name in names.recipes())


def test_an_annotation_in_a_class_that_is_no_dataclass_is_no_argument():
    assert load("tiny_flow_grpo", ["rewards.shapes={use: saturation}"]).rewards["shapes"].args == {}
