"""Published combinations of the closed lists: what `objective.preset` puts below a recipe's own values.

A preset has one set of values for denoising steps and one for tokens (a recipe with `generation`), since a clip range
belongs to the size of a log-ratio. A token's log-ratio is of order 0.1. A denoising step's is a mean over all latent
elements and stays within 1e-3 of 0 while the policy moves as much: published ranges go from 1e-3 to 2e-6.

Each file of this folder has the values of some presets in DENOISING or LANGUAGE, and in its docstring a table of what
they are, with their sources. A further file is named in FILES. `flowrl/recipe/papers.py` has a row of each.

No preset of tokens clips advantages. Those of tokens and those without a std add up raw rewards
(`advantage.combine: sum`), as published; for steps the default is each reward on its own.
"""

import re

from flowrl.recipe.presets import begun, credited, denoising, finished, language, seeing, shared
from flowrl.recipe.presets.values import Values

FILES = (shared, denoising, finished, language, begun, credited, seeing)
DENOISING: dict[str, Values] = {}
LANGUAGE: dict[str, Values] = {}
for _file in FILES:
    DENOISING |= getattr(_file, "DENOISING", {})
    LANGUAGE |= getattr(_file, "LANGUAGE", {})
PRESETS = tuple(DENOISING | LANGUAGE)


def texts() -> dict[str, str]:
    """What the tables of FILES say of each preset, on one line."""
    found = {}
    for file in FILES:
        table = (file.__doc__ or "").partition("-------  ")[2].partition("\n\n")[0].partition("\n")[2]
        rows = [row.split(maxsplit=1) for row in re.split(r"\n(?=\w)", table) if row.strip()]
        found |= {name: " ".join(text.split()) for name, text in rows}
    return found
