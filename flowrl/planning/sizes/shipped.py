"""Makes `flowrl/remembered.json`: what the plans of the recipes that ship need, so that they load no big library.

python -m flowrl.planning.sizes.shipped
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from flowrl import names
from flowrl.planning import remembered
from flowrl.planning.sizes.memory import sizes
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.load import load


def found_out() -> dict[str, Any]:
    """The facts of all recipes that ship, found out anew."""
    before = remembered.SHIPPED, os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        remembered.SHIPPED = Path(folder) / "none"
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            for path in names.recipes().values():
                recipe = load(str(path))
                train, _, _ = planned_prompts(recipe)
                sizes(recipe, train or [])
            (file,) = Path(folder, "flowrl").glob("*.json")
            return json.loads(file.read_text(encoding="utf-8"))
        finally:
            remembered.SHIPPED = before[0]
            os.environ.pop("XDG_CACHE_HOME") if before[1] is None else os.environ.update(XDG_CACHE_HOME=before[1])


def main() -> None:
    """Writes the file anew."""
    facts = found_out()
    remembered.SHIPPED.write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    print(f"{remembered.SHIPPED}: {len(facts)} facts")


if __name__ == "__main__":
    main()
