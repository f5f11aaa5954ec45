"""Documents of an index, read from files: their titles, texts and pictures."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.contracts import Unavailable

TITLES, TEXTS, PICTURES = ("title", "name"), ("text", "contents", "content", "passage"), ("image", "picture", "page")
SUFFIXES = (".txt", ".md")
LARGEST = 2**26  # bytes of a text file


class Document(NamedTuple):
    """A document: its title, its text, and the path of a picture of it, if there is one."""

    title: str
    text: str
    picture: str | None = None


def read_documents(place: str, columns: Mapping[str, str]) -> list[Document]:
    """The documents of a .jsonl or .parquet file, or of a folder's .txt and .md files, in the order of their names.

    columns: what a file calls title, text and picture, where that is none of the usual names. A first line of a text
    file is its title where a blank line, or a heading's mark, sets it off; otherwise its name is. Raises Unavailable
    where there is no such file, and ValueError for one that cannot be read so, or has no document.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        found = [_from_text(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
    elif path.suffix == ".jsonl" and path.is_file():
        found = [_from_record(place, record, columns, path.parent) for place, record in _lines(path)]
    elif path.suffix == ".parquet" and path.is_file():
        found = [_from_record(place, record, columns, path.parent) for place, record in _rows(path)]
    elif not path.exists():
        raise Unavailable(f"there are no documents at {place!r}; give a .jsonl or .parquet file, or a folder of texts")
    else:
        raise ValueError(f"{place!r} is no .jsonl or .parquet file and no folder; accepted: one of these")
    if not found:
        raise ValueError(f"{place!r} has no documents; accepted: rows with a text, or a folder with .txt or .md files")
    return found


def _from_text(path: Path) -> Document:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST} bytes; cut it into several documents")
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    first, _, rest = text.partition("\n")
    headed = first.startswith("#") or (rest.startswith("\n") and len(first) <= 200)
    return Document(first.lstrip("# ").strip(), rest.strip()) if headed and rest.strip() else Document(path.stem, text)


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: no JSON ({error}); correct the line") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: no JSON object; correct the line")
            yield f"{path}:{number}", record


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    rows: Any = datasets.load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.remove_columns(column)  # of pictures the paths are read, from a column of texts
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


def _from_record(place: str, record: Mapping[str, Any], columns: Mapping[str, str], folder: Path) -> Document:
    def first(name: str, usual: tuple[str, ...]) -> str | None:
        names = (columns[name],) if name in columns else usual
        return next((str(record[n]) for n in names if record.get(n) is not None), None)

    text, picture = first("text", TEXTS), first("picture", PICTURES)
    if text is None:
        wanted = columns.get("text", ", ".join(TEXTS))
        raise ValueError(f"{place}: columns {', '.join(record)}; accepted: one of {wanted}, or columns: {{text: NAME}}")
    title = first("title", TITLES)
    if title is None:  # as the dump of Wikipedia that is searched most often has it: the title is the first line
        head, _, rest = text.partition("\n")
        title, text = (head.strip('" '), rest) if rest else (text[:80], text)
    if picture is not None:
        found = folder / picture
        if not found.is_file():
            raise ValueError(f"{place}: there is no picture {found}; correct the path, or columns: {{picture: NAME}}")
        picture = str(found)
    return Document(title, text, picture)


def passages(documents: list[Document], words: int) -> list[Document]:
    """Documents cut into pieces of so many words, each with its title and picture."""
    cut = []
    for document in documents:
        parts = document.text.split()
        if len(parts) <= words:
            cut.append(document)
            continue
        pieces = [" ".join(parts[i : i + words]) for i in range(0, len(parts), words)]
        cut += [document._replace(text=piece) for piece in pieces]
    return cut


def ndcg(found: Sequence[str], wanted: Collection[str]) -> float:
    """How early the wanted ones of a list come, 1 where they are its first: normalised discounted cumulative gain.

    Relevance is 0 or 1, and the ideal has all that are wanted (VRAG-RL, arXiv:2505.22019, its reward of retrieval).
    NaN where nothing is wanted.
    """
    if not wanted:
        return math.nan
    gain = sum(1 / math.log2(place + 2) for place, title in enumerate(found) if title in wanted)
    return gain / sum(1 / math.log2(place + 2) for place in range(len(set(wanted))))
