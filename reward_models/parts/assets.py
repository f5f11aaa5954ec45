"""The reward models that ship with the package, by short name: those of the shapes world."""

from pathlib import Path

from flowrl import worlds

_SHAPES = Path(worlds.__file__).parent / "shapes" / "assets"
SHIPPED = {
    "shapes-clip": _SHAPES / "shapes-clip",
    "shapes-style-clip": _SHAPES / "shapes-style-clip",
    "shapes-aesthetic": _SHAPES / "shapes-aesthetic" / "head.safetensors",
    "shapes-vlm": _SHAPES / "shapes-vlm",
}


def shipped_path(name: str) -> str:
    """The path behind a short name; any other name as it is."""
    return str(SHIPPED.get(name, name))
