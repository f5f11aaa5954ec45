"""Recipes are read by the YAML 1.2 core schema, and what would pass in silence is refused."""

from pathlib import Path

import pytest
import yaml

from flowrl.recipe import scalars
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import build, dump, load

# text -> value, by the tables of YAML 1.2.2, section 10.3.2
CORE = {
    "014": 14,
    "0o14": 12,
    "0x1F": 31,
    "-3": -3,
    "+4": 4,
    "08": 8,
    "1:12": "1:12",
    "1_000": "1_000",
    "0b1": "0b1",
    "-0x1": "-0x1",
    "yes": "yes",
    "off": "off",
    "2026-01-01": "2026-01-01",
    "=": "=",
    "1e-5": 1e-5,
    "1.": 1.0,
    ".5": 0.5,
    "1e5": 1e5,
    "-.inf": float("-inf"),
    "true": True,
    "False": False,
    "~": None,
    "Null": None,
    "": None,
}


@pytest.mark.parametrize(("text", "value"), CORE.items())
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object):
    found = scalars.read(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", [*CORE, "a: b", "#x", "<<", "x\u2028y", "null", " ", "0.1.2", "1e400"])
def test_a_text_that_looks_like_something_else_reads_back_as_a_text(text: str):
    written = scalars.write({"k": text})
    assert scalars.read(written) == {"k": text}
    assert yaml.safe_load(written) == {"k": text}  # and by those who read YAML 1.1


def test_what_was_written_in_yaml_1_1_numbers_is_refused_or_read_as_written():
    assert load("tiny_flow_grpo", ["train.iterations=014"]).train.iterations == 14
    for override in ("train.iterations=1:12", "train.iterations=1_000", f"seed={'9' * 5000}"):
        with pytest.raises(RecipeError) as caught:
            load("tiny_flow_grpo", [override])
        assert caught.value.place == override.partition("=")[0] and len(str(caught.value)) < 400


def test_a_dumped_text_that_looks_like_a_number_stays_one():
    recipe = load("tiny_lm_grpo", ["generation.system='1e-4'", "output='0o14'"])
    assert build(scalars.read(dump(recipe))) == recipe
    assert recipe.generation is not None and recipe.generation.system == "1e-4"


@pytest.mark.parametrize(
    ("override", "place", "meant"),
    [
        ("rewards.strct=null", "rewards.strct", "strict"),
        ("pipeline.hieght=null", "pipeline.hieght", "height"),
        ("rewards.shapes.args.nothing=null", "rewards.shapes.args.nothing", "unknown key"),
        ("objective=[]", "objective", "a mapping"),
        ("objective=0", "objective", "a mapping"),
        ("objective=''", "objective", "a mapping"),
        ("objective=false", "objective", "a mapping"),
        ("sampler=[]", "sampler", "a mapping"),
        ("train=[]", "train", "a mapping"),
        ("rewards=[]", "rewards", "names mapped"),
    ],
)
def test_what_would_pass_in_silence_is_refused(override: str, place: str, meant: str):
    with pytest.raises(RecipeError, match=meant) as caught:
        load("tiny_flow_grpo", [override])
    assert caught.value.place == place


def test_null_unsets_what_is_there():
    recipe = load("tiny_flow_grpo", ["rewards.strict=null", "pipeline.width=null", "lora.alpha=null"])
    assert list(recipe.rewards) == ["shapes"] and "width" not in recipe.pipeline
    assert recipe.lora is not None and recipe.lora.alpha == 64.0


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "{a: " * 3000 + "}" * 3000, "[" * 20000, "- " * 3000 + "x"])
def test_a_recipe_nested_thousands_deep_is_one_line(text: str, tmp_path: Path):
    file = tmp_path / "deep.yaml"
    file.write_text(f"model: shapes-flux\npipeline: {text}\n" if text[0] != "-" else text)
    with pytest.raises(RecipeError, match="32 levels") as caught:
        load(str(file))
    assert caught.value.place.startswith(str(file))
    with pytest.raises(RecipeError, match="32 levels"):
        load("tiny_flow_grpo", [f"pipeline.x={text}"])


def test_names_are_texts(tmp_path: Path):
    file = tmp_path / "names.yaml"
    file.write_text("on: 1\n1: {true: 2}\n")
    assert scalars.read(file.read_text()) == {"on": 1, "1": {"true": 2}}
    with pytest.raises(RecipeError, match="'on'"):
        load(str(file))
    with pytest.raises(yaml.YAMLError, match="twice"):
        scalars.read("1: a\n'1': b")


def test_a_bomb_of_aliases_is_one_line(tmp_path: Path):
    """Ten to the tenth values in 700 bytes: hundreds of MB of them were written out before they were refused."""
    lines = ["model: shapes-flux", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join([*lines, "pipeline: {x: *a9}", ""]))
    with pytest.raises(RecipeError, match="more than 100,000 values") as caught:
        load(str(file))
    assert caught.value.place == f"{file}:6"  # where they become too many
    with pytest.raises(RecipeError, match="more than 100,000 values"):
        load("tiny_flow_grpo", [f"pipeline.x={{{', '.join(lines[1:])}}}"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", "an alias of what it stands in"),
        ("a: &a {b: {c: *a}}", "an alias of what it stands in"),
        ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 40))]), "32 levels"),
    ],
)
def test_aliases_without_an_end_or_too_deep_are_refused(text: str, problem: str):
    with pytest.raises(yaml.YAMLError, match=problem):
        scalars.read(text)


def test_an_alias_stands_for_its_value():
    assert scalars.read("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: [*a]}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": [{"x": 1}]},
    }
