"""What tools and environments need is looked for before anything starts, and what ships has names, keys and schemas."""

import pytest
from typer.testing import CliRunner

from flowrl import names
from flowrl.cli import app
from flowrl.environments.building import MissingError, build_environment
from flowrl.environments.schemas import tool_of
from flowrl.recipe.keys.environment import EnvironmentKeys

LAKE = {"id": "FrozenLake-v1", "args": {"render_mode": "ansi"}}


def _keys(**given: object) -> EnvironmentKeys:
    return EnvironmentKeys.model_validate(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"tools": ["calculator", {"use": "python", "args": {"sandbox": "docker", "command": "no-such-docker"}}]},
            r"environment\.tools\.1: 'python' cannot be used: no-such-docker is not installed",
        ),
        (
            {"tools": [{"use": "search", "args": {"documents": "no-such-folder"}}]},
            "'search' cannot be used: there are no documents at 'no-such-folder'",
        ),
        ({"use": "openenv", "args": {"url": "http://127.0.0.1:9"}}, "'openenv' cannot be used"),
    ],
)
def test_a_missing_back_end_is_one_line_in_the_plan_and_ends_a_run(given: dict, said: str):
    with pytest.raises(MissingError, match=said):
        build_environment(_keys(**given))
    text = str(given).replace("'", "").replace("True", "true")
    plan = CliRunner().invoke(app, ["run", "tiny_lm_grpo", f"environment={text}", "--dry-run"])
    assert plan.exit_code == 0, plan.output
    (line,) = [line for line in plan.output.splitlines() if line.startswith("missing")]
    assert "cannot be used" in line
    started = CliRunner().invoke(app, ["run", "tiny_lm_grpo", f"environment={text}"])
    assert isinstance(started.exception, MissingError)


def test_wrong_keys_of_a_tool_are_refused():
    shown = CliRunner().invoke(app, ["run", "tiny_lm_grpo", "environment={tools: [{use: zoom, args: {zoom: 2}}]}"])
    assert "environment.tools.0.args" in str(shown.exception or shown.output)
    with pytest.raises(names.UserError, match="cannot be set up: ValueError: sandbox='none'"):
        build_environment(_keys(tools=[{"use": "python", "args": {"sandbox": "none"}}]))


def test_environments_that_ship_have_short_names():
    pytest.importorskip("gymnasium")
    made = build_environment(_keys(use="gymnasium", args=LAKE))
    assert made.tools()[0]["function"]["name"] == "act"
    listed = CliRunner().invoke(app, ["list", "environments"]).output
    assert "gymnasium" in listed and "openenv" in listed and "url" in listed
    assert {"calculator", "zoom", "quadrant", "python", "search", "screen"} <= set(names.shipped("tool"))
    explained = CliRunner().invoke(app, ["explain", "tool.zoom"]).output
    assert "thousandths" in explained


def test_a_model_is_told_of_every_argument():
    for name, entry in names.shipped("tool").items():
        thing = names.load(name, names.shipped("tool"), "tool")
        made = object.__new__(thing) if entry.is_class else thing
        about = tool_of(made, name).schema["function"]
        assert about["description"] and about["parameters"]["properties"]
        assert all(one["description"] for one in about["parameters"]["properties"].values())
        assert "context" not in about["parameters"]["properties"]
