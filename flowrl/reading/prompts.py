"""Prompts from files, folders, data sets and embedded worlds, and a resumable draw of them.

Every prompt has an id that is unique in its source and independent of its place there: the noise of its samples
derives from the id, so that adding a line to a file changes nothing for the other prompts.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowrl.contracts import Prompt
from flowrl.names import WORLD_PROMPTS, cache_folder, to_be_fetched
from flowrl.reading import data_sets, prompt_lines
from flowrl.reading.columns import Meta, arguments_of, check_columns
from flowrl.reading.prompt_lines import PromptError, text_hash
from flowrl.reading.records import prompt_of, renamed
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


def missing_sources(sources: Sequence[str | None], origin: str | None) -> str | None:
    """What to do about published prompts among the sources that are missing, by `origin`; None if none is."""
    absent = list(dict.fromkeys(str(source) for source in sources if to_be_fetched(source, origin)))
    if not absent:
        return None
    return f"{', '.join(absent)}: not here, and not shipped; get it by `{origin}`, or name other prompts"


def load(
    source: str,
    *,
    split: str = "train",
    limit: int | None = None,
    arguments: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
) -> list[Prompt]:
    """The prompts of a source, in its order, the first `limit` of them.

    source: a .txt file (one a line), records of a .jsonl, .json, .csv, .tsv or .parquet file (see records.py: a text or
    a conversation, optional `id` and `media` or `image`, the rest is meta), a folder (see LAYOUTS, or one that
    `datasets` reads), a name on the hub as NAME, NAME:SPLIT or NAME@CONFIGURATION:SPLIT, or WORLD/SPLIT of an embedded
    world. split says which half a folder or data set is asked for. columns: the name that is read of a column, and the
    file's own. Columns that are named in arguments, those of the pipeline's call, go to that call too: see columns.py.
    Raises PromptError.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    prompts = _with_distinct_ids(_read(source, split, arguments, columns or {}))[:limit]
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


def _read(source: str, split: str, arguments: Collection[str], columns: Mapping[str, str]) -> Iterable[Prompt]:
    path = Path(source).expanduser()
    if source in WORLD_PROMPTS:
        return _from_world(*source.split("/"))
    if path.is_dir():
        return _from_folder(path, split, arguments, columns)
    if path.suffix == ".txt":
        return _from_text(path)
    if path.suffix in RECORDS:
        return _from_records(path, columns)
    if path.suffix == ".parquet" and path.exists():
        return data_sets.prompts_of_parquet(path, arguments, columns)
    if path.exists():
        accepted = f".txt, {', '.join(RECORDS)}, .parquet, a folder or a data set's name"
        raise PromptError(f"{source}: ends in {path.suffix!r}; accepted: {accepted}")
    return data_sets.prompts_of(source, split, arguments, columns)


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


def _from_records(path: Path, columns: Mapping[str, str]) -> Iterator[Prompt]:
    given: dict[str, str] = {}
    for where, record in RECORDS[path.suffix](path):
        prompt = prompt_of(renamed(record, columns, where), where, path.parent)
        if "id" in record or "id" in columns:
            if prompt.id in given:
                raise PromptError(f"{where}: id {prompt.id!r} is already that of line {given[prompt.id]}; give another")
            given[prompt.id] = where.rpartition(":")[2].strip()
        yield prompt


def _lines(path: Path) -> Iterator[tuple[str, dict[str, JSON]]]:
    for number, line in prompt_lines.read_lines(path):
        yield f"{path}:{number}", prompt_lines.parse_record(line, f"{path}:{number}")


def _list(path: Path) -> Iterator[tuple[str, dict[str, JSON]]]:
    text = "\n".join(line for _, line in prompt_lines.read_lines(path))
    for number, record in enumerate(prompt_lines.parse_records(text, str(path)), 1):
        yield f"{path}: record {number}", record


# suffix of a file of records -> (place, record) of each
RECORDS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, JSON]]]]] = {
    ".jsonl": _lines,
    ".json": _list,
    ".csv": data_sets.table_rows,
    ".tsv": data_sets.table_rows,
}


def _from_world(world: str, split: str) -> Iterator[Prompt]:
    found = records(world, split, cache_folder() / "worlds")
    return (Prompt(id=r.id or r.text, text=r.text, media=r.media, meta=r.meta) for r in found)


def _from_folder(path: Path, split: str, arguments: Collection[str], columns: Mapping[str, str]) -> Iterable[Prompt]:
    for name in LAYOUTS[split]:
        if (path / name).is_file():
            return _read(str(path / name), split, arguments, columns)
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return data_sets.prompts_of(str(path), split, arguments, columns, saved=True)
    if any(path.rglob("*.parquet")) or any(path.rglob("*.csv")):
        return data_sets.prompts_of(str(path), split, arguments, columns)
    raise PromptError(f"{path}: no {split} prompts; accepted: {', '.join(LAYOUTS[split])}, or a `datasets` folder")
