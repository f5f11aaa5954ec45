"""What a model is told of a tool, calls that it writes, and the environments that functions and classes make."""

from typing import Any, Literal

import pytest
import torch
from PIL import Image

from flowrl.contracts import Context, Prompt, Said, Shown
from flowrl.environments.calls import Reader, tagged_calls
from flowrl.environments.classes import Methods
from flowrl.environments.functions import Functions, as_message
from flowrl.environments.schemas import tool_of
from flowrl.names import UserError
from talk_support import CALLS, add, call, sulk, tokenizer

PROMPT = Prompt("p", "what?", media=("one.png",), meta={"size": 3, "word": "tree"})


def look(
    context: Context, box: list[float], picture: int = 0, how: Literal["near", "far"] = "near", note: str | None = None
) -> str:
    """Looks closer.

    Args:
        box: left and top
        picture: which one
        how: from where
        note: what for
    """
    context.state["looks"] = context.state.get("looks", 0) + 1
    return f"{context.pictures[picture]} {box} {how} {note} {context.state['looks']}"


class Index:
    """Searches; made with what the recipe gives."""

    def __init__(self, top: int = 1):
        self.top = top

    def __call__(self, words: str) -> list[str]:
        """Finds texts.

        Args:
            words: what to look for
        """
        return [f"{words} {i}" for i in range(self.top)]


def test_the_model_is_told_all_but_the_context():
    schema = tool_of(look).schema["function"]
    assert schema["name"] == "look" and schema["description"] == "Looks closer."
    properties = schema["parameters"]["properties"]
    assert list(properties) == ["box", "picture", "how", "note"] and schema["parameters"]["required"] == ["box"]
    assert properties["how"]["enum"] == ["near", "far"] and properties["box"]["items"] == {"type": "number"}
    assert tool_of(Index(2)).schema["function"]["name"] == "index"
    assert tool_of(Index(2)).schema["function"]["description"] == "Finds texts."


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"box": [1, 2.5]}, None),
        ({"box": [], "note": None, "how": "far"}, None),
        ({}, "lacks 'box'"),
        ({"box": "all"}, "box must be of type array"),
        ({"box": [1, "2"]}, "box[1] must be of type number"),
        ({"box": [True]}, "box[0] must be of type number"),
        ({"box": [1], "picture": 1.5}, "picture must be of type integer"),
        ({"box": [1], "picture": True}, "picture must be of type integer"),
        ({"box": [1], "how": "away"}, "how must be one of near, far"),
        ({"box": [1], "context": 1}, "no 'context'"),
    ],
)
def test_arguments_that_do_not_fit_are_told(arguments: dict[str, Any], wrong: str | None):
    found = tool_of(look).misfit(arguments)
    assert found is None if wrong is None else wrong in (found or "")


def test_a_function_that_says_too_little_is_refused():
    def bare(a): ...

    def silent(a: int) -> int:
        return a

    def loose(*values: int) -> int:
        """Adds."""
        return sum(values)

    for wrong, words in ((bare, "'a' has no type"), (silent, "Args:"), (loose, "annotate every argument")):
        with pytest.raises(UserError, match=words):
            tool_of(wrong)
    with pytest.raises(UserError, match="two tools are called 'add'"):
        Functions([add, add])


def test_calls_are_read_or_said_to_be_wrong():
    found = tagged_calls("I look " + "".join(CALLS))
    assert [one.name for one in found] == ["add", "add", "add", "fall", "sulk", ""]
    assert found[1].arguments == {"a": 30, "b": 4} and [one.error is None for one in found] == [True] * 5 + [False]
    nested = tagged_calls('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>')
    assert nested[0].arguments == {"a": 1} and nested[0].error is None
    for text, words in (
        ("<tool_call>{", "</tool_call> is missing"),
        ("<tool_call>[1]</tool_call>", "has the form"),
        ("<tool_call>" + "[" * 9999 + "</tool_call>", "not JSON"),
        (call("add", "[1]"), "no object"),
        (call("add", '"{a}"'), "not JSON"),
    ):
        assert words in (tagged_calls(text)[0].error or "")
    assert tagged_calls("add(1, 2) </tool_call>") == ()


def test_a_response_template_reads_what_no_tag_does():
    """transformers' own parser, which has to see the end of the turn and what the prompt began of it."""
    told = tokenizer()
    call_of = {"type": "function", "function": "{content}"}
    found = {"open": "CALL", "close_pattern": "STOP|</s>", "repeats": True, "content": "json", "transform": call_of}
    fields = {"tool_calls": found, "content": {"close_pattern": "</s>", "content": "text"}}
    told.response_template = {"defaults": {"role": "assistant"}, "start_anchor": "<|assistant|>", "fields": fields}

    def said(text: str, **how: Any) -> Said:
        ids, prompt = (told(t, add_special_tokens=False)["input_ids"] for t in (text, "<|user|>2+2<|assistant|>"))
        return Reader(told, [tool_of(add).schema])(ids, prompt=prompt, **how)

    first, second = (f'{{"name": "add", "arguments": {{"a": {i}, "b": 2}}}}' for i in (1, 3))
    both = said(f"I add CALL{first}STOPCALL{second}", end=3)
    assert [one.arguments for one in both.calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 2}]
    assert both.text == f"I add CALL{first}STOPCALL{second}" and all(one.error is None for one in both.calls)
    assert said("no call", end=3) == Said("no call")
    (wrong,) = said('CALL{"name": ', end=3).calls
    assert "cannot be read" in (wrong.error or "")
    assert said(f"CALL{first}", cut=True) == Said(f"CALL{first}", cut=True)


def test_a_turn_is_answered_call_by_call():
    talk = Functions([look, add, sulk, tool_of(Index(2), "find")], most=4).start(PROMPT, 0)
    calls = tagged_calls(
        call("look", '{"box": [1]}')
        + call("look", '{"box": [2], "note": "x"}')
        + call("find", '{"words": "owl"}')
        + call("sulk", '{"why": "me"}')
        + call("add", '{"a": 1, "b": 2}')
    )
    shown = talk.step(Said("", calls))
    assert [message.text for message in shown or ()] == [
        "one.png [1] near None 1",
        "one.png [2] near x 2",
        '["owl 0", "owl 1"]',
        "Error: not me",
        "Error: not run: at most 4 calls a turn",
    ]
    assert [message.name for message in shown or ()] == ["look", "look", "find", "sulk", "add"]
    assert talk.step(Said("done")) is None and talk.outcome() == {}


def test_what_a_tool_gives_becomes_a_message():
    picture = Image.new("RGB", (2, 2))
    assert as_message(picture) == Shown("", (picture,)) and as_message(["a", picture, 2]) == Shown("a\n2", (picture,))
    assert as_message(torch.zeros(3, 2, 2)).pictures[0].shape == (3, 2, 2)
    assert as_message(None).text == "" and as_message({"a": [1.5, None]}).text == '{"a": [1.5, null]}'
    assert as_message(Shown("x", role="user"), "add") == Shown("x", role="user", name="add")
    with pytest.raises(TypeError):
        as_message(object())


class Guess:
    """A game in the form of TRL's environments."""

    def reset(self, word: str, **row: Any) -> str:
        """Begins with a word to be guessed."""
        self.word, self.right, self.seen = word, False, sorted(row)
        return f" It has {len(word)} letters."

    def guess(self, word: str) -> str:
        """Guesses the word.

        Args:
            word: the guess
        """
        self.right = word == self.word
        return "yes" if self.right else "no"

    def get_reward(self) -> float:
        """Whether it was guessed."""
        return float(self.right)


def test_a_class_with_reset_and_get_reward_is_an_environment():
    environment = Methods(Guess)
    assert [schema["function"]["name"] for schema in environment.tools()] == ["guess"]
    one, other = environment.start(PROMPT, 5), environment.start(PROMPT, 5)
    assert one.opening == " It has 4 letters." and one.thing.seen == ["prompt", "seed", "size"]
    shown = one.step(Said("", tagged_calls(call("guess", '{"word": "tree"}'))))
    assert [message.text for message in shown or ()] == ["yes"]
    assert one.outcome() == {"right": 1.0, "reward": 1.0} and other.outcome() == {"right": 0.0, "reward": 0.0}

    class Mute(Guess):
        guess = None
        get_reward = None

    with pytest.raises(UserError, match="no public method"):
        Methods(Mute)
