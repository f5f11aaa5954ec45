"""Prompt sources load as published, ids are stable, and the draw of prompts is a pure function of seed and position."""

import json
import os
from collections import Counter

import datasets
import pytest
from PIL import Image

from flowrl.contracts import Prompt
from flowrl.reading.cursor import Cursor
from flowrl.reading.prompts import PromptError, load, missing_sources


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path, *records):
    return write(path, "".join(json.dumps(r) + "\n" for r in records))


def test_text_file_a_line_each(tmp_path):
    prompts = load(write(tmp_path / "p.txt", "\ufeffa cat\n\n  a dog  \na cat\n"))
    assert [p.text for p in prompts] == ["a cat", "a dog", "a cat"]
    assert len({p.id for p in prompts}) == 3
    assert prompts[2].id == prompts[0].id + "-2"


def test_ids_do_not_depend_on_the_place_in_the_file(tmp_path):
    first = {p.text: p.id for p in load(write(tmp_path / "a.txt", "a cat\na dog\n"))}
    second = {p.text: p.id for p in load(write(tmp_path / "b.txt", "a bird\na dog\na cat\n"))}
    assert first["a cat"] == second["a cat"] and first["a dog"] == second["a dog"]


def test_jsonl_keeps_the_rest_as_meta_and_resolves_media(tmp_path):
    image = tmp_path / "data" / "in.png"
    write(image, "x")
    path = jsonl(
        tmp_path / "data" / "p.jsonl",
        {"prompt": "edit it", "id": 7, "image": "in.png", "tag": "count", "include": [{"class": "dog", "count": 2}]},
        {"prompt": "two", "media": ["in.png", "in.png"]},
    )
    first, second = load(path)
    assert first == Prompt("7", "edit it", (str(image),), {"tag": "count", "include": [{"class": "dog", "count": 2}]})
    assert second.media == (str(image), str(image)) and second.meta == {}


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]
SAID = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]


def test_conversations_end_with_the_user_and_keep_what_is_to_be_learned(tmp_path):
    records = [
        {"messages": CHAT, "tag": "a"},
        {"prompt": CHAT[:4], "completion": [CHAT[4]], "answer": 4},
        {"conversations": SAID},
        {"prompt": "2+2", "completion": "4"},
    ]
    whole, trl, sharegpt, plain = load(jsonl(tmp_path / "p.jsonl", *records))
    assert [p.text for p in (whole, trl, sharegpt, plain)] == ["2+2"] * 4
    assert whole.messages == trl.messages == tuple(CHAT[:4]) and sharegpt.messages == plain.messages == ()
    assert [dict(p.meta)["completion"] for p in (whole, trl, sharegpt, plain)] == ["4"] * 4
    assert dict(trl.meta)["answer"] == 4 and whole.id + "-2" == trl.id and whole.id != plain.id


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": CHAT[:1]}, "no message of the user to answer"),
        ({"messages": []}, "messages is []; accepted: a list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has the role 'tool'; accepted: system, user"),
        ({"messages": [*CHAT[:1], {"role": "user", "content": " "}]}, "message 2 says ' '"),
        ({"prompt": "a", "completion": CHAT[:2]}, "completion has 2 messages; accepted: one of the assistant"),
        ({"messages": ["a"]}, "message 1 is 'a'; accepted: {role, content}"),
    ],
)
def test_a_conversation_that_cannot_be_answered_is_one_line(tmp_path, record, words):
    with pytest.raises(PromptError) as caught:
        load(jsonl(tmp_path / "p.jsonl", {"prompt": "fine"}, record))
    assert str(caught.value).startswith(f"{tmp_path / 'p.jsonl'}:2: ") and words in str(caught.value)


def test_tables_lists_and_parquet_hold_the_same_records_and_columns_may_be_renamed(tmp_path):
    rows = [{"q": "1+1", "uid": "x", "sol": "007"}, {"q": "2, 2", "uid": "y", "sol": "4"}]
    jsonl(tmp_path / "p.jsonl", *rows)
    write(tmp_path / "p.json", json.dumps(rows, indent=1))
    write(tmp_path / "p.csv", 'q,uid,sol\n1+1,x,007\n"2, 2",y,4\n')
    write(tmp_path / "p.tsv", "q\tuid\tsol\n1+1\tx\t007\n2, 2\ty\t4\n")
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "p.parquet"))
    columns = {"prompt": "q", "id": "uid", "answer": "sol"}
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        read = load(str(tmp_path / f"p.{suffix}"), columns=columns)
        assert [(p.id, p.text, dict(p.meta)) for p in read] == [
            ("x", "1+1", {"answer": "007"}),
            ("y", "2, 2", {"answer": "4"}),
        ], suffix
    with pytest.raises(
        PromptError, match="p.csv:2: has no 'solution', which prompts.columns.answer names, only q, uid"
    ):
        load(str(tmp_path / "p.csv"), columns={"prompt": "q", "answer": "solution"})
    with pytest.raises(PromptError, match="p.tsv:3: 2 values for 3 columns"):
        load(write(tmp_path / "p.tsv", "q\tuid\tsol\n1\tx\t1\n2\ty\n"), columns=columns)
    with pytest.raises(PromptError, match="is no list of JSON objects"):
        load(write(tmp_path / "p.json", '{"q": 1}'))
    with pytest.raises(PromptError, match="id 'x' is already that of line 1"):
        load(jsonl(tmp_path / "p.jsonl", rows[0], rows[0]), columns=columns)


def test_jsonl_does_not_break_at_unicode_line_separators(tmp_path):
    (prompt,) = load(write(tmp_path / "p.jsonl", '{"prompt": "a\u2028b"}\n'))
    assert prompt.text == "a\u2028b"


@pytest.mark.parametrize(
    ("second_line", "words"),
    [
        ("{oops", "one JSON object"),
        ("[1]", "is a list"),
        ('{"text": "a"}', "has no prompt, question, problem, messages or conversations, only text"),
        ('{"prompt": ""}', "not empty"),
        ('{"prompt": 3}', "prompt is 3"),
        ('{"prompt": "b", "id": "x"}', "already that of line 1"),
        ('{"prompt": "b", "id": [1]}', "id is [1]"),
        ('{"prompt": "b", "image": "no.png"}', "no.png does not exist"),
        ('{"prompt": "b", "image": 3}', "a path or a list of paths"),
        ('{"prompt": "b", "id": true}', "id is True"),
        ('{"prompt": "b", "prompt": "c"}', "'prompt' is given twice"),
        ('{"prompt": "b", "answer": {"x": 1, "x": 2}}', "'x' is given twice"),
        ('{"prompt": "b", "x": ' + "[" * 40 + "]" * 40 + "}", "32 levels"),
        ('{"prompt": "b", "x": ' + '{"a": ' * 3000 + "1" + "}" * 3001, "32 levels"),
        ("[" * 100_000, "32 levels"),
        ('{"prompt": "b \\ud800"}', r"\ud800, which is half a character"),
        ('{"prompt": "b", "\\udfff": 1}', r"\udfff, which is half a character"),
        ('{"prompt": "b", "n": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
        ('{"prompt": "b", "n": 1e999}', "'1e999' is too large"),
        ('{"prompt": "b", "n": NaN}', "NaN is no JSON number"),
        ('{"prompt": "b", "n": -Infinity}', "-Infinity is no JSON number"),
        ('{"prompt": "b\\u0000"}', "NUL"),
        ('{"prompt": "b\0"}', "NUL"),
        ('{"prompt": ' + '["' + "long" * 10_000 + '"]}', "prompt: message 1 is 'long"),
    ],
)
def test_a_bad_line_is_one_line_with_file_and_number(tmp_path, second_line, words):
    path = write(tmp_path / "p.jsonl", '{"prompt": "a", "id": "x"}\n' + second_line + "\n")
    with pytest.raises(PromptError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and words in message and "\n" not in message
    assert len(message) < len(path) + 300


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_named_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(PromptError, match="not a regular file"):
        load(str(tmp_path / name))


def test_a_whole_character_of_two_halves_is_one(tmp_path):
    path = write(tmp_path / "p.jsonl", '{"prompt": "\\ud83d\\ude00", "n": 9223372036854775807, "x": 1e-400}\n')
    (prompt,) = load(path)
    assert prompt.text == "\U0001f600" and prompt.meta == {"n": 2**63 - 1, "x": 0.0}


def test_a_nul_in_a_text_file_is_one_line(tmp_path):
    with pytest.raises(PromptError, match=r"p\.txt:2: holds a NUL"):
        load(write(tmp_path / "p.txt", "a\nb\0\n"))


def test_empty_and_unreadable_files(tmp_path):
    with pytest.raises(PromptError, match="holds no prompt"):
        load(write(tmp_path / "p.txt", "\n\n"))
    (tmp_path / "bin.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="UTF-8"):
        load(str(tmp_path / "bin.txt"))
    with pytest.raises(PromptError, match=r"\.csv"):
        load(write(tmp_path / "p.csv", "a"))
    with pytest.raises(PromptError, match="missing.txt"):
        load(str(tmp_path / "missing.txt"))


def test_flow_grpo_layouts(tmp_path):
    """dataset/ocr/{train,test}.txt and dataset/geneval/{train,test}_metadata.jsonl."""
    write(tmp_path / "ocr" / "train.txt", 'a sign that says "hello"\n')
    write(tmp_path / "ocr" / "test.txt", 'a shop named "North"\n')
    jsonl(tmp_path / "geneval" / "train_metadata.jsonl", {"tag": "colors", "include": [], "prompt": "a red bench"})
    jsonl(tmp_path / "geneval" / "test_metadata.jsonl", {"tag": "counting", "include": [], "prompt": "two forks"})
    assert load(str(tmp_path / "ocr"))[0].text == 'a sign that says "hello"'
    assert load(str(tmp_path / "ocr"), split="heldout")[0].text == 'a shop named "North"'
    assert load(str(tmp_path / "geneval"))[0].meta == {"tag": "colors", "include": []}
    assert load(str(tmp_path / "geneval"), split="heldout")[0].meta["tag"] == "counting"


@pytest.mark.parametrize("folder", [".", "prompts"])
def test_geneval_layout(tmp_path, folder):
    jsonl(tmp_path / folder / "evaluation_metadata.jsonl", {"tag": "single_object", "include": [], "prompt": "a bench"})
    (prompt,) = load(str(tmp_path), split="heldout")
    assert (prompt.text, prompt.meta["tag"]) == ("a bench", "single_object")
    with pytest.raises(PromptError, match="no train prompts"):
        load(str(tmp_path))


def test_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"caption": ["a", "b"], "level": [1, 2], "tags": [["x"], []]}
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": part, "test": part.select([1])}).save_to_disk(str(tmp_path / "both"))
    part.save_to_disk(str(tmp_path / "one"))
    both = load(str(tmp_path / "both"))
    assert [(p.text, p.meta) for p in both] == [("a", {"level": 1, "tags": ["x"]}), ("b", {"level": 2, "tags": []})]
    assert [p.text for p in load(str(tmp_path / "both"), split="heldout")] == ["b"]
    assert load(str(tmp_path / "one"), limit=1) == both[:1]


def test_pictures_of_a_data_set_are_inputs_of_a_pipeline_that_takes_them(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    rows = {"prompt": ["turn it", "turn it"], "image": pictures, "mask_image": pictures[::-1], "level": [1, 2]}
    part = datasets.Dataset.from_dict(rows)
    part.save_to_disk(str(tmp_path / "set"))
    found = load(str(tmp_path / "set"), arguments=["image", "mask_image"])
    shown = [Image.open(p.media[0]).getpixel((0, 0)) for p in found]
    masks = [Image.open(p.call["mask_image"]).getpixel((0, 0)) for p in found]
    assert shown == masks[::-1] == [(255, 0, 0), (0, 0, 255)]
    assert [p.media for p in load(str(tmp_path / "set"), arguments=["image", "mask_image"])] == [p.media for p in found]
    assert len(list((tmp_path / "cache" / "flowrl" / "pictures").iterdir())) == 2  # named by content: none twice
    assert [p.media for p in load(str(tmp_path / "set"))] == [(), ()]  # a pipeline that draws from text alone


def test_a_data_set_without_a_text_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"label": [1]}).save_to_disk(str(tmp_path))
    with pytest.raises(PromptError, match="columns label; accepted: one of prompt, caption, text"):
        load(str(tmp_path))


def test_published_prompts_that_are_not_here_are_named_with_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone = "git clone https://github.com/yifan123/flow_grpo"
    message = f"flow_grpo/dataset/ocr: not here, and not shipped; get it by `{clone}`, or name other prompts"
    assert missing_sources(["flow_grpo/dataset/ocr", None, "flow_grpo/dataset/ocr"], clone) == message
    for other in ("mine.txt", "data/mine.jsonl", "/nowhere/at/all.txt", "owner/set:test", "shapes/train"):
        assert missing_sources([other], clone) is None  # a file, world or data set of the hub as ever
    write(tmp_path / "flow_grpo" / "dataset" / "ocr" / "train.txt", 'a sign that says "open"\n')
    assert missing_sources(["flow_grpo/dataset/ocr"], clone) is None
    assert [p.text for p in load("flow_grpo/dataset/ocr")] == ['a sign that says "open"']


def test_gsm8k_as_it_is_published(tmp_path):
    (prompt,) = load(jsonl(tmp_path / "train.jsonl", {"question": "What is 6 * 7?", "answer": "6 * 7 = 42\n#### 42"}))
    assert prompt.text == "What is 6 * 7?" and prompt.meta == {"answer": "6 * 7 = 42\n#### 42"}


def test_shapes_world():
    from flowrl.worlds.shapes.captions import Scene, heldout_scenes

    train, heldout = load("shapes/train"), load("shapes/heldout", split="heldout")
    assert [p.text for p in heldout] == [s.caption for s in heldout_scenes()]
    assert all(p.id == p.text and Scene.from_meta(p.meta).caption == p.text for p in train + heldout)
    assert not {p.id for p in train} & {p.id for p in heldout}
    json.dumps([p.meta for p in train])


def numbered(n, **meta):
    return [Prompt(str(i), f"p{i}", meta={k: v(i) for k, v in meta.items()}) for i in range(n)]


def ids(prompts):
    return [p.id for p in prompts]


def test_a_pass_visits_every_prompt_once_and_passes_differ():
    cursor = Cursor(numbered(12), seed=3)
    passes = [[i for _ in range(3) for i in ids(cursor.take(4))] for _ in range(2)]
    assert all(sorted(p, key=int) == [str(i) for i in range(12)] for p in passes)
    assert passes[0] != passes[1]
    assert ids(Cursor(numbered(12), seed=4).take(12)) != passes[0]


def test_a_draw_is_distinct_where_a_pass_ends():
    cursor = Cursor(numbered(10), seed=0)
    for _ in range(50):
        assert len(set(ids(cursor.take(7)))) == 7


@pytest.mark.parametrize("balance", [None, "kind"])
def test_a_resumed_draw_goes_on_with_the_same_prompts(balance):
    prompts = numbered(20, kind=lambda i: "ab"[i % 2])
    whole = Cursor(prompts, seed=5, balance=balance)
    drawn = [ids(whole.take(3)) for _ in range(20)]
    for cut in (0, 1, 6, 13):
        first = Cursor(prompts, seed=5, balance=balance)
        for _ in range(cut):
            first.take(3)
        state = json.loads(json.dumps(first.state_dict()))
        second = Cursor(prompts, seed=5, balance=balance)
        second.load_state_dict(state)
        assert [ids(second.take(3)) for _ in range(20 - cut)] == drawn[cut:]


def test_a_state_of_other_prompts_is_refused():
    state = Cursor(numbered(5), seed=0).state_dict()
    with pytest.raises(PromptError, match="not the prompts"):
        Cursor(numbered(6), seed=0).load_state_dict(state)


def test_balance_draws_the_values_equally_often_whatever_their_share():
    cursor = Cursor(numbered(100, kind=lambda i: "rare" if i < 5 else "often"), seed=1, balance="kind")
    counts, seen = Counter(), Counter()
    for _ in range(100):
        draw = cursor.take(6)
        assert len(set(ids(draw))) == 6
        assert Counter(p.meta["kind"] for p in draw) == {"rare": 3, "often": 3}
        counts.update(p.meta["kind"] for p in draw)
        seen.update(ids(draw))
    assert counts["rare"] == counts["often"]
    assert all(40 <= seen[str(i)] <= 80 for i in range(5))  # 60 each expected
    odd = Counter(p.meta["kind"] for _ in range(400) for p in cursor.take(3))
    assert abs(odd["rare"] - odd["often"]) < 100  # the odd one goes to either


def test_balance_fills_up_from_the_others_when_a_value_runs_out():
    cursor = Cursor(numbered(10, kind=lambda i: "one" if i == 0 else "rest"), seed=1, balance="kind")
    assert Counter(p.meta["kind"] for p in cursor.take(6)) == {"one": 1, "rest": 5}


def test_balance_on_a_key_that_is_missing_names_those_there_are():
    with pytest.raises(PromptError, match="'tag' is not in the meta of 'p0', only kind"):
        Cursor(numbered(3, kind=str), seed=0, balance="tag")


def test_unshuffled_prompts_keep_their_order():
    cursor = Cursor(numbered(4), seed=9, shuffle=False)
    assert [ids(cursor.take(2)) for _ in range(3)] == [["0", "1"], ["2", "3"], ["0", "1"]]


def test_more_prompts_than_there_are():
    with pytest.raises(PromptError, match="train.prompts: got 5, accepted: 1 to 4"):
        Cursor(numbered(4), seed=0).take(5)
