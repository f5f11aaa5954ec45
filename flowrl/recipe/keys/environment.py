"""The keys of `environment`: what answers a language model between its turns."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from flowrl.recipe.base import Strict, key
from flowrl.untyped import JSON


class ToolSpec(Strict):
    """A tool: its short name (`flowrl list tools`) or a dotted path. args: of a class, given when it is made."""

    use: str = key(..., "the name of a tool or a dotted path", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")


Named = Annotated[ToolSpec, BeforeValidator(lambda value: {"use": value} if isinstance(value, str) else value)]


class EnvironmentKeys(Strict):
    """What a language model talks to: `tools`, or an environment of the user's own, `use`, with its `args`; or who asks
    it: a function of the user's own, `agent` (flowrl/engines/agents.py), with its `args`.

    turns: the most of the model in a conversation; generation.max_new_tokens limits what it draws and is shown in all
    of them together, turn_tokens what it draws in one (null: what is left). calls: of one turn, the most that are run
    (null: all). deadline: seconds that a call may take (null: any time); workers: conversations that are answered at
    once. faults: built-in exceptions, such as ValueError, of tools whose text is shown to the model; all others, but
    ModelsFault, leave the sample without a score.

    role: of messages that answer, where the chat template has both (null: tool where it is exact, else user). frame: a
    text with {text} in it that takes the place of the template. tell: how the model learns of its tools: by its chat
    template, or not at all (none), where it was trained on them or the prompts say it. Of an agent, a turn is a call of
    the model, and deadline is for all that it does. batch: of agents, the most calls at the same time that are drawn
    together; above 1 that is faster, and the last bits of a log-prob depend on who asks when: runs do not repeat.
    """

    tools: list[Named] = key([], "a list of tools: names, dotted paths, or mappings with use and args")
    use: str | None = key(None, "a dotted path to an environment, or null", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")
    agent: str | None = key(None, "a dotted path to a function (base_url, prompt), or null", min_length=1)
    turns: int = key(8, "a whole number >= 1", ge=1)
    turn_tokens: int | None = key(None, "a whole number >= 1 or null", ge=1)
    calls: int | None = key(None, "a whole number >= 1 or null", ge=1)
    deadline: float | None = key(60.0, "seconds > 0 or null", gt=0)
    workers: int = key(16, "a whole number >= 1", ge=1)
    batch: int = key(1, "a whole number >= 1", ge=1)
    faults: list[str] = key([], "a list of names of built-in exceptions")
    role: Literal["tool", "user"] | None = key(None, "tool, user or null")
    frame: str | None = key(None, "a text with {text} in it, or null", min_length=1)
    tell: Literal["template", "none"] = key("template", "template or none")


class EarlyCall(Strict):
    """Advantage shaping (arXiv:2508.19201, the first of two methods called ASPO): a right conversation's advantage A is
    shifted by delta (p - mean p) / mean L, at most by limit |A|.

    p: how many tokens the model had drawn when its first call was said, L: how many it drew, both of the right
    conversations of a prompt that call. delta: below 0 earlier calls are worth more. limit: a share of the advantage.
    right: the sum of rewards above which a conversation is right.
    """

    delta: float = key(..., "a number")
    limit: float = key(..., "a number in (0, 1]", gt=0, le=1)
    right: float = key(0.0, "a number")
