"""Makes `flowrl/planning/remembered.json`: what the plans of shipped recipes need, so that they load no big library.

python -m flowrl.planning.sizes.shipped       # about four minutes of one core
"""

import json
import os
import tempfile
from pathlib import Path

from flowrl import names
from flowrl.kinds import kind_of
from flowrl.planning import remembered
from flowrl.planning.sizes import encoders, fits
from flowrl.planning.sizes.memory import configs_of
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.load import load
from flowrl.untyped import JSON


def find_facts() -> dict[str, JSON]:
    """The facts of all shipped recipes, measured afresh."""
    before = remembered.SHIPPED, os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        remembered.SHIPPED = Path(folder) / "none"
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            for path in names.recipes().values():
                recipe = load(str(path))
                train, _, _ = planned_prompts(recipe)
                kind_of(recipe).planning.flops(recipe, train or [])
                if configs_of(recipe.model) is not None:  # a language model's plan loads transformers in any case
                    fits.lines(recipe, train or [])
                if recipe.offload:
                    encoders.encoded_bytes(recipe, train or [])
            (file,) = Path(folder, "flowrl").glob("*.json")
            return json.loads(file.read_text(encoding="utf-8"))
        finally:
            remembered.SHIPPED = before[0]
            os.environ.pop("XDG_CACHE_HOME") if before[1] is None else os.environ.update(XDG_CACHE_HOME=before[1])


def main() -> None:
    """Writes the file afresh."""
    facts = find_facts()
    remembered.SHIPPED.write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    print(f"{remembered.SHIPPED}: {len(facts)} facts")


if __name__ == "__main__":
    main()
