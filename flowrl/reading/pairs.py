"""Samples from files, with what is known of their worth: pairs of which one is better, ranked groups, single ones.

Each prompt has its files and a score of each in its meta. The layouts of published preference sets are a closed list,
told apart by their columns. Of two equal samples nothing is learnt: published ties are left out, as Diffusion-DPO does,
and one in a file of one's own is an error.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from flowrl.contracts import Prompt
from flowrl.media.files import MEDIA_KEYS
from flowrl.reading import prompt_lines
from flowrl.reading.columns import locate_file
from flowrl.reading.data_sets import open_dataset, store_picture
from flowrl.reading.prompt_lines import PromptError, shorten
from flowrl.reading.records import prompt_media
from flowrl.untyped import JSON

OWN = ("pair", "scored")  # layouts whose other columns are for the rewards
TAKEN = ("better", "worse", "rewards", "noise", *MEDIA_KEYS)
BETTER, WORSE = 1.0, -1.0  # scores of a pair
VOTES = {"A": BETTER, "B": WORSE, "same": 0.0}
ASPECTS = ("VQ", "MQ", "TA")  # visual quality, motion quality, text alignment
Scored = list[tuple[JSON, float]]  # a picture as it is named, and its score


@dataclass(frozen=True)
class Layout:
    """A published or own layout, known by its columns. prompt: the column of the text."""

    name: str
    columns: tuple[str, ...]
    prompt: str = "prompt"
    ties: bool = False  # whether it marks ties, which are then left out
    texts: bool = False  # whether its samples are texts, and no files


LAYOUTS = (
    Layout("pair", ("better", "worse")),
    Layout("scored", ("files",)),
    Layout("Pick-a-Pic", ("jpg_0", "jpg_1", "label_0"), "caption", ties=True),
    Layout("HPD v2, train.json", ("file_path", "human_preference"), ties=True),
    Layout("ImageRewardDB", ("prompt_id", "image_path", "rank"), ties=True),
    Layout("HPD v2, test.json", ("image_path", "rank"), ties=True),
    Layout("HPD v3", ("path1", "path2")),
    Layout("VideoGen-RewardBench", ("path_A", "path_B", "Overall"), ties=True),
    Layout("VideoAlign", ("path_A", "path_B", *ASPECTS), ties=True),
    Layout("corrected answer", ("answer", "own", "revised"), texts=True),
    Layout("preference of texts", ("chosen", "rejected"), texts=True),
    Layout("text", ("completion",), texts=True),
)
FOCUSDIFF = ("prompt1", "prompt2", "image1", "image2")
ACCEPTED = "; ".join(f"{layout.prompt}, {', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS)
ACCEPTED += f"; {', '.join(FOCUSDIFF)} (FocusDiff)"


def load(source: str, *, split: str = "train", limit: int | None = None) -> list[Prompt]:
    """The prompts of a source of samples, the first `limit` of them, each with its samples (see `samples_of`).

    source: a .jsonl, .json or .csv file, or a data set of the `datasets` library, in one of LAYOUTS. Paths are relative
    to the file. Raises PromptError, with file and line, for what is missing, named twice or equally good.
    """
    seen: dict[str, int] = {}
    prompts: list[Prompt] = []
    for prompt in islice(_read(source, split), limit):
        seen[prompt.id] = again = seen.get(prompt.id, 0) + 1
        prompts.append(prompt if again == 1 else replace(prompt, id=f"{prompt.id}-{again}"))
    if not prompts:
        raise PromptError(f"{source}: holds no samples of which one is better; accepted: at least one pair")
    sizes = {len(prompt.meta["files"]) for prompt in prompts}
    if len(sizes) > 1:
        problem = f"has prompts with {min(sizes)} and with {max(sizes)} files"
        raise PromptError(f"{source}: {problem}; accepted: as many for each prompt")
    return prompts


def samples_of(prompt: Prompt) -> tuple[list[Any], list[float]]:
    """The files of a prompt's samples as Paths, or their texts, and their scores."""
    return prompt.meta["files"], prompt.meta["scores"]


def rewards_of(prompt: Prompt) -> list[float] | None:
    """The rewards of a prompt's samples where its line has them: of a pair those of its column `rewards`, else the
    scores; None where it says no more than which of the two is better."""
    return prompt.meta.get("rewards")


def noise_of(prompt: Prompt) -> list[Path] | None:
    """The files of the noise that a prompt's samples came from; None where its line names none."""
    return prompt.meta.get("noise")


def _read(source: str, split: str) -> Iterator[Prompt]:
    path = Path(source).expanduser()
    for where, record in _as_pairs(_records(path, source, split)):
        layout = next((known for known in LAYOUTS if {*known.columns, known.prompt} <= record.keys()), None)
        if layout is None:
            raise PromptError(f"{where}: has {', '.join(record)[:200] or 'nothing'}; accepted: {ACCEPTED}")
        text = record[layout.prompt]
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"{where}: {layout.prompt} is {shorten(text)}; accepted: a text that is not empty")
        scored = _scored(layout, record, where)
        scores = [score for _, score in scored]
        if len(scores) > 1 and len(set(scores)) == 1:
            if layout.ties:
                continue
            raise PromptError(f"{where}: all scores are {scores[0]:g}, so that none is better; leave the line out")
        if layout.texts:
            files: list[Any] = [_text(value, where) for value, _ in scored]
            names = json.dumps([text, *files])
        else:
            files = [_file(value, where, path.parent if path.exists() else None) for value, _ in scored]
            _refuse_twins(files, where)
            names = "/".join([text, *(file.name for file in files)])
        identity = hashlib.sha256(names.encode()).hexdigest()[:16]
        own = layout.name in OWN
        seen = own or layout.texts
        media = prompt_media(record, where, path.parent if path.exists() else None) if seen else ()
        meta = {name: value for name, value in record.items() if own and name not in (layout.prompt, *TAKEN)}
        more = _own_numbers(layout, record, scores, where, path.parent if path.exists() else None) if own else {}
        yield Prompt(identity, text, media=media, meta=meta | {"files": files, "scores": scores} | more)


def _records(path: Path, source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a source, and where each stands."""
    if path.suffix == ".jsonl":
        for number, line in prompt_lines.read_lines(path):
            yield f"{path}:{number}", prompt_lines.parse_record(line, f"{path}:{number}")
    elif path.suffix in (".json", ".csv"):
        for number, record in enumerate(_table(path), 1):
            yield f"{path}: record {number}", record
    elif path.is_file():
        raise PromptError(f"{source}: ends in {path.suffix!r}; accepted: .jsonl, .json, .csv or a data set's name")
    else:
        saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
        for number, row in enumerate(_undecoded(open_dataset(source, split, saved=saved))):
            yield f"{source}: row {number}", row


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise PromptError(f"{path}: cannot be read ({type(error).__name__}); give another file") from None
    if not isinstance(table, list) or not all(isinstance(record, dict) for record in table):
        raise PromptError(f"{path}: is no list of records; accepted: [{{...}}, ...]")
    return table


def _undecoded(data: Any) -> Any:
    """Rows of a data set whose pictures stay the bytes that they are."""
    import datasets

    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def _scored(layout: Layout, record: dict[str, Any], where: str) -> Scored:
    """The samples of a record as they are named, better ones with higher scores."""
    at = [record[column] for column in layout.columns]
    if layout.name == "text":
        return [(at[0], 1.0)]
    if layout.name == "corrected answer":  # the first and the last once more, to be looked at beside another picture
        return list(zip([*at, at[0], at[2]], [1.0, WORSE, 1.0, 0.0, 0.0], strict=True))
    if layout.name in ("pair", "HPD v3", "preference of texts"):
        return [(at[0], BETTER), (at[1], WORSE)]
    if layout.name in ("VideoGen-RewardBench", "VideoAlign"):
        votes = sum(_vote(value, f"{where}: {name}") for name, value in zip(layout.columns[2:], at[2:], strict=True))
        first = float(votes > 0) - float(votes < 0)
        return [(at[0], first), (at[1], -first)]
    if layout.name == "Pick-a-Pic":
        label = _number(at[2], f"{where}: label_0")
        return [(at[0], 2 * label - 1), (at[1], 1 - 2 * label)]
    files, values = at[0], at[1] if len(at) > 1 else record.get("scores")
    if not isinstance(files, list) or not files:
        raise PromptError(f"{where}: {layout.columns[0]} is {shorten(files)}; accepted: a list of files")
    name = layout.columns[1] if len(at) > 1 else "scores"
    if values is None:
        values = [1.0] if len(files) == 1 else None
    if not isinstance(values, list) or len(values) != len(files):
        raise PromptError(f"{where}: {name} is {shorten(values)}; accepted: {len(files)} numbers, one a file")
    sign = -1 if name == "rank" else 1
    numbers = [sign * _number(value, f"{where}: {name}") for value in values]
    if layout.name == "HPD v2, train.json" and len(numbers) == 2:
        numbers = [2 * number - 1 for number in numbers]
    return list(zip(files, numbers, strict=True))


def _own_numbers(
    layout: Layout, record: dict[str, Any], scores: list[float], where: str, folder: Path | None
) -> dict[str, Any]:
    """Of a layout of one's own: `rewards`, a number a sample, and `noise`, the file of that which each came from."""
    more: dict[str, Any] = {}
    for name in ("rewards", "noise"):
        value = record.get(name)
        if value is not None and (not isinstance(value, list) or len(value) != len(scores)):
            problem = f"{name} is {shorten(value)}; accepted: a list of {len(scores)}, one a sample"
            raise PromptError(f"{where}: {problem}")
        if value is not None and name == "noise":
            more[name] = [_file(file, where, folder) for file in value]
        elif value is not None:
            more[name] = [_number(number, f"{where}: rewards") for number in value]
    if layout.name == "scored":
        more["rewards"] = scores
    elif "rewards" in more and not more["rewards"][0] > more["rewards"][1]:
        better, worse = more["rewards"]
        raise PromptError(f"{where}: the better sample's reward is {better:g}, the worse one's {worse:g}; swap the two")
    return more


def _as_pairs(records: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records, with pairs in the place of those that have another number of pictures than two.

    Those of FocusDiff's data are two prompts, each with its own picture and the other's. ImageRewardDB has one a
    picture, which become pairs of each prompt at the end: of its pictures the best goes with the worst, the second best
    with the second worst, and so on, where their ranks differ, as the sets are of different sizes.
    """
    sets: dict[JSON, list[tuple[float, str, dict[str, Any]]]] = {}
    for where, record in records:
        if {"prompt_id", "rank"} <= record.keys() and isinstance(record.get("image_path"), str):
            ranked = sets.setdefault(record["prompt_id"], [])
            ranked.append((_number(record["rank"], f"{where}: rank"), where, record))
        elif {*FOCUSDIFF} <= record.keys():
            for own, other in (("1", "2"), ("2", "1")):
                pair = {"better": record[f"image{own}"], "worse": record[f"image{other}"]}
                yield where, pair | {"prompt": record[f"prompt{own}"]}
        else:
            yield where, record
    for ranked in sets.values():
        ranked.sort(key=lambda one: one[0])
        for (low, where, better), (high, _, worse) in list(zip(ranked, reversed(ranked), strict=True))[
            : len(ranked) // 2
        ]:
            if low < high:
                yield where, {**better, "better": better["image_path"], "worse": worse["image_path"]}


def _text(value: JSON, where: str) -> str:
    """A completion, or the last message of a conversation that ends with one."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{where}: a completion is {shorten(value)}; accepted: a text that is not empty")
    return value


def _vote(value: JSON, where: str) -> float:
    if not isinstance(value, str) or value not in VOTES:
        raise PromptError(f"{where} is {shorten(value)}; accepted: {', '.join(VOTES)}")
    return VOTES[value]


def _number(value: JSON, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise PromptError(f"{where} is {shorten(value)}; accepted: a number")
    return float(value)


def _file(value: JSON, where: str, folder: Path | None) -> Path:
    """The absolute path of a sample; pictures that a data set holds itself are written to the user's cache."""
    if isinstance(value, bytes):
        value = {"bytes": value}
    if isinstance(value, dict) and (value.get("bytes") or value.get("path")):
        return Path(store_picture(value))
    if not isinstance(value, str) or not value:
        raise PromptError(f"{where}: a sample is {shorten(value)}; accepted: the path of its file")
    return locate_file(value, where, folder)


def _refuse_twins(files: Sequence[Path], where: str) -> None:
    """Raises PromptError where a sample is there twice, by its path or by its content."""
    for i, file in enumerate(files):
        for other in files[:i]:
            alike = file == other or file.stat().st_size == other.stat().st_size
            if alike and (file == other or file.read_bytes() == other.read_bytes()):
                raise PromptError(f"{where}: {other.name} and {file.name} are the same picture; leave the line out")
