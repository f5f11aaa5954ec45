"""The environment gymnasium, on games of the package and on one of our own."""

import sys
from typing import Any

import numpy
import pytest

from flowrl.contracts import Call, Prompt, Said, Unavailable
from flowrl.environments.plugins.gymnasium import gymnasium

gym = pytest.importorskip("gymnasium")

LAKE = {"id": "FrozenLake-v1", "args": {"is_slippery": False, "render_mode": "ansi"}}
WAYS = ["left", "down", "right", "up"]


class Dial(gym.Env):
    """A number that is to be set to 0.5; it is drawn as a grey picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
    action_space = gym.spaces.Box(0.0, 1.0, (2,), numpy.float32)
    observation_space = gym.spaces.Dict({"at": gym.spaces.Box(0.0, 1.0, (2,))})

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.at = numpy.zeros(2, numpy.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.random(2, numpy.float32)
        return {"at": self.at}, {}

    def step(self, action: Any) -> Any:
        self.at = action
        return {"at": self.at}, float(-abs(action - 0.5).sum()), bool(numpy.allclose(action, 0.5)), False, {}

    def render(self) -> Any:
        return numpy.full((4, 6, 3), int(self.at[0] * 100), numpy.uint8)


gym.register("flowrl/Dial-v0", Dial)


def _said(*actions: Any) -> Said:
    return Said("", tuple(Call("act", {"action": action}) for action in actions))


def test_a_game_is_played_to_its_end():
    game = gymnasium(**LAKE, actions=WAYS).start(Prompt("a", "Cross the lake."), 3)
    assert game.opening.count("F") > 5
    for way in ["down", "down", "right", "right", "down"]:
        (shown,) = game.step(_said(way))
        assert "F" in shown.text
    assert game.step(_said("right")) is None  # the goal
    assert game.outcome() == {"reward": 1.0, "actions": 6.0, "ended": 1.0}


def test_wrong_actions_are_told_and_change_nothing():
    kind = gymnasium(**LAKE, actions=WAYS)
    assert kind.tools()[0]["function"]["parameters"]["properties"]["action"]["enum"] == WAYS
    game = kind.start(Prompt("a", ""), 0)
    for action in ("jump", 2):
        (shown,) = game.step(_said(action))
        assert shown.text.startswith("Error:")
    first, second = game.step(_said("down", "down"))
    assert "F" in first.text and "at most 1 calls" in second.text
    assert game.outcome()["actions"] == 1 and game.step(Said("I give up.")) is None
    numbered = gymnasium(**LAKE).start(Prompt("b", ""), 0)
    assert "no action" in numbered.step(_said(7))[0].text and "F" in numbered.step(_said(1))[0].text


def test_numbers_are_read_and_pictures_are_seen():
    kind = gymnasium(id="flowrl/Dial-v0")
    prompt = Prompt("a", "", meta={"seed": 11})
    game, other = kind.start(prompt, 1), kind.start(prompt, 2)
    assert game.opening == other.opening != kind.start(Prompt("b", ""), 1).opening
    assert game.step(_said([0.25, 0.5]))[0].text == '{"at": [0.25, 0.5]}'
    assert "no action" in game.step(_said([0.25]))[0].text and "no action" in game.step(_said([0.5, 2.0]))[0].text
    assert game.outcome()["reward"] == -0.25
    (shown,) = (
        gymnasium(id="flowrl/Dial-v0", args={"render_mode": "rgb_array"}).start(prompt, 0).step(_said([0.25, 0.1]))
    )
    assert shown.pictures[0].size == (6, 4) and shown.pictures[0].getpixel((0, 0)) == (25, 25, 25)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="gymnasium has no 'NoSuch-v0'"):
        gymnasium(id="NoSuch-v0")
    with pytest.raises(ValueError, match="has the actions Discrete"):
        gymnasium(**LAKE, actions=["left"])
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(Unavailable, match=r"flowrl-toolkit\[gymnasium\]"):
        gymnasium(**LAKE)
