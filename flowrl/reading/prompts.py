"""Prompts from files, folders, data sets and embedded worlds.

Every prompt has an id that is unique in its source and independent of its place there: the noise of its samples
derives from the id, so that adding a line to a file changes nothing for the other prompts.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowrl.contracts import Prompt
from flowrl.names import WORLD_PROMPTS, cache_folder, hint, to_be_fetched
from flowrl.reading import prompt_lines
from flowrl.reading.columns import PICTURES, Meta, arguments_of, check_columns, locate_file
from flowrl.reading.prompt_lines import PromptError, shorten, text_hash
from flowrl.untyped import JSON
from flowrl.worlds.ask import records

SPLITS = ("train", "heldout")

# Files that a folder may hold, best first. Flow-GRPO publishes {train,test}_metadata.jsonl and {train,test}.txt,
# GenEval evaluation_metadata.jsonl, alone or in a folder `prompts`.
LAYOUTS = {
    "train": ("train_metadata.jsonl", "train.jsonl", "train.txt"),
    "heldout": (
        "test_metadata.jsonl",
        "heldout.jsonl",
        "test.jsonl",
        "evaluation_metadata.jsonl",
        "prompts/evaluation_metadata.jsonl",
        "heldout.txt",
        "test.txt",
    ),
}
DATASET_SPLITS = {"train": ("train",), "heldout": ("heldout", "test", "validation")}
TEXT_COLUMNS = ("prompt", "caption", "text", "question")
LINE_KEYS = ("prompt", "question")  # of a .jsonl file; the second is GSM8K's
MEDIA_KEYS = ("media", "image")


def missing_sources(sources: Sequence[str | None], origin: str | None) -> str | None:
    """What to do about published prompts among the sources that are missing, by `origin`; None if none is."""
    absent = list(dict.fromkeys(str(source) for source in sources if to_be_fetched(source, origin)))
    if not absent:
        return None
    return f"{', '.join(absent)}: not here, and not shipped; get it by `{origin}`, or name other prompts"


def load(
    source: str, *, split: str = "train", limit: int | None = None, arguments: Collection[str] = ()
) -> list[Prompt]:
    """The prompts of a source, in its order, the first `limit` of them.

    source: a .txt file (one a line), a .jsonl file (`prompt` or `question`, optional `id` and `media` or `image`, the
    rest is meta), a folder (see LAYOUTS, or one that `datasets` reads), a name on the hub as NAME or NAME:SPLIT, or
    WORLD/SPLIT of an embedded world. split says which half a folder or data set is asked for. Columns that are named in
    arguments, those of the pipeline's call, go to that call too: see columns.py. Raises PromptError.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    prompts = _with_distinct_ids(_read(source, split, arguments))[:limit]
    if not prompts:
        raise PromptError(f"{source}: holds no prompt; accepted: at least one")
    if source in WORLD_PROMPTS:
        return prompts
    prompts = _with_call_arguments(prompts, arguments, source, _folder_of(source, split))
    check_columns(prompts, source)
    return prompts


def _with_call_arguments(
    prompts: Sequence[Prompt], arguments: Collection[str], source: str, folder: Path | None
) -> list[Prompt]:
    """The prompts with their arguments of the pipeline's call, and with a meta that records what is read of it."""
    read: set[str] = set()
    return [
        replace(
            p, meta=Meta(p.meta, read), call=arguments_of(p.meta, arguments, f"{source}: prompt {p.text!r}", folder)
        )
        for p in prompts
    ]


def _folder_of(source: str, split: str) -> Path | None:
    """The folder that paths in a source are relative to; None for the name of a data set."""
    path = Path(source).expanduser()
    if path.is_dir():
        return next(((path / name).parent for name in LAYOUTS[split] if (path / name).is_file()), path)
    return path.parent if path.exists() else None


def _read(source: str, split: str, arguments: Collection[str]) -> Iterable[Prompt]:
    path = Path(source).expanduser()
    if source in WORLD_PROMPTS:
        return _from_world(*source.split("/"))
    if path.is_dir():
        return _from_folder(path, split, arguments)
    if path.suffix == ".txt":
        return _from_text(path)
    if path.suffix == ".jsonl":
        return _from_jsonl(path)
    if path.exists():
        raise PromptError(f"{source}: ends in {path.suffix!r}; accepted: .txt, .jsonl, a folder or a data set's name")
    return _from_dataset(source, split, arguments)


def _with_distinct_ids(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts, with the second and later ones of an id renamed to id-2, id-3 ..."""
    seen: dict[str, int] = defaultdict(int)
    out = []
    for prompt in prompts:
        seen[prompt.id] += 1
        again = seen[prompt.id]
        out.append(prompt if again == 1 else replace(prompt, id=f"{prompt.id}-{again}"))
    if len({p.id for p in out}) < len(out):
        raise PromptError("two prompts share an id after repeats were numbered; give each its own `id`")
    return out


def _from_text(path: Path) -> Iterator[Prompt]:
    for _, line in prompt_lines.read_lines(path):
        yield Prompt(id=text_hash(line), text=line)


def _from_jsonl(path: Path) -> Iterator[Prompt]:
    given: dict[str, int] = {}
    for number, line in prompt_lines.read_lines(path):
        where = f"{path}:{number}"
        record = prompt_lines.parse_record(line, where)
        prompt = _from_record(record, LINE_KEYS, where, path.parent)
        if "id" in record:
            if prompt.id in given:
                raise PromptError(f"{where}: id {prompt.id!r} is already that of line {given[prompt.id]}; give another")
            given[prompt.id] = number
        yield prompt


def _from_record(record: dict[str, JSON], columns: Sequence[str], where: str, folder: Path | None) -> Prompt:
    """The prompt of one record; what is not its text, id or media becomes its meta."""
    column = next((c for c in columns if c in record), None)
    if column is None:
        raise PromptError(
            f"{where}: has no {' or '.join(columns)}, only {', '.join(record)[:200] or 'nothing'}; add it"
        )
    text = record[column]
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{where}: {column} is {shorten(text)}; accepted: a text that is not empty")
    if "id" in record and not (type(record["id"]) in (str, int) and str(record["id"])):
        raise PromptError(f"{where}: id is {shorten(record['id'])}; accepted: a text or a whole number")
    media = tuple(m for key in MEDIA_KEYS for m in _media(record.get(key), f"{where}: {key}", folder))
    meta = {k: v for k, v in record.items() if k not in (column, "id", *MEDIA_KEYS)}
    return Prompt(id=str(record["id"]) if "id" in record else text_hash(text), text=text, media=media, meta=meta)


def _media(value: JSON, where: str, folder: Path | None) -> list[str]:
    """Absolute paths of input files; relative ones start from the folder of the prompt file or its images/."""
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise PromptError(f"{where} is {shorten(value)}; accepted: a path or a list of paths")
    return [str(locate_file(path, where, folder)) for path in paths]


def _from_world(world: str, split: str) -> Iterator[Prompt]:
    return (Prompt(id=text, text=text, meta=meta) for text, meta in records(world, split))


def _from_folder(path: Path, split: str, arguments: Collection[str]) -> Iterable[Prompt]:
    for name in LAYOUTS[split]:
        if (path / name).is_file():
            return _read(str(path / name), split, arguments)
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return _from_dataset(str(path), split, arguments, saved=True)
    if any(path.rglob("*.parquet")) or any(path.rglob("*.csv")):
        return _from_dataset(str(path), split, arguments)
    raise PromptError(f"{path}: no {split} prompts; accepted: {', '.join(LAYOUTS[split])}, or a `datasets` folder")


def _from_dataset(name: str, split: str, arguments: Collection[str], *, saved: bool = False) -> Iterator[Prompt]:
    """Rows of a data set of the `datasets` library.

    Pictures of columns that the pipeline takes are written to the user's cache under a hash of their content and become
    its input, like files of a prompt file. Other values that JSON cannot hold are left out: the pictures of a data set
    of captions are no input of a text-to-image pipeline.
    """
    import datasets

    data = open_dataset(name, split, saved=saved)
    columns = [c for c in TEXT_COLUMNS if c in data.column_names]
    if not columns:
        raise PromptError(f"{name}: columns {', '.join(data.column_names)}; accepted: one of {', '.join(TEXT_COLUMNS)}")
    plain = [c for c, feature in data.features.items() if _is_plain(feature) and c not in MEDIA_KEYS]
    pictures = [c for c, f in data.features.items() if isinstance(f, datasets.Image) and c in arguments]
    for column in pictures:
        data = data.cast_column(column, datasets.Image(decode=False))
    for number, row in enumerate(data.select_columns(plain + pictures)):
        files = {column: store_picture(row[column]) for column in pictures if row[column] is not None}
        record = {c: value for c, value in row.items() if c not in pictures} | files
        yield _from_record(record, columns, f"{name}: row {number}", None)


def open_dataset(name: str, split: str, *, saved: bool = False) -> Any:
    """The rows of a split of a data set; saved: of a folder that `datasets` wrote. Raises PromptError."""
    import datasets

    base, colon, chosen = name.partition(":")
    try:
        data: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(base if colon else name)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise PromptError(f"{name}: no file, folder or data set of that name ({reason}); correct it") from error
    if isinstance(data, datasets.DatasetDict):
        wanted = (chosen,) if chosen else DATASET_SPLITS[split]
        key = next((s for s in wanted if s in data), None)
        if key is None:
            there = [str(s) for s in data]
            listed = f"{', '.join(there)}{hint(chosen, there)}"
            raise PromptError(f"{name}: no split {' or '.join(wanted)}; accepted: {listed}")
        data = data[key]
    return data


def store_picture(value: dict[str, JSON]) -> str:
    """The absolute path of a data set's picture: its own file, or one in the cache named by a hash of its content."""
    if value.get("bytes") is None:
        return str(Path(value["path"]).resolve())
    cache = cache_folder() / "pictures"
    suffix = Path(value.get("path") or "").suffix.lower()
    name = hashlib.sha256(value["bytes"]).hexdigest()[:32] + (suffix if suffix in PICTURES else ".png")
    if not (cache / name).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        beside = cache / f"{os.getpid()}-{name}"
        beside.write_bytes(value["bytes"])
        beside.replace(cache / name)
    return str(cache / name)


def _is_plain(feature: Any) -> bool:
    """Whether a column's values are texts, numbers, or lists and mappings of these."""
    if isinstance(feature, dict):
        return all(_is_plain(f) for f in feature.values())
    if hasattr(feature, "feature"):
        return _is_plain(feature.feature)
    return type(feature).__name__ in ("Value", "ClassLabel")
