"""The tokens behind an answer: as the template writes them, in a role that it is exact in, else refused."""

from typing import Any

import pytest

from flowrl.contracts import Shown
from flowrl.environments.observations import Observations
from flowrl.names import UserError
from talk_support import TEMPLATE, tokenizer

LOOP, PARTS = "{% for m in messages %}", "{% for p in m.content %}{{ p.text }}{% endfor %}"
# styles of templates: what each writes behind an answer of the model for a message "5", and in which role
STYLES = {
    "separator behind each turn": (TEMPLATE, "tool", "</s>\n<|tool|>5\n<|assistant|>"),
    "results inside a turn of the user": (
        LOOP + "{% if m.role == 'tool' %}{{ '<|user|><result>' + m.content + '</result></s>' }}{% else %}"
        "{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endif %}{% endfor %}<|assistant|>",
        "tool",
        "</s><|user|><result>5</result></s><|assistant|>",
    ),
    "no tool role": (
        LOOP + "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('who?') }}{% endif %}"
        "{{ '[' + m.role + ']' + m.content + ('</s>' if m.role == 'assistant' else '') }}{% endfor %}[assistant]",
        "user",
        "</s>[user]5[assistant]",
    ),
    "tool messages are lost": (
        LOOP + "{% if m.role != 'tool' %}{{ m.role + ':' + m.content + '</s>' }}{% endif %}{% endfor %}assistant:",
        "user",
        "</s>user:5</s>assistant:",
    ),
    "content in parts": (
        LOOP + "{{ '<|' + m.role + '|>' }}" + PARTS + "</s>{% endfor %}<|assistant|>",
        "tool",
        "</s><|tool|>5</s><|assistant|>",
    ),
    "the past is written anew with a thought": (
        LOOP + "{{ '<|' + m.role + '|>' + ('<t></t>' if m.role == 'assistant' and loop.index0 > 0 else '') + m.content"
        " + '</s>\n' }}{% endfor %}<|assistant|>",
        "tool",
        "</s>\n<|tool|>5</s>\n<|assistant|>",
    ),
}
WRONG = {
    "leaves out what is shown": (
        LOOP + "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        "leaves",
    ),
    "what is shown twice": (
        LOOP + "{{ m.content + ('' if m.role == 'assistant' else m.content) }}{% endfor %}",
        "twice",
    ),
    "otherwise in a later turn": (LOOP + "{{ loop.index ~ m.content }}{% endfor %}", "later turn"),
    "answers are lost": (LOOP + "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}", "substring"),
}


@pytest.mark.parametrize("name", STYLES)
def test_what_stands_behind_an_answer_is_what_the_template_adds(name: str):
    template, role, suffix = STYLES[name]
    told = tokenizer(template)
    observe = Observations(told)
    assert observe.role == role and observe.suffix([Shown("5")]) == suffix
    ids = told(suffix, add_special_tokens=False)["input_ids"]
    assert observe.ids([Shown("5")]) == ids
    assert observe.ids([Shown("5")], last=3, stop=[3]) == ids[1:]  # the model ended its turn itself
    assert observe.ids([Shown("5")], last=9, stop=[3]) == ids  # something else ended it
    assert observe.ids([Shown("5")], last=2, stop=[2, 3]) == ids[1:]  # it ended it by another token


@pytest.mark.parametrize("name", WRONG)
def test_templates_that_cannot_say_it_are_refused(name: str):
    template, words = WRONG[name]
    with pytest.raises(UserError, match=f"{words}.*environment.frame"):
        Observations(tokenizer(template))


def test_a_role_that_is_asked_for_is_kept_or_refused():
    assert Observations(tokenizer(), role="user").suffix([Shown("5")]) == "</s>\n<|user|>5\n<|assistant|>"
    with pytest.raises(UserError, match="as tool: who"):
        Observations(tokenizer(STYLES["no tool role"][0]), role="tool")


def test_several_messages_stand_in_their_order():
    both = [Shown("1", name="a"), Shown("2")]
    assert Observations(tokenizer()).suffix(both) == "</s>\n<|tool|>1\n<|tool|>2\n<|assistant|>"
    user = Observations(tokenizer(STYLES["no tool role"][0]))
    assert user.suffix(both) == "</s>[user]1\n2[assistant]"
    said: Any = Observations(tokenizer()).suffix([Shown("1", role="user")])
    assert said == "</s>\n<|user|>1\n<|assistant|>"


def test_a_frame_takes_the_place_of_a_template():
    with pytest.raises(UserError, match="no chat template"):
        Observations(tokenizer(None))
    told = tokenizer(None)
    framed = Observations(told, frame="<r>{text}</r>")
    assert told.decode(framed.ids([Shown("5"), Shown("6")], last=3, stop=[3])) == "<r>5\n6</r>"


def test_a_system_message_and_tools_stand_before_the_answer():
    template = "{% if tools is not defined or messages[0].role != 'system' %}{{ raise_exception('bare') }}{% endif %}"
    told = tokenizer(template + TEMPLATE)
    assert "</s>\n<|tool|>" in Observations(told, system="s", arguments={"tools": []}).suffix([Shown("5")])
    with pytest.raises(UserError, match="bare"):
        Observations(told)
