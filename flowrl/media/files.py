"""Which files are pictures, videos and sounds, by their names."""

from pathlib import Path

VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".gif")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")


def media_kind(path: str) -> str:
    """image, video or audio, by the suffix of a file's name; a folder is a video, of the frames in it."""
    suffix = Path(path).suffix.lower()
    if suffix in SOUNDS:
        return "audio"
    return "video" if suffix in VIDEOS or Path(path).is_dir() else "image"
