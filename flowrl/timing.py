"""Seconds among the metrics of an iteration: time_PHASE of each phase, time_PHASE/PART of what lies within one."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def phases(metrics: Mapping[str, Value]) -> list[Value]:
    """The seconds of each phase that the metrics have; parts of phases are not among them."""
    return [value for name, value in metrics.items() if name.startswith("time_") and "/" not in name]
