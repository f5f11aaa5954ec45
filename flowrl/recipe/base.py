"""How the keys of a recipe are declared: one line each, as pydantic fields."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flowrl.untyped import JSON

LARGEST_WHOLE = 2**32  # counts are loops and sizes: a larger one is a typing error, and no range or tensor takes it
LARGEST = 1e18  # a run computes in float32, which can hold its square


def key(default: Any, accepted: str, *, curve: bool = False, **limits: Any) -> Any:
    """A recipe key: its default (`...` if it is required), what it accepts in words, and the limits.

    curve: whether its value may change during a run (recipe/curves.py).
    """
    return Field(default, description=accepted, json_schema_extra={"curve": True} if curve else None, **limits)


def part(model: type[BaseModel], accepted: str = "a mapping") -> Any:
    """A key that holds a mapping and may be omitted."""
    return Field(default_factory=model, description=accepted)


class Strict(BaseModel):
    """Unknown keys, converted types, NaN, infinity and numbers that nothing can compute with are refused.

    An int may stand for a float.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _sized(cls, value: JSON) -> JSON:
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= LARGEST_WHOLE:
                raise ValueError("whole numbers lie below 2^32")
            if isinstance(number, float) and abs(number) > LARGEST:
                raise ValueError("numbers go up to 1e18, whose square float32 still holds")
        return value
