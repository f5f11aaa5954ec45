"""Samples from files: own and published layouts, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowrl.reading.pairs import load, samples_of
from flowrl.reading.prompt_lines import PromptError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate("abcd"):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "twin.png").write_bytes((tmp_path / "a.png").read_bytes())
    return tmp_path


def written(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_pairs_of_the_same_prompt_are_told_apart(folder: Path) -> None:
    records = [{"prompt": "x", "better": f"{b}.png", "worse": f"{w}.png"} for b, w in ("ab", "cd", "ab")]
    prompts = load(written(folder, *records))
    assert len({p.id for p in prompts}) == 3 and [p.text for p in prompts] == ["x"] * 3
    assert samples_of(prompts[1]) == ([folder / "c.png", folder / "d.png"], [1.0, -1.0])
    assert [p.id for p in load(written(folder, *records[1:]))] == [prompts[1].id, prompts[0].id]
    assert len(load(written(folder, *records), limit=2)) == 2


PUBLISHED = [
    ({"prompt": "x", "files": ["a.png", "b.png", "c.png"], "scores": [0.5, 2, -1]}, [0.5, 2, -1]),
    ({"prompt": "x", "files": ["c.png"]}, [1.0]),
    ({"prompt": "x", "file_path": ["a.png", "b.png"], "human_preference": [0, 1]}, [-1, 1]),
    ({"prompt": "x", "image_path": ["a.png", "b.png", "c.png"], "rank": [2, 1, 3]}, [-2, -1, -3]),
    ({"prompt": "x", "path1": "a.png", "path2": "b.png", "confidence": 0.9}, [1, -1]),
    ({"prompt": "x", "path_A": "a.png", "path_B": "b.png", "Overall": "B", "VQ": "A"}, [-1, 1]),
    ({"prompt": "x", "path_A": "a.png", "path_B": "b.png", "VQ": "B", "MQ": "A", "TA": "B"}, [-1, 1]),
    ({"prompt": "x", "path_A": "a.png", "path_B": "b.png", "VQ": "same", "MQ": "A", "TA": "same"}, [1, -1]),
]


@pytest.mark.parametrize(("record", "scores"), PUBLISHED)
def test_a_layout_is_known_by_its_columns(folder: Path, record: dict[str, Any], scores: list[float]) -> None:
    (prompt,) = load(written(folder, record))
    files, got = samples_of(prompt)
    names = "c" if len(got) == 1 else "abc"[: len(got)]
    assert got == scores and [f.stem for f in files] == list(names)


def test_tables_and_their_ties(folder: Path) -> None:
    (folder / "v.csv").write_text('prompt,path_A,path_B,Overall\n"x, y",a.png,b.png,A\nz,c.png,d.png,same\n')
    (prompt,) = load(str(folder / "v.csv"))
    assert prompt.text == "x, y" and samples_of(prompt)[1] == [1, -1]
    ranked = [{"prompt": "x", "file_path": ["c.png", "d.png"], "human_preference": [1, 0]}]
    (folder / "h.json").write_text(json.dumps(ranked))
    assert samples_of(load(str(folder / "h.json"))[0])[1] == [1, -1]


def test_pick_a_pic_as_a_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    a, b = ((folder / f"{name}.png").read_bytes() for name in "ab")
    rows = {"caption": ["x", "y"], "jpg_0": [a, a], "jpg_1": [b, b], "label_0": [0.0, 0.5], "label_1": [1.0, 0.5]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "set")
    (prompt,) = load(str(folder / "set"))
    files, scores = samples_of(prompt)
    assert scores == [-1, 1] and [f.read_bytes() for f in files] == [a, b]


def test_pictures_of_one_line_each_become_pairs(folder: Path) -> None:
    """ImageRewardDB: sets of unequal sizes, the third one of one picture, and a tie in the middle of the first."""
    ranks = {"one": {"a": 4, "b": 1, "c": 2, "d": 2}, "two": {"d": 3, "b": 1, "c": 2}, "three": {"a": 1}}
    lines = [
        {"prompt": f"text {of}", "prompt_id": of, "image_path": f"{name}.png", "rank": rank, "classification": "x"}
        for name in "abcd"
        for of, given in ranks.items()
        if (rank := given.get(name)) is not None
    ]
    got = [(p.text, [f.stem for f in samples_of(p)[0]], samples_of(p)[1]) for p in load(written(folder, *lines))]
    assert got == [("text one", ["b", "a"], [1, -1]), ("text two", ["b", "d"], [1, -1])]


def test_two_prompts_of_a_record_stay_beside_each_other(folder: Path) -> None:
    record = {"prompt1": "x", "prompt2": "y", "image1": "a.png", "image2": "b.png"}
    prompts = load(written(folder, record, {"prompt": "z", "better": "c.png", "worse": "d.png", "kind": "k"}))
    assert [(p.text, [f.stem for f in samples_of(p)[0]]) for p in prompts] == [
        ("x", ["a", "b"]),
        ("y", ["b", "a"]),
        ("z", ["c", "d"]),
    ]
    assert prompts[2].meta["kind"] == "k" and "better" not in prompts[2].meta


PAIR = {"prompt": "x", "better": "a.png", "worse": "b.png"}
REFUSED = [
    (PAIR | {"worse": "gone.png"}, r"pairs\.jsonl:2: .*gone\.png does not exist"),
    (PAIR | {"worse": "a.png"}, r"pairs\.jsonl:2: a\.png and a\.png are the same picture"),
    (PAIR | {"worse": "twin.png"}, r"pairs\.jsonl:2: a\.png and twin\.png are the same picture"),
    (PAIR | {"prompt": " "}, "prompt is ' '; accepted: a text that is not empty"),
    (PAIR | {"better": 3}, "a sample is 3; accepted: the path of its file"),
    ({"prompt": "x", "best": "a.png"}, "has prompt, best; accepted: prompt, better, worse"),
    ({"prompt": "x", "files": ["a.png", "b.png"], "scores": [1, 1]}, "all scores are 1, so that none is better"),
    ({"prompt": "x", "files": ["a.png", "b.png"]}, "scores is None; accepted: 2 numbers"),
    ({"prompt": "x", "files": ["a.png"], "scores": ["1"]}, "scores is '1'; accepted: a number"),
    ({"prompt": "x", "path_A": "a.png", "path_B": "b.png", "Overall": "C"}, "Overall is 'C'; accepted: A, B, same"),
    ({"prompt": "x", "path_A": "a.png", "path_B": "b.png", "VQ": "A", "MQ": 1, "TA": "A"}, "MQ is 1; accepted: A, B"),
    ({"prompt": "x", "files": ["a.png", "b.png", "c.png"], "scores": [1, 2, 3]}, "prompts with 2 and with 3 files"),
]


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_what_is_no_pair_is_one_line(folder: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        load(written(folder, PAIR, record))
    assert "\n" not in str(error.value)


def test_ties_alone_are_no_pairs(folder: Path) -> None:
    (folder / "v.csv").write_text("prompt,path_A,path_B,Overall\nz,c.png,d.png,same\n")
    with pytest.raises(PromptError, match="holds no samples of which one is better"):
        load(str(folder / "v.csv"))
