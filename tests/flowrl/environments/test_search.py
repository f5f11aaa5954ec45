"""The tool search: what it reads, what it finds, and what it says where it cannot."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowrl.contracts import Context, ModelsFault, Prompt, Unavailable
from flowrl.environments.tools.parts.documents import Document, ndcg, passages, read_documents

pytest.importorskip("bm25s")
from flowrl.environments.tools.search import search

ROWS = [
    {"title": "Otters", "text": "The otter is a mammal of rivers. It eats fish and builds no dams."},
    {"title": "Beavers", "text": "The beaver builds dams of wood across rivers. It eats bark."},
    {"title": "Herons", "text": "The heron is a bird that stands in shallow water, and eats fish."},
]


def _context(**meta: Any) -> Context:
    return Context(Prompt("a", "Who?", meta=meta), 0)


def _jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return str(path)


def test_passages_come_best_first(tmp_path: Path):
    tool = search(documents=_jsonl(tmp_path / "a.jsonl", ROWS), top=2)
    shown = tool("who builds dams of wood", _context())
    assert shown.text.startswith("(1) Beavers\nThe beaver builds dams") and "(2) Otters" in shown.text
    assert not shown.pictures and "Herons" not in shown.text
    assert tool("volcano", _context()).text == "Nothing was found."
    assert (
        search(documents=str(tmp_path / "a.jsonl"), characters=30)("beaver", _context()).text
        == "(1) Beavers\nThe beaver builds ..."
    )
    with pytest.raises(ModelsFault, match="no word"):
        tool(" ? ", _context())


def test_long_documents_are_cut_into_passages(tmp_path: Path):
    words = [f"word{i}" for i in range(250)]
    assert [len(p.text.split()) for p in passages([Document("a", " ".join(words))], 100)] == [100, 100, 50]
    tool = search(documents=_jsonl(tmp_path / "a.jsonl", [{"title": "Long", "text": " ".join(words)}, *ROWS]), top=1)
    assert tool("word230", _context()).text == "(1) Long\n" + " ".join(words[200:])


def test_the_files_of_a_folder_and_of_parquet_are_read(tmp_path: Path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.md").write_text("# Heading\nbody of b")
    (tmp_path / "a.txt").write_text("one line\nand another")
    (tmp_path / "c.txt").write_text("Title of c\n\nbody of c")
    (tmp_path / "d.pdf").write_bytes(b"%PDF")
    found = read_documents(str(tmp_path), {})
    assert found == [
        Document("a", "one line\nand another"),
        Document("Title of c", "body of c"),
        Document("Heading", "body of b"),
    ]
    import datasets

    datasets.Dataset.from_list([{"contents": '"Paris"\nThe capital of France.'}]).to_parquet(
        str(tmp_path / "w.parquet")
    )
    assert read_documents(str(tmp_path / "w.parquet"), {}) == [Document("Paris", "The capital of France.")]


def test_pages_are_found_by_their_text_and_shown_as_pictures(tmp_path: Path):
    for number, colour in enumerate(["red", "blue"]):
        Image.new("RGB", (40, 80), colour).save(tmp_path / f"{number}.png")
    rows = [
        {"name": f"page {i}", "text": t, "image": f"{i}.png"} for i, t in enumerate(["sales of 2020", "costs of 2021"])
    ]
    tool = search(documents=_jsonl(tmp_path / "p.jsonl", rows), pictures=True, top=1, pixels=800, words=2)
    shown = tool("costs", _context())
    assert shown.text == "(1) page 1" and [p.size for p in shown.pictures] == [(20, 40)]
    assert shown.pictures[0].getpixel((3, 3)) == (0, 0, 255)
    assert len(search(documents=str(tmp_path / "p.jsonl"), pictures=True)("sales costs of", _context()).pictures) == 2


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"title": "a"}], {}, r"a\.jsonl:1: columns title; accepted: one of text"),
        ([{"body": "b"}], {"text": "words"}, "accepted: one of words"),
        ([], {}, "has no documents"),
        ([{"text": "b", "image": "gone.png"}], {}, "there is no picture"),
        (ROWS, {"pictures": True}, "'Otters' of .* has no picture; set pictures=false"),
        (ROWS, {"top": 0}, "top=0; accepted"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, rows: list, keys: dict, said: str):
    with pytest.raises(ValueError, match=said):
        search(documents=_jsonl(tmp_path / "a.jsonl", rows), **keys)
    (tmp_path / "a.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(ValueError, match=r"columns ;|a\.jsonl:1"):
        search(documents=str(tmp_path / "a.jsonl"))
    with pytest.raises(Unavailable, match="there are no documents at"):
        search(documents=str(tmp_path / "gone"))
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match="no .jsonl or .parquet file and no folder"):
        search(documents=str(tmp_path / "a.csv"))


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(Unavailable, match=r'pip install "flowrl-toolkit\[search\]"'):
        search(documents=str(tmp_path))


def test_what_was_to_be_found_counts_by_its_place(tmp_path: Path):
    tool = search(documents=_jsonl(tmp_path / "a.jsonl", ROWS), top=1, wanted="pages")
    context = _context(pages=["Herons", "Otters"])
    tool("beaver", context)
    assert context.outcome == {"ndcg": 0}
    tool("heron", context)
    tool("heron", context)  # found again, it counts once
    ideal = 1 + 1 / math.log2(3)
    assert context.outcome["ndcg"] == pytest.approx((1 / math.log2(3)) / ideal)
    tool("otter", context)
    assert context.outcome["ndcg"] == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
    fresh, again = search(documents=str(tmp_path / "a.jsonl"), top=1, unseen=True), _context()
    told = [fresh("the otter eats fish", again).text.split("\n")[0] for _ in range(4)]
    assert told == ["(1) Otters", "(1) Herons", "(1) Beavers", "Nothing was found."]
    plain = _context()
    tool("otter", plain)
    assert plain.outcome == {} and math.isnan(ndcg(["a"], [])) and ndcg(["a", "b"], ["b", "a"]) == 1
