"""Prompts with pictures on their way to a server: OpenAI's messages with the files in them, and back again.

A server makes its own ids of them. Whether these are the ids here, the placeholders of every picture included, is for
the caller to compare: a server that sees a picture otherwise draws for another prompt.
"""

import base64
import binascii
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowrl.contracts import Prompt
from flowrl.media.files import media_kind
from flowrl.names import UserError
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.media.processing import placed

Message = dict[str, Any]
DATA = "data:"


def messages_of(encode: Encoder, prompt: Prompt) -> list[Message]:
    """A prompt's messages with its pictures in them as data. Raises UserError for other media, and without a chat."""
    other = next((path for path in prompt.media if media_kind(path) != "image"), None)
    if other is not None or not encode.chat:
        what = (
            f"has {other}, which is no picture" if other is not None else "has pictures, and no chat template is used"
        )
        raise UserError(f"rollout.engine: prompt {prompt.text[:60]!r} {what}; set rollout.engine=null")
    chat = placed(prompt.messages or [{"role": "user", "content": prompt.text}], prompt.media)
    if encode.system is not None and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": encode.system})
    files = iter(prompt.media)
    for message in chat:
        if isinstance(message["content"], list):
            parts = message["content"]
            message["content"] = [_picture(next(files)) if part["type"] == "image" else part for part in parts]
    return chat


def _picture(path: str) -> Message:
    kind = mimetypes.guess_type(path)[0] or "image/png"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"{DATA}{kind};base64,{data}"}}


def has_pictures(messages: Sequence[Message]) -> bool:
    """Whether some message shows a picture."""
    contents = [message.get("content") for message in messages]
    return any(part.get("type") == "image_url" for c in contents if isinstance(c, list) for part in c)


def prompt_of(messages: Sequence[Message], folder: Path) -> Prompt:
    """The prompt of a chat, its pictures written to files of the folder. Raises ValueError for what is no such chat."""
    made, media = [], []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            texts = []
            for part in content:
                if part.get("type") == "image_url":
                    media.append(_written(part["image_url"]["url"], folder / f"{len(media)}.png"))
                    texts.append("<image>")
                elif part.get("type") == "text":
                    texts.append(part["text"])
                else:
                    raise ValueError(f"content: got {part.get('type')!r}; accepted: text and image_url")
            content = "".join(texts)
        made.append({"role": message["role"], "content": content})
    return Prompt("request", made[-1]["content"], tuple(media), messages=tuple(made))


def _written(url: str, path: Path) -> str:
    head, comma, data = url.partition(",")
    if not head.startswith(DATA) or not head.endswith(";base64") or not comma:
        raise ValueError("image_url: accepted: data:image/...;base64,...; nothing is fetched")
    try:
        path.write_bytes(base64.b64decode(data, validate=True))
    except binascii.Error:
        raise ValueError("image_url: its data is no base64") from None
    return str(path)
