"""The columns of a prompt file: which become arguments of the pipeline's own call, and which nobody reads.

What is not a prompt's text, id or media is its meta, the reward's ground truth. Columns of the meta that the model's
pipeline takes as arguments of its call are handed to it too: texts and numbers as they are, files opened when they are
needed. A misspelt column would go unnoticed; so reads are counted, and a column without any is told.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowrl.contracts import Prompt
from flowrl.names import closest
from flowrl.reading.prompt_lines import PromptError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIPS = (".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi")
SOUNDS = (".wav",)
FOLDER = "images"  # where pictures may lie, beside the prompt file


def located(name: str, where: str, folder: Path | None) -> Path:
    """The absolute path of an input file: as it is named from the folder of the prompt file, or from images/ in it.

    Raises PromptError where it is in neither.
    """
    base = folder or Path()
    tried = [(base / name).resolve(), (base / FOLDER / name).resolve()]
    for path in tried:
        if path.is_file():
            return path
    raise PromptError(f"{where}: {tried[0]} does not exist, nor {tried[1]}; correct the path")


def arguments_of(meta: dict[str, Any], known: Collection[str], where: str, folder: Path | None) -> dict[str, Any]:
    """What of a prompt's meta the pipeline is called with. Names of files become Paths, absolute."""
    return {name: _argument(value, f"{where}: {name}", folder) for name, value in meta.items() if name in known}


def _argument(value: Any, where: str, folder: Path | None) -> Any:
    if isinstance(value, str) and value.lower().endswith((*PICTURES, *CLIPS, *SOUNDS)):
        return located(value, where, folder)
    if isinstance(value, list):
        return [_argument(item, where, folder) for item in value]
    return value


def check_columns(prompts: Sequence[Prompt], source: str) -> None:
    """Raises PromptError for arguments of the call that differ from prompt to prompt and cannot.

    The rows of a call have texts and files of their own; a number, such as a height, is one for all of them.
    """
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        for name, value in prompt.call.items():
            other = first.setdefault(name, prompt)
            if not own_to_rows(value) and value != other.call[name]:
                raise PromptError(
                    f"{source}: {name} is {other.call[name]!r} for {other.text!r} and {value!r} for {prompt.text!r}; "
                    "accepted: one value for all prompts (texts and files may differ); make it one"
                )
    for name, owner in first.items():
        lacking = next((p for p in prompts if name not in p.call), None)
        if lacking is not None and not isinstance(owner.call[name], str):
            raise PromptError(
                f"{source}: {lacking.text!r} has no {name}, which {owner.text!r} has; give it to all prompts, or none"
            )


def own_to_rows(value: Any) -> bool:
    """Whether rows of one call may differ in such an argument: a text, a file, or a list of files."""
    return isinstance(value, str | Path) or (isinstance(value, list) and any(isinstance(v, Path) for v in value))


class Meta(dict[str, Any]):
    """A prompt's meta that knows which of its keys were asked for, by anybody and for any prompt of the same source.

    Whoever goes through all of it is taken to read all of it. Comparing, printing and copying are no reading.
    """

    def __init__(self, values: dict[str, Any], read: set[str]):
        super().__init__(values)
        self.read = read

    def __getitem__(self, key: str) -> Any:
        """The value, read."""
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Whether the key is there; asking is reading."""
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value or the default, read."""
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        """All keys, read."""
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """All keys, read."""
        self.read.update(super().keys())
        return super().keys()

    def values(self) -> Any:
        """All values, read."""
        self.read.update(super().keys())
        return super().values()

    def items(self) -> Any:
        """All of it, read."""
        self.read.update(super().keys())
        return super().items()

    def names(self) -> list[str]:
        """The keys, unread."""
        return list(super().keys())

    def __copy__(self) -> "Meta":
        """A copy whose reads count with those of the original."""
        return Meta(dict(super().items()), self.read)

    def __deepcopy__(self, memo: dict) -> "Meta":
        """The same, deep."""
        import copy

        return Meta({key: copy.deepcopy(value, memo) for key, value in super().items()}, self.read)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a plain dict: what another process reads is not known here."""
        return dict, (dict(super().items()),)


def unread(prompts: Iterable[Prompt], known: Collection[str] = ()) -> str | None:
    """One line about the columns of these prompts that nothing has read so far; None where there are none.

    known: names of the arguments that the pipeline takes, for a hint at what was meant.
    """
    columns: dict[str, None] = {}
    for prompt in prompts:
        if isinstance(prompt.meta, Meta):
            columns |= dict.fromkeys(c for c in prompt.meta.names() if c not in prompt.meta.read | prompt.call.keys())
    if not columns:
        return None
    meant = {name: closest(name, known) for name in columns}
    told = ", ".join(f"{name} (did you mean {meant[name]}?)" if meant[name] else name for name in columns)
    return (
        f"prompts: nothing read the column{'s' * (len(columns) > 1)} {told} in the first iteration: neither the "
        "pipeline's call takes it nor a reward asked for it"
    )
