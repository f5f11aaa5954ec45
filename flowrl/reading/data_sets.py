"""Rows of data sets: of the `datasets` library, by name or folder, of parquet files and of tables (.csv, .tsv)."""

import csv
import os
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from flowrl.contracts import Prompt
from flowrl.media.files import MEDIA_KEYS, SOUNDS, VIDEOS
from flowrl.names import cache_folder, hint
from flowrl.reading.columns import PICTURES
from flowrl.reading.prompt_lines import PromptError
from flowrl.reading.records import CHAT_COLUMNS, TEXT_COLUMNS, prompt_of, renamed
from flowrl.untyped import JSON

DATASET_SPLITS = {"train": ("train",), "heldout": ("heldout", "test", "validation")}
TABLES = {".csv": ",", ".tsv": "\t"}


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, JSON]]]:
    """(place, record) of the rows of a .csv or .tsv file whose first line names its columns; every value is a text.

    Raises PromptError for anything but UTF-8, and for a row with more or fewer values than columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=TABLES[path.suffix], strict=True)
            columns = next(reader, [])
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if len(row) != len(columns):
                    raise PromptError(f"{where}: {len(row)} values for {len(columns)} columns; correct the line")
                yield where, dict(zip(columns, row, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptError(f"{path}: cannot be read as a table ({error}); give UTF-8 with one row a line") from None


def prompts_of(
    name: str, split: str, arguments: Collection[str], columns: Mapping[str, str], *, saved: bool = False
) -> Iterator[Prompt]:
    """The prompts of a data set of the `datasets` library, its columns renamed as `records.renamed` does.

    Pictures, videos and sounds of columns that the model takes are written to the user's cache under a hash of their
    content and become its input, like files of a prompt file: those of the library's own types and {bytes, path} of
    parquet files, one or a list. Other values that JSON cannot hold are left out: the pictures of a data set of
    captions are no input of a text-to-image pipeline.
    """
    data = open_dataset(name, split, saved=saved)
    return _prompts(data, name, arguments, columns)


def prompts_of_parquet(path: Path, arguments: Collection[str], columns: Mapping[str, str]) -> Iterator[Prompt]:
    """The prompts of one parquet file; see `prompts_of`. Raises PromptError for a file that is none."""
    import datasets

    try:
        data: Any = datasets.load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise PromptError(f"{path}: cannot be read as parquet ({reason}); give another file") from error
    return _prompts(data, str(path), arguments, columns)


def _prompts(data: Any, name: str, arguments: Collection[str], columns: Mapping[str, str]) -> Iterator[Prompt]:

    names = [c for c in data.column_names if c not in columns.values()] + list(columns)
    known = (*TEXT_COLUMNS, *CHAT_COLUMNS)
    texts = [c for c in known if c in names]
    if not texts:
        accepted = f"one of {', '.join(known)}, or prompts.columns"
        raise PromptError(f"{name}: columns {', '.join(data.column_names)}; accepted: {accepted}")
    new = {old: name for name, old in columns.items()}
    taken = [c for c in data.column_names if new.get(c, c) in arguments and (c in new or c not in columns)]
    files = [c for c in taken if new.get(c, c) in MEDIA_KEYS or _undecoded(data.features[c]) is not None]
    media = [columns.get(c, c) for c in MEDIA_KEYS]
    plain = [c for c, feature in data.features.items() if _is_plain(feature) and c not in (*media, *files)]
    for column in files:
        if (raw := _undecoded(data.features[column])) is not None:
            data = data.cast_column(column, raw)
    for number, row in enumerate(data.select_columns(plain + files)):
        found = {column: _stored(row[column]) for column in files if row[column] is not None}
        record = {c: value for c, value in row.items() if c not in files} | found
        where = f"{name}: row {number}"
        yield prompt_of(renamed(record, columns, where), where, None, [c for c in texts if c not in CHAT_COLUMNS])


def _undecoded(feature: Any) -> Any:
    """The feature of a column of pictures, videos or sounds, or of lists of them, that leaves files as they are; None
    for other columns."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Video | datasets.Audio):
        return type(feature)(decode=False)
    inner = _undecoded(feature.feature) if isinstance(feature, datasets.List) else None
    return None if inner is None else datasets.List(inner)


def _stored(value: JSON) -> JSON:
    """The path of a file {bytes, path}, of each in a list; paths as they are."""
    if isinstance(value, list):
        return [_stored(one) for one in value]
    return store_picture(value) if isinstance(value, dict) else value


def open_dataset(name: str, split: str, *, saved: bool = False) -> Any:
    """The rows of a split of a data set NAME, NAME:SPLIT or NAME@CONFIGURATION:SPLIT; saved: of a folder that
    `datasets` wrote. Raises PromptError."""
    import datasets

    base, _, chosen = name.partition(":")
    base, _, configuration = base.partition("@")
    try:
        data: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(base, configuration or None)
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
    """The absolute path of a data set's file: its own, or one in the cache named by a hash of its content.

    Bytes without a name are a picture's.
    """
    if value.get("bytes") is None:
        return str(Path(value["path"]).resolve())
    cache = cache_folder() / "pictures"
    suffix = Path(value.get("path") or "").suffix.lower()
    name = sha256(value["bytes"]).hexdigest()[:32] + (suffix if suffix in (*PICTURES, *VIDEOS, *SOUNDS) else ".png")
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
