"""Pictures, videos and sounds of a prompt: where they stand in its messages, and what a processor makes of them.

In a text the marks <image>, <video> and <audio> say where each stands, in the order in which a prompt names them;
without marks all come before the text of the first message of the user, as in TRL.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from flowrl.contracts import Message
from flowrl.media.files import KINDS, MARK, marks_problem, media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.inputs import TYPES, Inputs, Piece
from flowrl.policies.language.media.opening import arguments_of, opened
from flowrl.untyped import Config, Processor

FAULTS = (ValueError, TypeError, IndexError, RuntimeError, KeyError, AttributeError)  # of a processor's own code
# gives what is shown in the place of a prompt's file: its number, its kind, the opened file (opening.py), the processor
Change = Callable[[int, str, Any, Processor], Any]
_LAYOUTS: "WeakKeyDictionary[Processor, dict[tuple[str, ...], Layout]]" = WeakKeyDictionary()
_PLACEHOLDER = re.compile("(image|video|audio|vision|speech|media)_(token|patch)_(id|index)")
_MARKED = ("image_token_ids", "video_token_ids", "audio_token_ids")  # of a processor: those that it writes


@dataclass(frozen=True)
class Layout:
    """How a processor's tensors lie: the dimension along which those of two texts are joined, where it is not the
    first, which have an entry for each id of the text, and which hold indices into the first dimensions, so many of
    them, of another.
    """

    along: Mapping[str, int]
    types: frozenset[str]
    indices: Mapping[str, tuple[str, int]]


def placed(messages: Sequence[Message], media: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with their contents as parts, {type: text or image or video or audio}, for a chat template.

    Raises PolicyError where the marks of a kind are not as many as its files.
    """
    texts = [str(message["content"]) for message in messages]
    if problem := marks_problem(texts, media):
        raise PolicyError(f"prompt {texts[-1]!r} {problem}")
    marked = any(MARK.search(text) for text in texts)
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    before = [] if marked else [{"type": media_kind(path)} for path in media]
    made = []
    for i, message in enumerate(messages):
        parts = _parts(str(message["content"])) if media else [{"type": "text", "text": message["content"]}]
        made.append(dict(message) | {"content": [*(before if i == first else []), *parts]})
    return made


def _parts(text: str) -> Iterator[dict[str, str]]:
    for part in MARK.split(text):
        if MARK.fullmatch(part):
            yield {"type": part[1:-1]}
        elif part:
            yield {"type": "text", "text": part}


def processed(
    processor: Processor,
    text: str,
    media: Sequence[str | Image.Image],
    barred: Sequence[int],
    *,
    special: bool | None = None,
    change: Change | None = None,
) -> tuple[list[int], Inputs]:
    """(ids, media) of a text in which the processor finds its own placeholders, one for each file.

    media: files, or pictures as they are. barred: the ids of placeholders.
    special: whether the tokenizer adds its special tokens (None: as it does of
    itself). change: see `Change`. Raises PolicyError where a file is unreadable, or has no placeholder.
    """
    given: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
    given |= {} if special is None else {"add_special_tokens": special}
    made = [(_kind(one), opened(one, processor)) for one in media]
    if change is not None:
        made = [(kind, change(number, kind, one, processor)) for number, (kind, one) in enumerate(made)]
    files = {kind: [one for own, one in made if own == kind] for kind in KINDS}
    given |= arguments_of(files, processor)
    try:
        found = _asked(processor, given)
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise PolicyError(
            f"{type(processor).__name__} refuses the prompt {text[:80]!r} with {_names(media)} ({reason}); give "
            "files of a kind that this model reads, or another model"
        ) from error
    if len(found.get("input_ids", ())) != 1:
        raise PolicyError(
            f"{type(processor).__name__} makes {len(found.get('input_ids', ()))} rows of token ids of one text with "
            f"{_names(media)[:160]}: its model does not go on from a prompt; give another model"
        )
    ids = found["input_ids"][0].tolist()
    rest = {k: v for k, v in found.items() if k not in ("input_ids", "attention_mask", "labels")}
    tensors = {name: value for name, value in rest.items() if isinstance(value, torch.Tensor)}
    lists = {name: made for name, value in rest.items() if (made := _whole_numbers(value)) is not None}
    layout = layout_of(processor, given, len(ids), tensors)
    types = {name: tensors.pop(name)[0] for name in sorted(layout.types)}
    marks = [(value > 0).tolist() for name, value in types.items() if value.dim() == 1 and name not in TYPES]
    places = [i for i, token in enumerate(ids) if token in barred or any(mark[i] for mark in marks)]
    unplaced = len(media) == 1 and not places and not barred  # a model that sees one picture beside all of its text
    if len(places) < len(media) and not unplaced:
        raise PolicyError(
            f"the prompt {text[:80]!r} has {len(media)} files ({_names(media)[:160]}) and {len(places)} of the "
            f"placeholders that {type(processor).__name__} writes for them: the model would not see all; give a model "
            "whose chat template shows them, or set generation.chat_template=true"
        )
    length = len(ids) if unplaced else places[-1] + 1
    types = {name: torch.cat([v, v[-1:] if len(ids) > length else 0 * v[-1:]]) for name, v in types.items()}
    counts = {name: tensors[other].shape[:k].numel() for name, (other, k) in layout.indices.items()}
    return ids, Inputs((Piece.of(length, tensors | lists, types, layout.along, lists, counts),))


def _whole_numbers(value: Any) -> torch.Tensor | None:
    """A list of whole numbers, or of rows of them, as a tensor; None for anything else."""
    if not isinstance(value, list) or not value:
        return None
    with contextlib.suppress(*FAULTS):
        made = torch.tensor(value)
        return None if made.is_floating_point() or made.dtype == torch.bool else made
    return None


def layout_of(
    processor: Processor, given: Mapping[str, Any], number: int, tensors: Mapping[str, torch.Tensor]
) -> Layout:
    """How the tensors lie that the processor made of what it was given, with `number` ids.

    It is asked once for all that it gives under these names: with what it was given twice over, and with a longer text.
    """
    known = _LAYOUTS.setdefault(processor, {})
    key = tuple(sorted(tensors))
    if key not in known:
        twice = _again(
            processor, {name: value * 2 if isinstance(value, list) else value for name, value in given.items()}
        )
        longer = _again(processor, dict(given) | {"text": [f"{text}{text[-1:]}" for text in given["text"]]})
        more = longer["input_ids"].shape[1] - number if "input_ids" in longer else 0
        types = {
            name
            for name, value in tensors.items()
            if value.shape[:2] == (1, number)
            and (name in TYPES or more > 0 and getattr(longer.get(name), "shape", ())[:2] == (1, number + more))
        }
        along = {}
        for name, value in tensors.items():
            size, pair = value.shape, getattr(twice.get(name), "shape", ())
            grown = [i for i, n in enumerate(size) if len(pair) == len(size) and pair[i] == 2 * n]
            if name not in types and grown and grown[0] > 0:
                along[name] = grown[0]
        known[key] = Layout(along, frozenset(types), dict(_indices(tensors, twice)))
    return known[key]


def _indices(tensors: Mapping[str, torch.Tensor], twice: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    """The tensors whose values count on in a second text, each by the places of another tensor in the first."""
    for name, value in tensors.items():
        pair = twice.get(name)
        if not isinstance(pair, torch.Tensor) or value.dtype != torch.int64 and value.dtype != torch.int32:
            continue
        if pair.shape != (2 * len(value), *value.shape[1:]):
            continue
        more = (pair[len(value) :] - pair[: len(value)])[value >= 0].unique().tolist()
        places = ((n, k) for n, v in tensors.items() for k in range(1, v.dim()) if [v.shape[:k].numel()] == more)
        if len(more) == 1 and more[0] > 0 and (found := next(places, None)):
            yield name, found


def _again(processor: Processor, given: dict[str, Any]) -> dict[str, Any]:
    """What a processor makes of something else; nothing where it does not take it."""
    with contextlib.suppress(*FAULTS):
        return _asked(processor, given)
    return {}


def _asked(processor: Processor, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor makes of one text; it takes pictures as lists, one for each text, or else all in one list."""
    try:
        return dict(processor(**given))
    except FAULTS:
        flat = {
            k: [one for text in v for one in text]
            for k, v in given.items()
            if k in ("images", "videos", "video_metadata")
        }
        if not flat:
            raise
        with contextlib.suppress(*FAULTS):
            return dict(processor(**{**given, **flat}))
        raise


def _kind(one: str | Image.Image) -> str:
    return media_kind(one) if isinstance(one, str) else "image"


def _names(media: Sequence[str | Image.Image]) -> str:
    return ", ".join(one if isinstance(one, str) else "a picture of {} x {}".format(*one.size) for one in media)


def placeholder_ids(*holders: Config) -> tuple[int, ...]:
    """The ids that stand for media, as a model's config and its processor name them, in rising order."""
    found: set[int] = set()
    for holder in holders:
        found |= set(_named(vars(holder)))
        found |= {i for name in _MARKED for i in getattr(holder, name, None) or () if isinstance(i, int)}
        if hasattr(holder, "to_dict"):  # of a config, whose parts are objects
            found |= set(_named(holder.to_dict()))
    return tuple(sorted(found))


def _named(values: Mapping[str, Any]) -> Iterator[int]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif isinstance(value, int) and value >= 0 and _PLACEHOLDER.fullmatch(str(name)):
            yield value
