"""Pictures, videos and sounds of prompt files and data sets, in the layouts that data sets for RL have."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from flowrl.kinds import kind_of
from flowrl.media.files import MEDIA_KEYS, media_kind
from flowrl.reading.inputs import load_prompts
from flowrl.reading.prompt_lines import PromptError
from flowrl.reading.prompts import load
from flowrl.recipe.load import load as load_recipe

COLOURS = ("red", "blue")


def picture(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def colours(paths: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [Image.open(path).getpixel((0, 0)) for path in paths]


def records(path: Path, *rows: dict[str, Any]) -> str:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), COLOURS["ab".index(name[0])]).save(path / name)
    (path / "s.wav").write_bytes(b"RIFF")
    (path / "frames").mkdir(exist_ok=True)
    (path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path / "p.jsonl")


def test_columns_of_media_in_their_order(tmp_path: Path):
    (prompt,) = load(
        records(tmp_path, {"prompt": "which?", "images": ["b.png", "a.png"], "videos": "frames", "audios": ["s.wav"]})
    )
    assert [Path(path).name for path in prompt.media] == ["b.png", "a.png", "frames", "s.wav"]
    assert [media_kind(path) for path in prompt.media] == ["image", "image", "video", "audio"]
    assert not prompt.meta
    with pytest.raises(PromptError, match="gone.png does not exist"):
        load(records(tmp_path, {"prompt": "which?", "images": ["gone.png"]}))


def test_parts_of_a_message_become_marks_where_they_stand(tmp_path: Path):
    parts = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " red?"}]
    named = [{"type": "image", "path": "b.png"}, {"type": "text", "text": "What colour?", "image": None}]
    path = records(
        tmp_path,
        {"prompt": [{"role": "user", "content": parts}], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": named}, {"role": "assistant", "content": "blue"}]},
    )
    first, second = load(path)
    assert first.text == "Is <image> red?" and colours(first.media) == [(255, 0, 0)]
    assert second.text == "<image>What colour?" and colours(second.media) == [(0, 0, 255)]
    assert second.meta["completion"] == "blue"
    wrong = [{"type": "image", "path": "b.png"}, {"type": "image"}]
    with pytest.raises(PromptError, match="names files for some of its parts"):
        load(records(tmp_path, {"prompt": [{"role": "user", "content": wrong}], "images": ["a.png"]}))
    with pytest.raises(PromptError, match="has the part .*smell.*; accepted: "):
        load(records(tmp_path, {"prompt": [{"role": "user", "content": [{"type": "smell"}]}]}))


@pytest.mark.parametrize("decoded", [True, False])
def test_parquet_of_verl_and_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: bool):
    """Messages with marks, lists of pictures, reward_model; as a typed column, and as bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = {
        "data_source": ["geo", "geo"],
        "prompt": [[{"role": "user", "content": text}] for text in ("<image>How long?", "<image><image>Which?")],
        "images": [[picture("red")], [picture("blue"), picture("red")]],
        "reward_model": [{"style": "rule", "ground_truth": "3"}, {"style": "rule", "ground_truth": "A"}],
    }
    data = datasets.Dataset.from_dict(rows)
    if decoded:
        data = data.cast_column("images", datasets.List(datasets.Image()))
    data.to_parquet(str(tmp_path / "p.parquet"))
    first, second = load(str(tmp_path / "p.parquet"), arguments=MEDIA_KEYS)
    assert (first.text, first.meta["answer"]) == ("<image>How long?", "3")
    assert colours(first.media) == [(255, 0, 0)] and colours(second.media) == [(0, 0, 255), (255, 0, 0)]
    assert load(str(tmp_path / "p.parquet"))[1].media == ()  # of a model that takes none


def test_a_column_under_another_name_and_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sound = {"bytes": b"RIFFdata", "path": "x/one.wav"}
    rows = {"question": ["what is heard?"], "audio": [sound], "answer": ["a dog"]}
    data = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    data.save_to_disk(str(tmp_path / "set"))
    (prompt,) = load(str(tmp_path / "set"), arguments=MEDIA_KEYS, columns={"audios": "audio"})
    assert media_kind(prompt.media[0]) == "audio" and Path(prompt.media[0]).read_bytes() == b"RIFFdata"
    assert prompt.meta == {"answer": "a dog"}


def test_marks_that_do_not_fit_are_refused_before_a_model_is_loaded(tmp_path: Path):
    path = records(tmp_path, {"prompt": "<image> or <image>?", "images": ["a.png"]})
    recipe = load_recipe("tiny_lm_grpo", [f"prompts.train={path}", "model=someone/sees"])
    with pytest.raises(PromptError, match="has the mark <image> 2 times for 1 files"):
        load_prompts(recipe, path, "train", None)
    assert kind_of(recipe).prompt_arguments("someone/sees", online=False) == list(MEDIA_KEYS)
    assert kind_of(recipe).prompt_arguments("arithmetic-qwen2", online=False) == []
