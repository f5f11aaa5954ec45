"""What presets of several files are written with."""

from typing import Any

Values = dict[str, dict[str, Any]]  # section -> key -> value

STEPS = 1e-4  # Flow-GRPO's clip
SUMMED = {"combine": "sum", "unbiased": True, "clip": None}  # GRPO's advantage, as TRL has it
REFILL = 9  # DAPO's code draws at most ten batches
