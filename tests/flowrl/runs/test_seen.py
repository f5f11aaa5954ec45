"""What stood before held-out samples, on the page of a run: pictures of their prompts, and those that tools showed."""

import base64
import io
import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_support import quiet
from flowrl.contracts import Call, Conversation, Prompt, Rollout, Said, Samples, Shown
from flowrl.core.evaluation import Evaluation, evaluate
from flowrl.recipe.load import load
from flowrl.report.page import write
from flowrl.runs import seen
from flowrl.runs.folder import RunFolder
from flowrl.runs.start import run

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def colours(page: str) -> list[tuple[int, int, int]]:
    """Of each picture on a page, in order, its mean colour in steps of 100."""
    data = [base64.b64decode(found) for found in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)]
    means = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).mean((0, 1)) for one in data]
    return [tuple(int(c) for c in (mean / 100).round() * 100) for mean in means]


@pytest.fixture
def kept(tmp_path):
    """A folder with one evaluation of three prompts, each with other pictures before it."""
    plain(RED, (900, 600)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    media = ((), (str(tmp_path / "clip.mp4"), str(tmp_path / "broken.png")), (str(tmp_path / "red.png"),) * 2)
    prompts = [Prompt(f"p{i}", f"question {i}", media=files) for i, files in enumerate(media)]
    zoom = (Said("<call>", (Call("zoom"),)), Said("<b>done</b>"))
    tensor = torch.zeros(3, 8, 8)
    tensor[2] = 200 / 255
    shown = (
        Shown("closer", (plain(GREEN), str(tmp_path / "broken.png")), name="zoom"),
        Shown("", (tensor,), role="user"),
    )
    talks = [
        Conversation((Said("at once"),)),
        Conversation((Said("cut"),), end="length"),
        Conversation(zoom, (shown, ())),
    ]
    folder = RunFolder(tmp_path / "run")
    folder.rewind({}, 0, [])
    folder.write("recipe.yaml", "model: look-llava\nrewards: {right: {weight: 1.0}}\n")
    scores = {"right": torch.tensor([0.0, 0.5, 1.0])}
    result = Evaluation(prompts, scores, None, [talk.readable() for talk in talks], talks=talks)
    for iteration in (0, 3):
        folder.log(iteration, result.metrics(), kind="heldout")
        folder.evaluated(iteration, f"at {iteration}", result)
    folder.close()
    return tmp_path / "run"


def test_the_record_has_the_files_of_each_prompt_and_the_parts_of_each_conversation(kept):
    record = json.loads((kept / "heldout/00003.json").read_text())
    nothing, second, third = record["media"]
    assert nothing == [] and second == [
        {"kind": "video", "name": "clip.mp4"},
        {"kind": "image", "name": "broken.png"},
    ]
    assert [file["name"] for file in third] == ["red.png"] * 2 and third[0]["path"] == third[1]["path"]
    assert Image.open(kept / third[0]["path"]).size == (512, 341)
    assert len(list((kept / "heldout/media").iterdir())) == 1  # both evaluations share one copy
    assert record["talks"][1] == [{"text": "cut"}, {"text": "(ended by its limit of length)"}]
    said, closer, blue, done = record["talks"][2]
    assert said == {"text": "<call>"} and done == {"text": "<b>done</b>"}
    assert closer == {"text": "[zoom] closer", "pictures": ["heldout/00003/002-0.png", None]}
    assert blue["pictures"] == ["heldout/00003/002-2.png"]
    assert Image.open(kept / blue["pictures"][0]).getpixel((3, 3)) == BLUE
    assert record["texts"][2] == "<call>\n[zoom] closer (a picture) (a picture)\n[user] (a picture)\n<b>done</b>"


def test_the_page_shows_them_in_place(kept):
    page = write(kept).read_text(encoding="utf-8")
    assert colours(page) == [RED, RED, *[GREEN, BLUE] * 2]  # the prompt's, then before and after
    assert page.count("no picture") == 3 and "video: clip.mp4" in page
    assert "&lt;b&gt;done&lt;/b&gt;" in page and "(a picture)" not in page
    order = [page.index(text) for text in ("question 2", "&lt;call&gt;", "[zoom] closer", "[user]", "&lt;b&gt;done")]
    assert order == sorted(order)


def test_a_picture_outside_the_run_is_not_shown(kept):
    path = kept / "heldout/00003.json"
    record = json.loads(path.read_text())
    record["talks"][2][1]["pictures"] = ["../red.png"]
    record["media"][2] = [{"kind": "image", "name": "x", "path": "../red.png"}] * 2
    path.write_text(json.dumps(record))
    assert RED not in colours(write(kept).read_text(encoding="utf-8"))


@pytest.mark.parametrize("damage", [{"talks": [7, None, [3]]}, {"media": {"a": 1}}, {"media": [[None], 5]}])
def test_damaged_records_leave_a_page(damage, kept):
    path = kept / "heldout/00003.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert "question 2" in write(kept).read_text(encoding="utf-8")


class Pickled:
    """Ranks that take turns in one process, and give each other what they hold as ranks do: as bytes."""

    size, rank = 2, 0

    def __init__(self, others: list[Any]):
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        """Its own, and what the other rank has left."""
        return [pickle.loads(data) for data in [pickle.dumps(value), *map(pickle.dumps, self.others)]]


def test_what_conversations_were_shown_comes_from_other_ranks_too(tmp_path):
    plain(GREEN).save(tmp_path / "green.png")

    class Shows:
        def rollout(self, prompts: list[Prompt], **_: Any) -> Any:
            shown = [
                Shown("", ((Image.open(tmp_path / "green.png") if p.id == "p2" else plain(BLUE)),)) for p in prompts
            ]
            talks = [
                Conversation((Said("look"), Said(p.id)), ((one,), ())) for p, one in zip(prompts, shown, strict=True)
            ]
            samples = Samples(prompts, torch.arange(len(prompts)), texts=[p.id for p in prompts], talks=talks)
            return Rollout(samples, torch.zeros(len(prompts), 1), torch.ones(len(prompts), 1).bool(), None)

    prompts = [Prompt(f"p{i}", f"question {i}") for i in range(4)]
    given: Any = (Shows(), prompts, lambda samples: {"right": torch.ones(len(samples))})
    left: list[Any] = []
    second = Pickled([])
    second.rank, second.gather = 1, lambda value: left.append(value) or [{0: value[2], **value}]
    evaluate(*given, plan=None, seed=0, batch=2, keep=3, ranks=second)
    result = evaluate(*given, plan=None, seed=0, batch=2, keep=3, ranks=Pickled(left))
    whole = evaluate(*given, plan=None, seed=0, batch=2, keep=3)
    assert [talk.text for talk in result.talks] == [talk.text for talk in whole.talks] == ["lookp0", "lookp1", "lookp2"]
    record = seen.record(tmp_path / "run", "00001", result)
    paths = [part["pictures"][0] for talk in record["talks"] for part in talk if "pictures" in part]
    assert [Image.open(tmp_path / "run" / path).getpixel((5, 5)) for path in paths] == [BLUE, BLUE, GREEN]


@pytest.mark.slow  # the record of `kept` shows the same of samples that are made
@pytest.mark.parametrize("name", ["tiny_tools", "tiny_vlm_grpo"])
def test_runs_keep_them(name, tmp_path):
    small = ["train.prompts=2", "train.group=4", "train.updates=1", "train.iterations=1", "threads=1"]
    at = "eval={every: null, at_start: false, at_end: true, temperature: 1.0, grid: 5, batch: 3, prompts: 6}"
    run(load(name, [*small, at, "checkpoint.every=null", f"output={tmp_path / 'run'}"]), quiet())
    (file,) = (tmp_path / "run/heldout").glob("*.json")
    record = json.loads(file.read_text())
    assert len(record["media"]) == len(record["texts"]) == 5
    paths = [file["path"] for files in record["media"] for file in files]
    assert len(set(paths)) == 5 and all(Image.open(tmp_path / "run" / path).size == (128, 128) for path in paths)
    shown = [path for talk in record.get("talks", ()) for part in talk for path in part.get("pictures", ())]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert len(colours(page)) == 5 + len(shown) and bool(shown) == (name == "tiny_tools")
