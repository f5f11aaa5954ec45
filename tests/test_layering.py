"""Who may import whom: the arrows of the architecture, read off the imports of every file."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("flowrl", "samplers", "reward_models")
CORE = {"flowrl.contracts", "flowrl.advantages", "flowrl.objectives", "flowrl.learner", "flowrl.iterate"}
CORE |= {"flowrl.backward", "flowrl.refill", "flowrl.selection"}
LIGHT = {"flowrl.names", "flowrl.parts", "flowrl.batches"}  # standard library only
HEAVY = {
    "transformers",
    "diffusers",
    "open_clip",
    "peft",
    "cv2",
    "rapidocr",
    "timm",
    "rapidfuzz",
    "onnxruntime",
    "openai",
}
HEAVY |= {"fastapi", "uvicorn", "httpx2", "requests"}

# file or folder -> what of ours it may import; the longest entry that fits a file counts
MAY_IMPORT: dict[str, set[str]] = {
    "samplers": {"samplers"},
    "reward_models": {"reward_models", "flowrl.contracts", "flowrl.batches", "flowrl.pictures", "flowrl.worlds"},
    "flowrl/__init__.py": set(),
    "flowrl/names.py": {"flowrl.parts"},
    "flowrl/parts.py": set(),
    "flowrl/terminal.py": set(),
    "flowrl/batches.py": set(),
    "flowrl/contracts.py": set(),
    "flowrl/advantages.py": set(),
    "flowrl/learner.py": set(),
    "flowrl/objectives": {"flowrl.contracts", "flowrl.objectives"},
    "flowrl/backward.py": {"flowrl.contracts", "flowrl.objectives"},
    "flowrl/refill.py": {"flowrl.contracts"},
    "flowrl/selection.py": {"flowrl.contracts"},
    "flowrl/iterate.py": CORE,
    "flowrl/evaluate.py": {"flowrl.contracts", "flowrl.sounds"},
    "flowrl/sounds.py": set(),
    "flowrl/statistics.py": {"flowrl.contracts", "flowrl.evaluate", "flowrl.sounds", "reward_models.parts.looks"}
    | {"reward_models.parts.tones"},
    "flowrl/departure.py": {"flowrl.contracts"},
    "flowrl/alarms.py": set(),
    "flowrl/case.py": set(),
    "flowrl/hacking.py": {"flowrl.case"},
    "flowrl/symptoms.py": {"flowrl.case", "flowrl.hacking"},
    "flowrl/watch.py": {"flowrl.alarms", "flowrl.case", "flowrl.hacking", "flowrl.symptoms"},
    "flowrl/pictures.py": set(),
    "flowrl/policies": {"flowrl.contracts", "flowrl.policies", "flowrl.pictures", "samplers"} | LIGHT,
    "flowrl/prompts.py": {"flowrl.columns", "flowrl.contracts", "flowrl.worlds", "flowrl.prompt_lines"} | LIGHT,
    "flowrl/prompt_lines.py": LIGHT,
    "flowrl/columns.py": {"flowrl.contracts", "flowrl.prompt_lines"} | LIGHT,
    "flowrl/scoring.py": {"flowrl.contracts", "flowrl.composite", "flowrl.score_batches", "flowrl.score_cache"}
    | {"flowrl.lanes", "flowrl.score_results", "flowrl.score_code"}
    | LIGHT,
    "flowrl/composite.py": {"flowrl.contracts", "flowrl.advantages"} | LIGHT,
    "flowrl/score_batches.py": {"flowrl.contracts", "flowrl.batches", "flowrl.pictures"},
    "flowrl/score_code.py": set(),
    "flowrl/score_results.py": {"flowrl.contracts"},
    "flowrl/score_cache.py": {"flowrl.contracts"} | LIGHT,
    "flowrl/lanes.py": set(),
    "flowrl/recipe": {"flowrl.recipe", "flowrl.alarms"} | LIGHT,
    "flowrl/plans.py": {"flowrl.recipe", "samplers"},
    "flowrl/planning.py": {"flowrl.recipe", "flowrl.tokens", "flowrl.plans", "samplers"}
    | {"flowrl.sizes.rewards", "flowrl.sizes.units"}
    | LIGHT,
    "flowrl/credit.py": {"flowrl.contracts", "flowrl.advantages"},
    "flowrl/tokens.py": {"flowrl.recipe", "samplers"},
    "flowrl/machine.py": {"flowrl.__version__"},
    "flowrl/rundir.py": {
        "flowrl.machine",
        "flowrl.tracking",
        "flowrl.evaluate",
        "flowrl.pictures",
        "flowrl.sounds",
        "flowrl.contracts",
    }
    | LIGHT,
    "flowrl/state.py": LIGHT,
    "flowrl/stopping.py": set(),
    "flowrl/resume.py": {"flowrl.state", "flowrl.recipe", "flowrl.contracts"} | LIGHT,
    "flowrl/tracking.py": {"flowrl.pictures", "flowrl.recipe"} | LIGHT,
    "flowrl/worlds": {"flowrl.worlds", "flowrl.pictures"},
    "flowrl/devices.py": {"flowrl.policies.errors"},
    "flowrl/loading.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/console.py": {"flowrl.terminal", "flowrl.evaluate", "flowrl.recipe", "flowrl.policies"},
    "flowrl/remembered.py": set(),
    "flowrl/sizes/shipped.py": {"flowrl"},
    "flowrl/inputs.py": {"flowrl"},
    "flowrl/build.py": {"flowrl"},
    "flowrl/guard.py": {"flowrl"},
    "flowrl/heldout.py": {"flowrl"},
    "flowrl/loop.py": {"flowrl"},
    "flowrl/weights.py": {"flowrl.policies", "flowrl.resume", "flowrl.state"} | LIGHT,
    "flowrl/exports": {"flowrl"},
    "flowrl/sizes": {"flowrl.sizes", "flowrl.recipe", "flowrl.planning", "flowrl.policies", "flowrl.contracts"}
    | {"samplers", "flowrl.remembered"}
    | LIGHT,
    "flowrl/estimate.py": {"flowrl.terminal", "flowrl.planning", "flowrl.recipe"} | LIGHT,
    "flowrl/proofs": {"flowrl", "samplers"},
    "flowrl/check.py": {"flowrl"},
    "flowrl/run.py": {"flowrl"},
    "flowrl/scan": {"flowrl"},
    "flowrl/scan/values.py": {"flowrl.recipe"} | LIGHT,
    "flowrl/report": {"flowrl.report", "flowrl.recipe.scalars"} | LIGHT,
    "flowrl/report/page.py": {"flowrl"},  # its version
    "flowrl/compare": {"flowrl.compare", "flowrl.report", "flowrl.recipe", "flowrl.stopping", "flowrl.__version__"}
    | {"flowrl.terminal"}
    | LIGHT,
    "flowrl/compare/costs.py": {
        "flowrl.terminal",
        "flowrl.compare",
        "flowrl.estimate",
        "flowrl.planning",
        "flowrl.recipe",
    },
    "flowrl/compare/drift.py": {"flowrl"},
    "flowrl/serve": {"flowrl.serve", "flowrl.__version__", "flowrl.contracts", "flowrl.scoring", "flowrl.recipe"}
    | {"reward_models.parts", "flowrl.score_batches", "flowrl.score_cache", "flowrl.score_code"}
    | LIGHT,
    "flowrl/commands": {"flowrl"},
    "flowrl/cli.py": {"flowrl"},
    "flowrl/__main__.py": {"flowrl.cli"},
}
# file or folder -> the third parties it may import, at any depth; any where none is named
THIRD_PARTY: dict[str, set[str]] = {
    "samplers": {"torch"},
    "flowrl/names.py": set(),
    "flowrl/parts.py": set(),
    "flowrl/batches.py": set(),
    "flowrl/contracts.py": {"torch"},
    "flowrl/advantages.py": {"torch"},
    "flowrl/learner.py": {"torch"},
    "flowrl/objectives": {"torch"},
    "flowrl/backward.py": {"torch"},
    "flowrl/refill.py": {"torch"},
    "flowrl/selection.py": {"torch"},
    "flowrl/iterate.py": {"torch"},
    "flowrl/evaluate.py": {"torch"},
    "flowrl/departure.py": {"torch"},
    "flowrl/statistics.py": {"torch"},
    "flowrl/alarms.py": set(),
    "flowrl/case.py": set(),
    "flowrl/hacking.py": set(),
    "flowrl/symptoms.py": set(),
    "flowrl/watch.py": set(),
    "flowrl/scoring.py": {"torch"},
    "flowrl/lanes.py": set(),
    "flowrl/report": {"jinja2", "yaml", "PIL"},  # a page is made without torch
    "flowrl/scan/values.py": set(),  # values are refused before torch is loaded
    "flowrl/compare": {"jinja2", "yaml", "PIL", "rich", "scipy", "matplotlib"},
    "flowrl/compare/drift.py": {"torch"},
    "flowrl/serve": {"fastapi", "starlette", "uvicorn", "pydantic"},  # the server's own process needs no torch
    "flowrl/serve/worker.py": {"torch"},  # a worker knows no HTTP
    "flowrl/recipe": {"pydantic", "yaml"},  # a recipe is refused before torch is loaded
}
# file or folder -> third parties that it may import inside functions only
LATE: dict[str, set[str]] = {
    "reward_models": HEAVY,  # a reward's packages are its own: whoever does not use it needs none of them
    "flowrl/cli.py": HEAVY | {"torch"},
    "flowrl/commands": HEAVY | {"torch"},
    "flowrl/prompts.py": {"datasets", "torch"},
    "flowrl/compare": {"matplotlib"},  # an extra
    "flowrl/tracking.py": {"accelerate", "mlflow", "trackio"},  # a tracker's package is its own
}
# module -> the only files that may import it
FRIENDS: dict[str, set[str]] = {
    "flowrl.cli": {"flowrl/__main__.py"},
    "flowrl.commands": {"flowrl/cli.py", "flowrl/commands"},
    "flowrl.serve": {"flowrl/commands", "flowrl/serve"},
    "flowrl.run": {"flowrl/commands"},
    "flowrl.loop": {"flowrl/run.py", "flowrl/commands"},
}
T = TypeVar("T")


class Import(NamedTuple):
    """An import in a file: `from a import b` has the name a.b; late ones stand inside a function."""

    line: int
    name: str
    late: bool


def imports(source: str, file: str) -> Iterator[Import]:
    """Every import in the source of a file, relative ones resolved, those by `import_module("...")` included."""

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = Path(file).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(node.lineno, f"{module}.{alias.name}", late) for alias in node.names)
        elif isinstance(node, ast.Call) and _text(node.func).split(".")[-1] in ("import_module", "__import__"):
            named = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from (Import(node.lineno, name, late) for name in named)
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(source), late=False)


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def rule(table: Mapping[str, T], file: str) -> T | None:
    """The entry of the longest path that holds the file, None where there is none."""
    fitting = [path for path in table if file == path or file.startswith(path + "/")]
    return table[max(fitting, key=len)] if fitting else None


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of the modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def violations(file: str, source: str) -> list[str]:
    """What a file imports against the rules, a line each: file, line, import, rule."""
    allowed, third, late_only = rule(MAY_IMPORT, file), rule(THIRD_PARTY, file), rule(LATE, file) or set()
    if allowed is None:
        return [f"{file}: no rule says what it may import; give it one in MAY_IMPORT of {Path(__file__).name}"]
    bad = []
    for line, name, late in imports(source, file):
        head = name.split(".")[0]
        place = f"{file}:{line}: imports {name}"
        if head in OURS:
            if not within(name, allowed):
                bad.append(f"{place}; of ours it may import {', '.join(sorted(allowed)) or 'nothing'}")
            for module, friends in FRIENDS.items():
                if within(name, {module}) and not any(file == f or file.startswith(f + "/") for f in friends):
                    bad.append(f"{place}; only {', '.join(friends) or 'the entry point'} may")
        elif head not in sys.stdlib_module_names:
            if third is not None and head not in third:
                bad.append(f"{place}; third parties it may import: {', '.join(sorted(third)) or 'none'}")
            if not late and head in late_only:
                bad.append(f"{place} at module level; it may do so inside a function only")
    return bad


FILES = sorted(path.relative_to(ROOT).as_posix() for package in OURS for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_arrows(file: str):
    bad = violations(file, (ROOT / file).read_text(encoding="utf-8"))
    assert not bad, "\n".join(bad)


def test_every_rule_is_about_something():
    assert len(FILES) > 40
    for table in (MAY_IMPORT, THIRD_PARTY, LATE):
        assert not [path for path in table if not (ROOT / path).exists()]
    named = {module for modules in MAY_IMPORT.values() for module in modules} | set(FRIENDS)
    for module in named - {"flowrl.__version__"}:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"a rule names {module}, which is not there"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samplers/new.py", "import diffusers"),
        ("samplers/new.py", "def f():\n    import numpy"),
        ("samplers/new.py", "from flowrl.contracts import Prompt"),
        ("flowrl/iterate.py", "from flowrl.policies.pipeline import PipelinePolicy"),
        ("flowrl/iterate.py", "from flowrl.recipe.schema import Recipe"),
        ("flowrl/iterate.py", "from samplers.windows import Plan"),
        ("flowrl/iterate.py", "from reward_models import shapes"),
        ("flowrl/iterate.py", "from flowrl import policies"),
        ("flowrl/iterate.py", "from . import policies"),
        ("flowrl/iterate.py", "from .policies.pipeline import PipelinePolicy"),
        ("flowrl/objectives/new.py", "from ..policies import gates"),
        ("flowrl/iterate.py", "def f():\n    import transformers"),
        ("flowrl/learner.py", "try:\n    import peft\nexcept ImportError:\n    pass"),
        ("flowrl/contracts.py", "import importlib\nimportlib.import_module('flowrl.policies')"),
        ("flowrl/policies/new.py", "def f():\n    from flowrl.iterate import iterate"),
        ("flowrl/recipe/new.py", "import torch"),
        ("reward_models/new.py", "import transformers"),
        ("reward_models/new.py", "if True:\n    import open_clip"),
        ("reward_models/new.py", "class Reward:\n    from diffusers import DiffusionPipeline"),
        ("flowrl/scoring.py", "from flowrl.cli import app"),
        ("flowrl/run.py", "from flowrl import cli"),
        ("flowrl/loading.py", "from flowrl.run import run"),
        ("flowrl/unheard_of.py", "import math"),
    ],
)
def test_a_planted_import_is_seen(file: str, source: str):
    (bad, *_) = violations(file, source)
    assert bad.startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samplers/new.py", "import math\nimport torch\nfrom samplers.gaussian import Gaussian\nfrom . import windows"),
        ("reward_models/new.py", "def f():\n    import transformers"),
        ("reward_models/new.py", "from PIL import Image\nfrom torchvision import transforms"),
        ("flowrl/policies/new.py", "import diffusers\nfrom samplers.windows import Plan"),
        ("flowrl/objectives/new.py", "from .divergence import k3\nfrom ..contracts import Score"),
    ],
)
def test_an_allowed_import_is_not(file: str, source: str):
    assert violations(file, source) == []
