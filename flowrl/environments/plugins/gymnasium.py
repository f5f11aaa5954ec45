"""Environments of gymnasium (gymnasium.farama.org): the model acts by a tool, and reads what it observes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from flowrl.contracts import Context, ModelsFault, Prompt, Said, Schema, Shown
from flowrl.environments.functions import Functions, Talk
from flowrl.environments.schemas import Tool
from flowrl.environments.tools.parts.packages import require

DIGITS = 6  # significant ones of what is observed


class gymnasium:
    """An environment of gymnasium, made anew for each conversation."""

    def __init__(
        self,
        *,
        id: str,
        args: Mapping[str, Any] | None = None,
        actions: Sequence[str] | None = None,
        tool: str = "act",
        seed: str = "seed",
        most: int | None = 1,
    ):
        """Raises Unavailable without gymnasium, and ValueError for an environment or actions that do not fit.

        id: of the environment, with args for `gymnasium.make`, such as render_mode: with `ansi` the model reads what is
        drawn, with `rgb_array` it sees it behind each action, otherwise it reads the observation as JSON. actions:
        words for a discrete environment's, in order (null: their numbers). tool: what the model calls to act. seed: the
        column of a prompt that has the seed of its game (a prompt without it plays one that is the same for its group).
        most: actions of a turn (null: any number).
        """
        self.package: Any = require("the environment gymnasium", "gymnasium", "gymnasium")
        self.id, self.args, self.words, self.seed, self.most = id, dict(args or {}), actions, seed, most
        try:
            made = self.package.make(id, **self.args)
        except self.package.error.Error as error:
            raise ValueError(f"gymnasium has no {id!r} that can be made: {error}") from error
        self.space, self.told, self.name = made.action_space, str(made.unwrapped.__doc__ or ""), tool
        made.close()
        self.schema = self._schema()

    def tools(self) -> list[Schema]:
        """The tool that acts."""
        return [self.schema]

    def start(self, prompt: Prompt, seed: int) -> "Game":
        """A game that begins as the others of the group do."""
        made = self.package.make(self.id, **self.args)
        observed, _ = made.reset(seed=int(prompt.meta.get(self.seed, seed % 2**31)))
        return Game(self, Context(prompt, seed, list(prompt.media)), made, observed)

    def action(self, given: Any) -> Any:
        """What the model gave as an action of the space. Raises ModelsFault where it is none."""
        spaces = self.package.spaces
        if self.words is not None and given in self.words:
            given = self.words.index(given) + int(self.space.start)
        elif self.words is not None:
            raise ModelsFault(f"action={given!r}; accepted: {', '.join(self.words)}")
        if isinstance(self.space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
            import numpy

            array = numpy.asarray(given, self.space.dtype)
            given = array if array.shape == self.space.shape else None
        if given is None or not self.space.contains(given):
            raise ModelsFault(f"this is no action; accepted: one of {self.space}")
        return given

    def _schema(self) -> Schema:
        spaces, space = self.package.spaces, self.space
        if self.words is not None:
            if not isinstance(space, spaces.Discrete) or len(self.words) != space.n:
                raise ValueError(f"actions={list(self.words)}, but {self.id!r} has the actions {space}")
            kind: dict[str, Any] = {"type": "string", "enum": list(self.words)}
        elif isinstance(space, spaces.Discrete):
            kind = {"type": "integer"}
        elif isinstance(space, spaces.Text):
            kind = {"type": "string"}
        elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
            kind = {"type": "array", "items": {"type": "number" if isinstance(space, spaces.Box) else "integer"}}
        else:
            raise ValueError(f"{self.id!r} has the actions {space}; accepted: discrete ones, numbers or texts")
        kind["description"] = f"One of {space}." if self.words is None else "What to do."
        parameters = {"type": "object", "properties": {"action": kind}, "required": ["action"]}
        about = {"name": self.name, "description": "Act, and see what comes of it.", "parameters": parameters}
        return {"type": "function", "function": about}


class Game(Talk):
    """One game. opening: what is observed at first; the outcome is the reward in all, and whether it came to an end."""

    def __init__(self, of: gymnasium, context: Context, made: Any, observed: Any):
        super().__init__(Functions([Tool(of.name, self.act, of.schema)], most=of.most), context)
        self.kind, self.made, self.over = of, made, False
        self.opening = self._read(observed).text
        context.outcome |= {"reward": 0.0, "actions": 0.0, "ended": 0.0}

    def step(self, said: Said) -> list[Shown] | None:
        """What comes of the actions of a turn; None where there is none, or the game is over."""
        answers = super().step(said)
        return None if self.over else answers

    def act(self, action: Any) -> Shown:
        """Plays one action."""
        if self.over:
            raise ModelsFault("the game is over")
        observed, reward, ended, cut, _ = self.made.step(self.kind.action(action))
        numbers = self.context.outcome
        numbers |= {"reward": numbers["reward"] + float(reward), "actions": numbers["actions"] + 1}
        numbers["ended"], self.over = float(ended), bool(ended or cut)
        shown = self._read(observed)
        if self.over:
            self.made.close()
        return shown

    def _read(self, observed: Any) -> Shown:
        mode = self.made.render_mode
        drawn = self.made.render() if mode in ("ansi", "rgb_array") else None
        if mode == "rgb_array" and drawn is not None:
            return Shown("", (Image.fromarray(drawn),))
        return Shown(str(drawn) if mode == "ansi" else json.dumps(_plain(observed), ensure_ascii=False))


def _plain(value: Any) -> Any:
    """An observation as JSON can have it, its numbers rounded."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
