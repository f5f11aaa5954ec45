"""One record of a prompt file or data set as a prompt: its text or conversation, its id, its media; the rest is meta.

A conversation is a list of messages {role, content}, as chat models are trained on: columns `messages` or
`conversations` (also {from, value} of ShareGPT), or a `prompt` that is such a list (TRL's conversational form). What
the assistant says last is what is to be learned: the meta `completion`, like TRL's column of that name.

A content may be a list of parts, {type: text, text} and {type: image} or video or audio: the marks <image>, <video> and
<audio> then stand in its text, as in data sets that write them themselves. The files are those that parts name, or
those of the columns `images`, `videos` and `audios` in their order. The ground_truth of verl's column `reward_model` is
the answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowrl.contracts import Message, Prompt
from flowrl.media.files import KINDS, MEDIA_KEYS
from flowrl.reading.columns import locate_file
from flowrl.reading.prompt_lines import PromptError, shorten, text_hash
from flowrl.untyped import JSON

TEXT_COLUMNS = ("prompt", "caption", "text", "question", "problem")
LINE_KEYS = ("prompt", "question", "problem")  # of a file's own lines; the second is GSM8K's
CHAT_COLUMNS = ("messages", "conversations")
COMPLETION = "completion"
ROLES = ("system", "user", "assistant")
SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def renamed(record: dict[str, JSON], columns: Mapping[str, str], where: str) -> dict[str, JSON]:
    """The record with its columns under other names: columns maps the name that is read to that of the file.

    A column of the file that has the new name already gives way. Raises PromptError where a column is not there.
    """
    if not columns:
        return record
    for new, old in columns.items():
        if old not in record:
            listed = ", ".join(record)[:200] or "nothing"
            raise PromptError(f"{where}: has no {old!r}, which prompts.columns.{new} names, only {listed}; correct it")
    rest = {name: value for name, value in record.items() if name not in columns and name not in columns.values()}
    return {new: record[old] for new, old in columns.items()} | rest


def prompt_of(
    record: dict[str, JSON], where: str, folder: Path | None, text_columns: Sequence[str] = LINE_KEYS
) -> Prompt:
    """The prompt of one record, by the first of text_columns or CHAT_COLUMNS that it has. Raises PromptError."""
    chat = next((c for c in (*CHAT_COLUMNS, "prompt") if isinstance(record.get(c), list)), None)
    if chat is not None:
        files: list[tuple[str, JSON]] = []
        messages = _messages(record[chat], f"{where}: {chat}", files)
        record = record | _named_files(record, files, f"{where}: {chat}")
        column, meta = chat, {}
        if messages[-1]["role"] == "assistant":
            meta = {COMPLETION: messages[-1]["content"]}
            messages = messages[:-1]
        if not messages or messages[-1]["role"] != "user":
            raise PromptError(f"{where}: {chat} has no message of the user to answer; add one")
        text = messages[-1]["content"]
        identity = json.dumps(messages, ensure_ascii=False, sort_keys=True)
        conversation = tuple(messages) if len(messages) > 1 else ()
    else:
        column = next((c for c in text_columns if c in record), None)
        if column is None:
            listed = ", ".join(record)[:200] or "nothing"
            *others, last = (*text_columns, *CHAT_COLUMNS)
            accepted = f"{', '.join(others)} or {last}"
            raise PromptError(f"{where}: has no {accepted}, only {listed}; add it, or name it by prompts.columns")
        value = record[column]
        if not isinstance(value, str) or not value.strip():
            raise PromptError(f"{where}: {column} is {shorten(value)}; accepted: a text that is not empty")
        text, identity, conversation, meta = value, value, (), {}
    if "id" in record and not (type(record["id"]) in (str, int) and str(record["id"])):
        raise PromptError(f"{where}: id is {shorten(record['id'])}; accepted: a text or a whole number")
    if isinstance(record.get(COMPLETION), list):  # TRL's conversational completion: one message of the assistant
        meta = {COMPLETION: _completion(record[COMPLETION], f"{where}: {COMPLETION}")}
    media = prompt_media(record, where, folder)
    meta = {k: v for k, v in record.items() if k not in (column, "id", *MEDIA_KEYS)} | meta
    judged = record.get("reward_model")
    if isinstance(judged, dict) and "ground_truth" in judged:
        meta.setdefault("answer", judged["ground_truth"])
    name = str(record["id"]) if "id" in record else text_hash(identity)
    return Prompt(id=name, text=text, media=media, meta=meta, messages=conversation)


def _messages(value: JSON, where: str, files: list[tuple[str, JSON]] | None = None) -> list[Message]:
    """The messages of a conversation, of the roles system, user and assistant. Raises PromptError.

    files: is told the kind of every medium among the parts of a content, in order, and the file that a part names.
    """
    made: list[Message] = []
    for number, entry in enumerate(value if isinstance(value, list) else [], 1):
        at = f"{where}: message {number}"
        if not isinstance(entry, dict):
            raise PromptError(f"{at} is {shorten(entry)}; accepted: {{role, content}}")
        said = entry.get("role", SHAREGPT.get(str(entry.get("from"))))
        content = entry.get("content", entry.get("value"))
        if said not in ROLES:
            named = shorten(entry.get("role", entry.get("from")))
            raise PromptError(f"{at} has the role {named}; accepted: {', '.join(ROLES)}")
        if isinstance(content, list):
            content = _text_of(content, at, [] if files is None else files)
        if not isinstance(content, str) or not content.strip():
            raise PromptError(f"{at} says {shorten(content)}; accepted: a text that is not empty, or a list of parts")
        made.append({"role": str(said), "content": content})
    if not made:
        raise PromptError(f"{where} is {shorten(value)}; accepted: a list of messages")
    return made


def _text_of(parts: Sequence[JSON], where: str, files: list[tuple[str, JSON]]) -> str:
    """The text of a content's parts, with a mark for each medium."""
    made = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            made.append(part["text"])
        elif kind in KINDS:
            files.append((kind, next((part[k] for k in (kind, "path", "url") if part.get(k) is not None), None)))
            made.append(f"<{kind}>")
        else:
            accepted = f"{{type: text, text: ...}}, or {{type: {', '.join(KINDS)}}} with its file under path"
            raise PromptError(f"{where} has the part {shorten(part)}; accepted: {accepted}")
    return "".join(made)


def _named_files(record: dict[str, JSON], files: Sequence[tuple[str, JSON]], where: str) -> dict[str, JSON]:
    """The columns of media with the files that parts of messages name, where they do. Raises PromptError."""
    named = [file for _, file in files if file is not None]
    if not named:
        return {}
    if len(named) < len(files) or any(record.get(key) for key in MEDIA_KEYS):
        raise PromptError(
            f"{where} names files for some of its parts; accepted: for all, without other columns of media"
        )
    return {"media": named}


def _completion(value: JSON, where: str) -> str:
    messages = _messages(value, where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise PromptError(f"{where} has {len(messages)} messages; accepted: one of the assistant")
    return messages[0]["content"]


def prompt_media(record: dict[str, JSON], where: str, folder: Path | None) -> tuple[str, ...]:
    """The absolute paths of the input files that a record names. Raises PromptError where one is missing."""
    return tuple(m for key in MEDIA_KEYS for m in _media(record.get(key), f"{where}: {key}", folder))


def _media(value: JSON, where: str, folder: Path | None) -> list[str]:
    """Absolute paths of input files; relative ones start from the folder of the prompt file or its images/.

    A folder is a video, of the frames in it.
    """
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise PromptError(f"{where} is {shorten(value)}; accepted: a path or a list of paths")
    places = [((folder or Path()) / path).resolve() for path in paths]
    return [
        str(place if place.is_dir() else locate_file(path, where, folder))
        for path, place in zip(paths, places, strict=True)
    ]
