"""`flowrl explain`, `list`, `schema` and the completion of keys read the signatures that recipes are checked by."""

import json

import pytest

from cli_support import call
from flowrl import names
from flowrl.recipe.explain import completions, explain, fields, json_schema, parts
from flowrl.recipe.presets import PRESETS
from flowrl.recipe.schema import Recipe


def test_every_key_and_every_part_can_be_explained():
    for key, _, _ in fields():
        assert dict(explain(key))["accepts"], key
    for kind, entries in parts().items():
        for name in entries:
            assert dict(explain(f"{kind}.{name}"))["is"], f"{kind}.{name} has no docstring"
    for preset in PRESETS:
        assert dict(explain(f"preset.{preset}"))["is"]


def test_a_key_tells_what_it_accepts_means_and_which_presets_set_it():
    clip = dict(explain("objective.clip"))
    assert (clip["default"], clip["preset guard"]) == ("0.0001", "2e-06, for denoising steps")
    assert dict(explain("train.keep"))["means"].endswith("(DanceGRPO's best-of-n; null: all).")
    assert dict(explain("advantage.credit"))["preset ppo"] == "{kind: gae, lam: 0.95}, for tokens"
    train = dict(explain("train"))
    assert (
        train["means"].startswith("The loop. An iteration draws") and "micro_batch, rollout_batch" in train["its keys"]
    )
    window = dict(explain("sampler.window.interval"))
    assert window["accepts"] == "a whole number >= 1" and "must be given" in window["in progressive"]
    assert "default 13" in dict(explain("sampler.window.hold"))["in exp_decay"]
    assert "arXiv 2505.07818" in dict(explain("step.dance_sde"))["is"]
    assert dict(explain("rewards.mine.weight"))["default"] == "1.0"


@pytest.mark.parametrize(
    ("key", "meant"), [("trian.lr", "train.lr"), ("window.frozn", "window.frozen"), ("preset.gard", "preset.guard")]
)
def test_a_misspelt_key_is_answered_with_the_closest(key: str, meant: str):
    with pytest.raises(names.UserError, match=f"did you mean '{meant}'"):
        explain(key)


def test_keys_and_choices_are_completed():
    assert "train.lr=" in completions("train.l") and "train.keep=" not in completions("train.l")
    assert completions("sampler.window.kind=pro") == ["sampler.window.kind=progressive"]
    assert completions("sampler.step=flow") == ["sampler.step=flow_sde"]
    assert completions("prompts.shuffle=t") == ["prompts.shuffle=true"]


def test_the_schema_has_every_key_and_takes_parts_of_ones_own():
    schema = json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields) and schema["additionalProperties"] is False
    shipped, own, short, dotted = schema["$defs"]["Window"]["anyOf"]
    assert set(short["enum"]) == set(names.shipped("window")) and "size" in shipped["properties"]
    assert own["required"] == ["kind"] and dotted["pattern"] == "[.:]"
    json.dumps(schema)


def test_the_commands_print_them(capsys, monkeypatch):
    for kind, entries in (("windows", "window"), ("trees", "tree"), ("schedules", "schedule"), ("solvers", "solver")):
        code, out, _ = call(capsys, monkeypatch, "list", kind)
        assert code == 0 and all(name in out for name in names.shipped(entries))
    code, out, _ = call(capsys, monkeypatch, "explain", "window.frozen")
    assert code == 0 and "a whole number >= 1" in out
    code, _, error = call(capsys, monkeypatch, "explain", "window.frozn")
    assert code == 2 and len(error.splitlines()) == 1
    code, out, _ = call(capsys, monkeypatch, "schema")
    assert code == 0 and json.loads(out)["title"] == "A recipe of flowrl"
