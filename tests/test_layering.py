"""Who may import whom: the arrows of the architecture, read off the imports of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {"flowrl.contracts", "flowrl.advantages", "flowrl.objectives", "flowrl.learner", "flowrl.iterate"}
LIGHT = {"flowrl.names", "flowrl.batches"}  # standard library only, or nearly
HEAVY = {"transformers", "diffusers", "open_clip", "peft", "cv2", "rapidocr", "timm"}

# file or folder -> what of ours it may import; the longest entry that fits a file counts
MAY_IMPORT: dict[str, set[str]] = {
    "samplers": {"samplers"},
    "reward_models": {"flowrl.contracts", "flowrl.worlds"},
    "flowrl/names.py": set(),
    "flowrl/batches.py": set(),
    "flowrl/contracts.py": set(),
    "flowrl/advantages.py": set(),
    "flowrl/learner.py": set(),
    "flowrl/objectives": {"flowrl.contracts", "flowrl.objectives"},
    "flowrl/iterate.py": CORE,
    "flowrl/evaluate.py": {"flowrl.contracts"},
    "flowrl/pictures.py": set(),
    "flowrl/policies": {"flowrl.contracts", "flowrl.policies", "samplers"} | LIGHT,
    "flowrl/prompts.py": {"flowrl.contracts", "flowrl.worlds"} | LIGHT,
    "flowrl/scoring.py": {"flowrl.contracts"} | LIGHT,
    "flowrl/recipe": {"flowrl.recipe"} | LIGHT,
    "flowrl/planning.py": {"flowrl.recipe", "samplers"} | LIGHT,
    "flowrl/rundir.py": {"flowrl.pictures"} | LIGHT,
    "flowrl/worlds": {"flowrl.worlds", "flowrl.pictures"},
    "flowrl/loading.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/console.py": {"flowrl.evaluate", "flowrl.recipe", "flowrl.policies"},
    "flowrl/run.py": {"flowrl", "samplers"},
    "flowrl/cli.py": {"flowrl"},
}
# third parties that a file or folder may import at module level; None: any
THIRD_PARTY: dict[str, set[str] | None] = {
    "samplers": {"torch"},
    "flowrl/contracts.py": {"torch"},
    "flowrl/advantages.py": {"torch"},
    "flowrl/learner.py": {"torch"},
    "flowrl/objectives": {"torch"},
    "flowrl/iterate.py": {"torch"},
    "flowrl/evaluate.py": {"torch"},
    "flowrl/names.py": set(),
    "flowrl/batches.py": set(),
    "flowrl/recipe": {"pydantic", "yaml"},
}
NOBODY_BUT = {"flowrl.cli": set(), "flowrl.run": {"flowrl/cli.py"}}


def rule(table: dict, file: str):
    """The entry of the longest path that holds the file; a KeyError where there is none."""
    fitting = [p for p in table if file == p or file.startswith(p + "/")]
    return table[max(fitting, key=len)] if fitting else None


def imports(source: str) -> list[tuple[int, str, bool]]:
    """(line, dotted name, at module level) of every import. `from a import b` counts as a.b."""
    tree = ast.parse(source)
    top = {id(n) for n in tree.body}
    typing_only = {id(n) for node in tree.body if isinstance(node, ast.If) for n in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        level = id(node) in top or id(node) in typing_only
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, level) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}", level) for alias in node.names]
    return found


def violations(file: str, source: str) -> list[str]:
    """What a file imports against the rules, one line each."""
    allowed, third = rule(MAY_IMPORT, file), rule(THIRD_PARTY, file)
    if allowed is None and file not in ("flowrl/__init__.py",):
        return [f"{file}: no rule says what it may import; add it to MAY_IMPORT"]
    bad = []
    for line, name, top in imports(source):
        head = name.split(".")[0]
        place = f"{file}:{line}: imports {name}"
        if head in ("flowrl", "samplers", "reward_models"):
            if not any(name == a or name.startswith(a + ".") or a == "flowrl" == head for a in allowed or ()):
                bad.append(f"{place}; allowed of ours: {', '.join(sorted(allowed or ())) or 'nothing'}")
            for guarded, friends in NOBODY_BUT.items():
                if (name == guarded or name.startswith(guarded + ".")) and file not in friends:
                    bad.append(f"{place}; only {', '.join(friends) or 'nothing'} may")
        elif top and third is not None and head not in third and head not in STANDARD:
            bad.append(f"{place}; third parties allowed: {', '.join(sorted(third)) or 'none'}")
        elif top and file.startswith("reward_models/") and head in HEAVY:
            bad.append(f"{place} at module level; a reward imports heavy packages inside its constructor")
    return bad


STANDARD = set(__import__("sys").stdlib_module_names)
FILES = sorted(p for package in ("flowrl", "samplers", "reward_models") for p in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path):
    assert not violations(str(path.relative_to(ROOT)), path.read_text())


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samplers/new.py", "import diffusers"),
        ("samplers/new.py", "from flowrl.contracts import Prompt"),
        ("flowrl/iterate.py", "from flowrl.policies.pipeline import PipelinePolicy"),
        ("flowrl/iterate.py", "from samplers.windows import Plan"),
        ("flowrl/policies/new.py", "def f():\n    from flowrl.iterate import iterate"),
        ("flowrl/recipe/new.py", "import torch"),
        ("reward_models/new.py", "import transformers"),
        ("flowrl/scoring.py", "from flowrl.cli import app"),
        ("flowrl/unheard_of.py", "import torch"),
    ],
)
def test_a_planted_import_is_seen(file: str, source: str):
    assert violations(file, source)
