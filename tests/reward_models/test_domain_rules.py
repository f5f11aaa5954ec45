"""Rules of answers, texts and layouts that published systems are rewarded by: cases computed by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import judge_support as support
from flowrl.contracts import Call, Conversation, Prompt, Said, Samples, Shown
from reward_models.choices import choice_letter, named_choice
from reward_models.domains import box_format, close_number, text_similarity
from reward_models.findings import radiology_reasoning
from reward_models.layouts import layout_collisions, layout_format, layout_misplaced
from reward_models.screens import screen_format
from reward_models.spotting import box_overlap, lines_of, text_spotting
from reward_models.writing import closed_tags, mark_lines, think_format, thought_length


def samples(texts: list[str], *metas: dict[str, Any]) -> Samples:
    """Texts with a meta each, or one for all."""
    prompts = [Prompt(str(i), f"task {i}", meta=metas[i % len(metas)]) for i in range(len(texts))]
    return Samples(prompts, torch.arange(len(texts)), texts=texts)


def test_a_letter_alone_is_worth_more_than_one_with_more_beside_it():
    said = ["B", " b ", "B.", "(B)", "C", "B: bone", "B, D", "", "a B in text"]
    texts = [f"<think>A or C?</think><answer>{answer}</answer>" for answer in said] + ["B"]
    # "bone" has two more of A to J, b and e; a text without <answer> chooses nothing
    assert choice_letter(samples(texts, {"answer": "B"})).tolist() == [1, 1, 0.5, 0.5, 0, 0, 0, 0, 0, 0]
    different = [{"answer": "A"}, {"answer": "C. the liver"}, {"answer": "<answer>b</answer>"}]
    assert choice_letter(
        samples(["<answer>C</answer>", "<answer>C</answer>", "<answer>B</answer>"], *different)
    ).tolist() == [0, 1, 1]
    for wrong in ("A dog", "K", "liver"):
        with pytest.raises(ValueError, match=f"answer='{wrong}' is no option"):
            choice_letter(samples(["<answer>A</answer>"], {"answer": wrong}))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>It is A.</think><answer>C</answer>", "C"),
        ("<answer>c</answer>", "C"),
        ("<answer>The answer is D. It is not A.</answer>", "D"),
        ("<answer>A dog, so B. yes</answer>", "B"),
        (r"first \boxed{A}, then \boxed{E}, answer B", "E"),
        ("either F or G", "G"),
        ("Answer: (H)", "H"),
    ],
)
def test_the_letter_that_an_answer_names(text: str, letter: str):
    metas = [{"answer": letter}, {"answer": "J"}]
    assert named_choice(samples([text, text], *metas)).tolist() == [1.0, 0.0]


def test_an_answer_without_a_letter_names_none():
    assert named_choice(samples(["", "a dog", "K", "BCD"], {"answer": "B"})).tolist() == [0, 0, 0, 0]


def test_forms_of_answers_alone_and_in_lines():
    texts = ["<answer>7</answer>", " <answer>7</answer>", "<think>a</think><answer>7</answer>", "<answer>7</answer>."]
    assert think_format(samples(texts, {}), form="alone").tolist() == [1, 0, 0, 0]
    lines = "<think>\na\n</think>\n<answer>\n7\n</answer>"
    texts = [lines, lines + "\n", lines + "\n\n", lines.replace("\n7", "7"), "x" + lines]
    assert think_format(samples(texts, {}), form="lines").tolist() == [1, 1, 0, 0, 0]
    twice = lines + "\n<think>\n"
    assert mark_lines(samples([lines, twice, "<think>\n", "no"], {})).tolist() == [1.0, 0.75, 0.25, 0.0]
    thoughts = ["<think>" + "w " * n + "</think>" for n in (250, 400, 125, 0)] + ["w " * 300]
    assert thought_length(samples(thoughts, {})).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="form='line'; accepted: answer, any, alone, boxed, lines"):
        think_format(samples(["a"], {}), form="line")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="words=0"):
        thought_length(samples(["a"], {}), words=0)


def glm(inside: str, thought: str = "t") -> str:
    return f"<think>{thought}</think>\n<answer>{inside}</answer>"


def box(inside: str) -> str:
    return f"<|begin_of_box|>{inside}<|end_of_box|>"


def test_one_box_in_an_answer():
    right = [glm(box("7")), glm(f"It is {box('7')}."), "\n" + glm(box("7")) + " "]
    wrong = [
        glm("7"),
        glm(box("7") + box("7")),
        glm(box(" ")),
        box("7"),
        glm(box("7"), "<think>a"),
        glm(box(r"\boxed{7}")),
    ]
    wrong += [glm("<answer>" + box("7")), glm(box("7")) + " more", glm("<|end_of_box|>7<|begin_of_box|>")]
    assert box_format(samples(right + wrong, {})).tolist() == [1.0] * len(right) + [0.0] * len(wrong)
    texts = ["<think>t</think>" + box("7"), glm(box("7")), "<think>t</think>7"]
    assert box_format(samples(texts, {}), answer=False).tolist() == [1.0, 0.0, 0.0]


def test_numbers_are_near_and_years_are_equal():
    metas = [{"answer": truth} for truth in ("100", "100", "2019", "12%", "12%", "cats", box("-4"), "0")]
    said = ["102.4", "102.6", "2020", "12.1 %", "12", "cats", "-4.0", "0.00000001"]
    texts = [glm(box(text)) for text in said]
    assert close_number(samples(texts, *metas)).tolist() == [1, 0, 0, 1, 0, 1, 1, 1]
    assert close_number(samples([glm(box("102.4"))], {"answer": "100"}), tolerance=1e-5).tolist() == [0.0]
    texts = [glm("100"), glm(box("100") + box("100")), glm(box("one hundred")), glm(box("1,000"))]
    assert close_number(samples(texts, {"answer": "100"})).tolist() == [0, 0, 0, 0]
    assert close_number(samples([glm(box("1,900.5"))], {"answer": "$1900"})).tolist() == [1.0]
    with pytest.raises(ValueError, match="has no 'answer'"):
        close_number(samples(["a"], {"label": 3}))


def test_texts_are_compared_by_their_edit_distance():
    pytest.importorskip("rapidfuzz")
    texts = [glm("kitten"), glm("kit ten"), "sitting", glm(""), glm("KITTEN")]
    got = text_similarity(samples(texts, {"answer": "kitten"})).tolist()
    assert got == pytest.approx([1.0, 1.0, 1 - 3 / 7, 0.0, 0.0])
    assert text_similarity(samples([texts[4]], {"answer": "kitten"}), case=False).tolist() == [1.0]
    spaced = text_similarity(samples([texts[1]], {"answer": "kitten"}), spaces=True).tolist()
    assert spaced == pytest.approx([1 - 1 / 7])
    boxed = [glm(f"see {box('kitten')}"), glm("kitten")]
    assert text_similarity(samples(boxed, {"answer": box("kitten")}), part="box").tolist() == [1.0, 0.0]


def test_lines_are_found_and_read():
    pytest.importorskip("rapidfuzz")
    lines = [{"text": "SALE", "box": [0, 0, 100, 20]}, {"text": "today", "box": [0, 50, 100, 70]}]
    both = "today(0,50),(100,70)SALE(0,0),(100,20)"
    texts = [
        both,
        "SALE(0,0),(100,20)",
        both + "\nmore(500,500),(600,600)",
        "SALT(100,20),(0,0)",
        "SALE(0,40),(100,60)",
        "none",
    ]
    # of two lines: both; one; both of three; three letters of four; overlap 1 / 3 at most; nothing
    got = text_spotting(samples(texts, {"lines": lines})).tolist()
    assert got == pytest.approx([1.0, 0.5, 2 / 3, 0.375, 0.0, 0.0])
    assert lines_of(both)[0] == ("today", (0, 50, 100, 70))
    assert box_overlap([0, 0, 2, 2], [1, 1, 3, 3]) == pytest.approx(1 / 7) and box_overlap([0] * 4, [0] * 4) == 0
    assert text_spotting(samples(["", "a(0,0),(1,1)"], {"lines": []})).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"accepted is a list of \{\"text\""):
        text_spotting(samples([both], {"lines": [{"text": "a", "box": [1, 2]}]}))


def test_each_line_has_one_partner():
    pytest.importorskip("rapidfuzz")
    lines = [{"text": "a", "box": [0, 0, 10, 10]}, {"text": "b", "box": [0, 0, 10, 9]}]
    # both named boxes overlap the first line most; together they overlap more if the second goes to the second line
    texts = ["a(0,0),(10,10)b(0,0),(10,9)", "a(0,0),(10,10)a(0,0),(10,10)"]
    assert text_spotting(samples(texts, {"lines": lines})).tolist() == [1.0, 0.5]


ROOM = {
    "room": [4, 3, 2.5],
    "objects": [
        {"id": "bed", "size": [2, 1, 0.5]},
        {"id": "desk", "size": [1.2, 0.6, 0.8], "angle": 90, "places": [[3, 4, 0, 3, 0, 1], [0, 0.5, 0, 3, 0, 1]]},
        {"id": "rug", "size": [2, 2, 0.01]},
    ],
}


def layout(**places: tuple[float, float, float]) -> str:
    listed = [f'{{"new_object_id": "{name}", "x": {x}, "y": {y}, "z": {z}}}' for name, (x, y, z) in places.items()]
    return f"<think>t</think>\n<answer>[{', '.join(listed)}]</answer>"


def test_layouts_of_rooms():
    good = layout(bed=(1, 0.5, 0.25), desk=(3.5, 2, 0.4), rug=(1, 1, 0.005))
    # the desk stands across: 0.6 wide in x, 1.2 in y, and reaches into the bed; one of three pairs, a rug is thin
    hit = layout(bed=(1, 0.5, 0.25), desk=(2.2, 0.6, 0.4), rug=(1, 1, 0.005))
    touching = layout(bed=(1, 0.5, 0.25), desk=(2.3, 0.6, 0.4), rug=(1, 1, 0.005))
    outside = layout(bed=(0.5, 0.5, 0.25), desk=(0.3, 2, 0.4), rug=(3.5, 1, 0.005))
    few, unknown = layout(bed=(1, 0.5, 0.25)), good.replace("rug", "lamp")
    texts = [good, hit, touching, outside, few, unknown, "<think>t</think><answer>the bed</answer>", "no"]
    made = samples(texts, ROOM)
    assert layout_format(made).tolist() == pytest.approx([1, 1, 1, 1, 0.5, 1, 0.1, 0])
    assert layout_collisions(made).tolist() == pytest.approx([0, 1 / 3, 0, 0, 0, 0, 0, 0])
    assert layout_misplaced(made).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"accepted is a list of \{\"id\""):
        layout_format(samples([good], {"objects": [{"id": "bed", "size": [1, 2]}]}))
    with pytest.raises(ValueError, match="room=None in its meta|has no 'room'"):
        layout_misplaced(samples([good], {"objects": ROOM["objects"]}))


def test_actions_with_all_their_parts():
    def action(**how: Any) -> str:
        whole = {"action": "click", "point": [1, 2], "input_text": "no input text"} | how
        return f"<think>t</think> <answer>{[whole]}</answer>"

    right = [action(), action(action="type", input_text="hi"), action(action="scroll", input_text="up")]
    wrong = [
        action(point=[1.0, 2]),
        action(point="1, 2"),
        action(action="type"),
        action(action="scroll", input_text="UP"),
    ]
    wrong += [action(action=3), "<answer>[]</answer>", "<think>t</think><answer>__import__('os')</answer>"]
    got = screen_format(samples(right + wrong, {}), whole=True).tolist()
    assert got == [1.0] * len(right) + [0.0] * len(wrong)


CHEST = {"findings": ["no effusion", "large heart"], "report": "The heart is large. No effusion."}


def test_reasoning_about_an_x_ray_is_counted_by_a_judge():
    asked = []

    def reply(body, handler):
        text = support.text_in(body)
        asked.append(text)
        counts = {"one": (1, 4, 2, 1), "all": (2, 2, 2, 2), "odd": (3, 2, 2, 2), "many": (1, 2, 3, 1)}
        for word, (recalled, steps, correct, effective) in counts.items():
            if f'"{word}"' in text:
                said = {"recalled": recalled, "steps": steps, "correct": correct, "effective": effective}
                return support.completion(str(said).replace("'", '"'))
        return support.completion("four")

    texts = [f"<think>{word}</think>A" for word in ("all", "odd", "one", "many", "silent")] + ["<answer>A</answer>"]
    with support.serving(reply) as url, pytest.warns(UserWarning, match="a question is not scored"):
        reward = radiology_reasoning(base_url=url, model="m")
        got = reward(samples(texts, CHEST))
    wanted = [1.0, torch.nan, (0.5 + 0.5 + 0.25) / 3, torch.nan, torch.nan, 0.0]
    torch.testing.assert_close(got, torch.tensor(wanted), equal_nan=True)
    assert len(asked) == 5 and '- "no effusion"' in asked[0] and "The heart is large" in asked[0]
    assert reward.failures == {"the counts cannot be": 2, "the answer is no such object": 1}
    with pytest.raises(ValueError, match="has no 'report'"):
        reward(samples(["a"], {"findings": ["a"]}))
    with pytest.raises(ValueError, match="findings=.* accepted is a list of texts"):
        reward(samples(["a"], CHEST | {"findings": []}))


CLOSED = [
    ("<think>a</think><answer>b</answer>", True, True),
    ("<think>a</think> b", True, False),
    ("a</think><answer>b</answer>", False, True),
    ("<think>a<answer>c</think><answer>b</answer>", True, True),  # within a thought nothing is counted
    ("<think>a</think><answer>b", False, False),
    ("<think>a</think><answer> </answer>", True, False),
    ("b", True, False),
    ("<think>a</think><answer>" + "b" * 20 + "</answer>", False, False),
]


@pytest.mark.parametrize(("text", "deepeyes", "second"), CLOSED)
def test_closed_tags(text: str, deepeyes: bool, second: bool):
    made = samples([text, "b"], {})
    assert closed_tags(made, longest=20, good=0, bad=-1)[0] == (0 if deepeyes else -1)
    assert closed_tags(made, longest=20, needed=True)[0] == second


def test_closed_tags_of_a_conversation_are_all_that_was_said():
    said = (Said("<think>a</think>", (Call("zoom"),)), Said("<answer>b</answer>"))
    talk = Conversation(said, ((Shown("</think>"),), ()))
    made = replace(samples(["<answer>b</answer>"], {}), talks=[talk])
    assert closed_tags(made, needed=True)[0] == 1
