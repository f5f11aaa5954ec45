"""What stood before the first samples of an evaluation: files of their prompts, pictures that tools showed."""

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image

from flowrl.contracts import Conversation, Prompt
from flowrl.core.evaluation import Evaluation
from flowrl.media.files import media_kind
from flowrl.media.pictures import as_image
from flowrl.untyped import JSON

SIDE = 512  # pixels of what is kept, at most
FAULTS = (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError)  # of pictures that cannot be read


def record(folder: Path, stem: str, result: Evaluation) -> dict[str, JSON]:
    """Writes pictures into heldout/ of a run's folder, and returns what its JSON says of them.

    media: of each prompt whose sample is kept, its files, {kind, name, path}; path only of a picture, whose copy it is.
    talks: of each conversation its parts, {text, pictures}; null in place of one that is no picture. A key is left out
    where there is nothing of the kind.
    """
    kept = max(len(result.pictures) if result.pictures is not None else 0, len(result.texts or ()))
    media = [_media(folder, prompt) for prompt in result.prompts[:kept]]
    talks = [_talk(folder, f"{stem}/{i:03d}", talk) for i, talk in enumerate(result.talks or ())]
    found: dict[str, JSON] = {"media": media} if any(media) else {}
    return found | ({"talks": talks} if talks else {})


def _media(folder: Path, prompt: Prompt) -> list[dict[str, str]]:
    files = []
    for file in prompt.media:
        of = {"kind": media_kind(file), "name": Path(file).name}
        path = _copied(folder, file) if of["kind"] == "image" else None
        files.append(of if path is None else of | {"path": path})
    return files


def _copied(folder: Path, file: str) -> str | None:
    """The path in a run's folder of a small copy of a picture; evaluations share it, by what is in the file."""
    try:
        name = f"heldout/media/{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}.png"
    except OSError:
        return None
    return name if (folder / name).exists() else _written(folder, name, file)


def _talk(folder: Path, stem: str, talk: Conversation) -> list[dict[str, JSON]]:
    parts, number = [], 0
    for text, pictures in talk.parts():
        names = [_written(folder, f"heldout/{stem}-{number + i}.png", one) for i, one in enumerate(pictures)]
        number += len(pictures)
        parts.append({"text": text, "pictures": names} if names else {"text": text})
    return parts


def _written(folder: Path, name: str, picture: Any) -> str | None:
    """Writes a small copy of a picture; its name, or None where it is none."""
    try:
        image = as_image(picture)
    except FAULTS:
        return None
    image.thumbnail((SIDE, SIDE))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")
    return name
