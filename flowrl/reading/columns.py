"""The columns of a prompt file: which become arguments of the pipeline's own call, and which nobody reads.

What is not a prompt's text, id or media is its meta, the reward's ground truth. Columns of the meta that the model's
pipeline takes as arguments of its call are passed to it too: texts and numbers as they are, files opened when they are
needed. A misspelt column would go unnoticed, so reads are recorded, and a column that nothing reads is reported.
"""

from collections.abc import Collection, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from pathlib import Path

from flowrl.contracts import Prompt
from flowrl.names import closest
from flowrl.reading.prompt_lines import PromptError
from flowrl.untyped import JSON

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIPS = (".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi")
SOUNDS = (".wav",)
FOLDER = "images"  # where pictures may lie, next to the prompt file


def locate_file(name: str, where: str, folder: Path | None) -> Path:
    """The absolute path of an input file, relative to the folder of the prompt file or to images/ in that folder.

    Raises PromptError if it is in neither.
    """
    base = folder or Path()
    candidates = [(base / name).resolve(), (base / FOLDER / name).resolve()]
    for path in candidates:
        if path.is_file():
            return path
    raise PromptError(f"{where}: {candidates[0]} does not exist, nor {candidates[1]}; correct the path")


def arguments_of(meta: dict[str, JSON], known: Collection[str], where: str, folder: Path | None) -> dict[str, JSON]:
    """The part of a prompt's meta that the pipeline is called with. Names of files become absolute Paths."""
    return {name: _argument(value, f"{where}: {name}", folder) for name, value in meta.items() if name in known}


def _argument(value: JSON, where: str, folder: Path | None) -> JSON:
    if isinstance(value, str) and value.lower().endswith((*PICTURES, *CLIPS, *SOUNDS)):
        return locate_file(value, where, folder)
    if isinstance(value, list):
        return [_argument(item, where, folder) for item in value]
    return value


def check_columns(prompts: Sequence[Prompt], source: str) -> None:
    """Raises PromptError for arguments of the call that differ between prompts although one call takes one value.

    Each row of a call has its own text and files; a number, such as a height, is the same for all rows.
    """
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        for name, value in prompt.call.items():
            other = first.setdefault(name, prompt)
            if not may_differ_by_row(value) and value != other.call[name]:
                raise PromptError(
                    f"{source}: {name} is {other.call[name]!r} for {other.text!r} and {value!r} for {prompt.text!r}; "
                    "accepted: one value for all prompts (texts and files may differ); make it one"
                )
    for name, owner in first.items():
        without = next((p for p in prompts if name not in p.call), None)
        if without is not None and not isinstance(owner.call[name], str):
            raise PromptError(
                f"{source}: {without.text!r} has no {name}, which {owner.text!r} has; give it to all prompts, or none"
            )


def may_differ_by_row(value: JSON) -> bool:
    """Whether rows of one call may differ in such an argument: a text, a file, or a list of files."""
    return isinstance(value, str | Path) or (isinstance(value, list) and any(isinstance(v, Path) for v in value))


class Meta(dict[str, JSON]):
    """A prompt's meta that records which of its keys were read, by anyone and for any prompt of the same source.

    Iterating over it counts as reading every key. Comparing, printing and copying do not count as reading.
    """

    def __init__(self, values: dict[str, JSON], read: set[str]):
        super().__init__(values)
        self.read = read

    def __getitem__(self, key: str) -> JSON:
        """The value; marks the key as read."""
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Whether the key is there; marks it as read."""
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: JSON = None) -> JSON:
        """The value or the default; marks the key as read."""
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        """All keys; marks all as read."""
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> KeysView[str]:
        """All keys; marks all as read."""
        self.read.update(super().keys())
        return super().keys()

    def values(self) -> ValuesView[JSON]:
        """All values; marks all keys as read."""
        self.read.update(super().keys())
        return super().values()

    def items(self) -> ItemsView[str, JSON]:
        """All pairs; marks all keys as read."""
        self.read.update(super().keys())
        return super().items()

    def names(self) -> list[str]:
        """All keys, without marking any as read."""
        return list(super().keys())

    def __copy__(self) -> "Meta":
        """A copy that shares its record of reads with the original."""
        return Meta(dict(super().items()), self.read)

    def __deepcopy__(self, memo: dict) -> "Meta":
        """A deep copy that shares its record of reads with the original."""
        import copy

        return Meta({key: copy.deepcopy(value, memo) for key, value in super().items()}, self.read)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as a plain dict: what another process reads cannot be known here."""
        return dict, (dict(super().items()),)


def unread_columns(prompts: Iterable[Prompt], known: Collection[str] = ()) -> str | None:
    """One line about the columns of these prompts that nothing has read so far; None if there are none.

    known: names of the arguments that the pipeline takes, to suggest the one that was probably meant.
    """
    columns: dict[str, None] = {}
    for prompt in prompts:
        if isinstance(prompt.meta, Meta):
            columns |= dict.fromkeys(c for c in prompt.meta.names() if c not in prompt.meta.read | prompt.call.keys())
    if not columns:
        return None
    suggestion = {name: closest(name, known) for name in columns}
    listed = ", ".join(f"{name} (did you mean {suggestion[name]}?)" if suggestion[name] else name for name in columns)
    return (
        f"prompts: nothing read the column{'s' * (len(columns) > 1)} {listed} in the first iteration: neither the "
        "pipeline's call takes it nor a reward asked for it"
    )
