"""Which files are pictures, videos and sounds, and the marks that say where in a text each stands."""

import re
from collections.abc import Sequence
from pathlib import Path

MEDIA_KEYS = ("media", "image", "images", "videos", "audios")  # columns of prompt files that name a prompt's media
KINDS = ("image", "video", "audio")
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".gif")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")
MARK = re.compile("(<image>|<video>|<audio>)")


def media_kind(path: str) -> str:
    """image, video or audio, by the suffix of a file's name; a folder is a video, of the frames in it."""
    suffix = Path(path).suffix.lower()
    if suffix in SOUNDS:
        return "audio"
    return "video" if suffix in VIDEOS or Path(path).is_dir() else "image"


def marks_problem(texts: Sequence[str], media: Sequence[str]) -> str | None:
    """What is wrong with the marks of a prompt's texts; None where there are none, or one for each file."""
    marks = [mark for text in texts for mark in MARK.findall(text)]
    kinds = [media_kind(path) for path in media]
    for kind in KINDS if marks and media else ():
        there, files = marks.count(f"<{kind}>"), kinds.count(kind)
        if there != files:
            return f"has the mark <{kind}> {there} times for {files} files of that kind; write one for each, or none"
    return None
