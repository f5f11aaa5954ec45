"""How the keys of a recipe are written down: one line each, in pydantic's terms."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def key(default: Any, accepted: str, **limits: Any) -> Any:
    """A recipe key: its default (`...` where one must be given), what it accepts in words, and the limits of that."""
    return Field(default, description=accepted, **limits)


def part(model: type[BaseModel]) -> Any:
    """A key that holds a mapping and may be left out."""
    return Field(default_factory=model, description="a mapping")


class Strict(BaseModel):
    """Unknown keys, converted types, NaN and infinity are refused; an int may stand for a float."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
