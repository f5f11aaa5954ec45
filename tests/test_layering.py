"""Who may import whom: the arrows of the architecture, read off the imports of every file."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("flowrl", "samplers", "reward_models")
LIGHT = {
    "flowrl.names",
    "flowrl.signatures",
    "flowrl.parts",
    "flowrl.terminal",
    "flowrl.untyped",
    "flowrl.known",
    "flowrl.timing",
}
BATCHES = {"flowrl.core.batches"}  # standard library only
KIND_PARTS = {"flowrl.planning", "flowrl.policies", "flowrl.exports", "flowrl.checking", "flowrl.contracts"}
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

# room or file -> what of ours it may import; the longest entry that fits a file counts. Rooms from the ground up.
MAY_IMPORT: dict[str, set[str]] = {
    "flowrl/__init__.py": set(),
    "flowrl/names.py": {"flowrl.parts", "flowrl.signatures"},
    "flowrl/signatures.py": set(),
    "flowrl/terminal.py": set(),
    "flowrl/untyped.py": set(),
    "flowrl/timing.py": set(),
    "flowrl/parts.py": set(),
    "flowrl/known": {"flowrl.known", "flowrl.names", "flowrl.untyped"},
    "flowrl/contracts": {"flowrl.contracts"},
    "flowrl/media": {"flowrl.media", "flowrl.contracts"},
    "flowrl/media/pictures.py": set(),
    "flowrl/environments/__init__.py": set(),
    "flowrl/environments/tools": {"flowrl.environments", "flowrl.contracts", "flowrl.media"} | LIGHT,
    "flowrl/environments/tools/parts/sandbox/inside.py": set(),
    "samplers": {"samplers"},
    "flowrl/core": {"flowrl.contracts", "flowrl.core", "flowrl.media"},
    "flowrl/core/batches.py": set(),
    "flowrl/core/advantages/combined.py": {"flowrl.core.advantages.baselines", "flowrl.core.advantages.normalise"},
    "flowrl/core/advantages/normalise.py": {"flowrl.core.advantages.baselines"},
    "flowrl/core/advantages/returns.py": {"flowrl.core.advantages.normalise"},
    "flowrl/core/advantages/baselines.py": set(),
    "flowrl/core/learning/copies.py": {"flowrl.core.learning.shards"},
    "flowrl/core/learning/shards.py": set(),
    "flowrl/core/learning/learner.py": {"flowrl.core.learning"},
    "flowrl/core/learning/scaling.py": set(),
    "flowrl/core/learning/lr_schedules.py": set(),
    "flowrl/core/learning/optimizers.py": {"flowrl.core.learning.shards"},
    "flowrl/core/objectives": {"flowrl.contracts", "flowrl.core.objectives"},
    "flowrl/worlds": {"flowrl.worlds", "flowrl.media", "flowrl.untyped"},
    "reward_models": {"reward_models", "flowrl.contracts", "flowrl.media", "flowrl.worlds", "flowrl.untyped"} | BATCHES,
    "flowrl/reading": {"flowrl.reading", "flowrl.contracts", "flowrl.worlds", "flowrl.media.files"} | LIGHT,
    "flowrl/reading/inputs.py": {"flowrl"},
    "flowrl/scoring": {"flowrl.scoring", "flowrl.contracts", "flowrl.media", "flowrl.core.advantages.combined"}
    | {"flowrl.recipe.keys.rewards"}
    | BATCHES
    | LIGHT,
    "flowrl/watch": {"flowrl.watch", "flowrl.contracts", "flowrl.core.evaluation", "flowrl.media"}
    | {"reward_models.parts.vision.looks", "reward_models.parts.vision.tones"},
    "flowrl/watch/alarms.py": set(),
    "flowrl/recipe": {"flowrl.recipe", "flowrl.kinds", "flowrl.watch.alarms"} | LIGHT,
    "flowrl/recipe/keys": {"flowrl.recipe.keys", "flowrl.recipe.base", "flowrl.recipe.errors", "flowrl.recipe.sections"}
    | {"flowrl.recipe.curves"}
    | LIGHT,
    "flowrl/recipe/schema.py": {"flowrl.recipe.keys", "flowrl.recipe.base", "flowrl.recipe.sections"}
    | {"flowrl.recipe.curves"}
    | LIGHT,
    "flowrl/kinds": {"flowrl.kinds", "flowrl.recipe", "flowrl.media.files"} | KIND_PARTS | LIGHT,
    "flowrl/environments": {"flowrl.environments", "flowrl.contracts", "flowrl.media"} | LIGHT,
    "flowrl/environments/building.py": {"flowrl.environments", "flowrl.contracts", "flowrl.recipe"} | LIGHT,
    "flowrl/policies": {"flowrl.policies", "flowrl.environments", "flowrl.contracts", "flowrl.media", "samplers"}
    | BATCHES
    | LIGHT,
    "flowrl/policies/weights.py": {"flowrl.policies", "flowrl.contracts", "flowrl.core.learning.copies"},
    "flowrl/policies/loading.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/policies/quantising.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/policies/attending.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/policies/own.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/policies/trainable.py": {"flowrl.policies", "flowrl.recipe"} | LIGHT,
    "flowrl/policies/pipelines/building.py": {"flowrl.policies", "flowrl.recipe", "flowrl.contracts"} | LIGHT,
    "flowrl/policies/language/building.py": {"flowrl.policies", "flowrl.recipe", "flowrl.kinds", "flowrl.contracts"}
    | {"flowrl.environments", "flowrl.engines"}
    | LIGHT,
    "flowrl/engines/board.py": set(),
    "flowrl/engines/ranks.py": {"flowrl.engines"} | LIGHT,
    "flowrl/engines/launch.py": set(),
    "flowrl/engines/rounds.py": {"flowrl.untyped"},
    "flowrl/engines/shard_files.py": set(),
    "flowrl/engines/sharding.py": {"flowrl.engines", "flowrl.recipe.keys.parallel"} | LIGHT,
    "flowrl/engines": {"flowrl.engines", "flowrl.policies", "flowrl.contracts", "flowrl.recipe", "flowrl.planning"}
    | {"flowrl.core.learning.shards"}
    | {"flowrl.environments", "flowrl.media", "samplers", "reward_models.parts"}
    | LIGHT,
    "flowrl/planning": {"flowrl.planning", "flowrl.recipe", "flowrl.kinds", "samplers"} | LIGHT | {"flowrl.contracts"},
    "flowrl/planning/sizes": {"flowrl.planning", "flowrl.recipe", "flowrl.policies", "flowrl.contracts", "samplers"}
    | LIGHT,
    "flowrl/planning/sizes/token_passes.py": {"flowrl.planning", "flowrl.policies", "flowrl.contracts", "samplers"}
    | {"flowrl.core.learning.activations"}
    | LIGHT,
    "flowrl/planning/sizes/pictures.py": {"flowrl.contracts", "flowrl.media.files"},
    "flowrl/planning/sizes/seeing.py": {"flowrl.policies", "flowrl.contracts", "flowrl.media.files"} | LIGHT,
    "flowrl/planning/loss_trials.py": {"flowrl.planning", "flowrl.recipe", "flowrl.contracts", "flowrl.core"},
    "flowrl/planning/remembered.py": {"flowrl.names"},
    "flowrl/planning/sizes/shipped.py": {"flowrl"},
    "flowrl/planning/sizes/fits.py": {"flowrl.planning", "flowrl.recipe", "flowrl.kinds", "flowrl.contracts"}
    | {"flowrl.policies.devices"},
    "flowrl/planning/sizes/text.py": {"flowrl.planning", "flowrl.recipe", "flowrl.kinds", "flowrl.contracts"},
    "flowrl/build.py": {"flowrl"},
    "flowrl/learners.py": {"flowrl"},
    "flowrl/report": {"flowrl.report", "flowrl.recipe.scalars"} | LIGHT,
    "flowrl/report/page.py": {"flowrl"},  # its version
    "flowrl/runs": {"flowrl"},
    "flowrl/runs/machine.py": {"flowrl.__version__"},
    "flowrl/runs/stopping.py": set(),
    "flowrl/runs/checkpoints.py": {"flowrl.core.learning.shards", "flowrl.runs.checkpoint_files"} | LIGHT,
    "flowrl/runs/checkpoint_files.py": {"flowrl.core.learning.shards", "flowrl.engines.shard_files"} | LIGHT,
    "flowrl/exports": {"flowrl"},
    "flowrl/checking": {"flowrl", "samplers"},
    "flowrl/scan": {"flowrl"},
    "flowrl/preferences": {"flowrl", "reward_models", "samplers"},
    "flowrl/scan/values.py": {"flowrl.recipe"} | LIGHT,
    "flowrl/compare": {"flowrl.compare", "flowrl.report", "flowrl.recipe", "flowrl.kinds", "flowrl.runs.stopping"}
    | {"flowrl.__version__"}
    | LIGHT,
    "flowrl/compare/costs.py": {"flowrl.compare", "flowrl.planning", "flowrl.recipe"} | LIGHT,
    "flowrl/compare/forwards.py": {"flowrl.planning", "flowrl.recipe"},
    "flowrl/compare/drift.py": {"flowrl"},
    "flowrl/serve": {"flowrl.serve", "flowrl.__version__", "flowrl.contracts", "flowrl.scoring", "flowrl.recipe"}
    | {"reward_models.parts"}
    | LIGHT,
    "flowrl/commands": {"flowrl"},
    "flowrl/cli.py": {"flowrl"},
    "flowrl/__main__.py": {"flowrl.cli"},
}
# room or file -> the third parties it may import, at any depth; any where none is named
THIRD_PARTY: dict[str, set[str]] = {
    "flowrl/core/learning/optimizers.py": {"torch", "bitsandbytes"},
    "samplers": {"torch"},
    "flowrl/names.py": set(),
    "flowrl/untyped.py": set(),
    "flowrl/signatures.py": set(),
    "flowrl/terminal.py": {"rich"},
    "flowrl/known": set(),  # a recipe is checked with it
    "flowrl/contracts": {"torch"},
    "flowrl/environments/tools/parts/sandbox": {"psutil"},
    "flowrl/environments/tools/parts/sandbox/inside.py": set(),  # its source runs where there may be nothing else
    "flowrl/core": {"torch"},
    "flowrl/core/batches.py": set(),
    "flowrl/watch": {"torch"},
    "flowrl/watch/alarms.py": set(),
    "flowrl/scoring/scorer.py": {"torch"},
    "flowrl/scoring/lanes.py": set(),
    "flowrl/report": {"jinja2", "yaml", "PIL"},  # a page is made without torch
    "flowrl/scan/values.py": set(),  # values are refused before torch is loaded
    "flowrl/compare": {"jinja2", "yaml", "PIL", "rich", "scipy", "matplotlib"},
    "flowrl/compare/drift.py": {"torch"},
    "flowrl/serve": {"fastapi", "starlette", "uvicorn", "pydantic"},  # the server's own process needs no torch
    "flowrl/engines": {"fastapi", "uvicorn", "pydantic", "torch", "peft", "safetensors"},
    "flowrl/engines/board.py": {"torch"},
    "flowrl/engines/ranks.py": {"torch"},
    "flowrl/engines/launch.py": {"torch"},
    "flowrl/engines/rounds.py": {"torch"},
    "flowrl/engines/shard_files.py": {"torch"},
    "flowrl/engines/sharding.py": {"torch"},
    "flowrl/serve/worker.py": {"torch"},  # a worker knows no HTTP
    "flowrl/recipe": {"pydantic", "yaml"},  # a recipe is refused before torch is loaded
    "flowrl/kinds": {"torch"},
}
# room or file -> what it may import inside functions (or for annotations) only: third parties, and rooms above it
LATE: dict[str, set[str]] = {
    "flowrl/kinds": KIND_PARTS | {"torch"},  # a recipe asks its kind before torch is loaded
    "reward_models": HEAVY,  # a reward's packages are its own: whoever does not use it needs none of them
    "flowrl/cli.py": HEAVY | {"torch"},
    "flowrl/commands": HEAVY | {"torch"},
    "flowrl/reading/data_sets.py": {"datasets", "torch"},
    "flowrl/compare": {"matplotlib"},  # an extra
    "flowrl/policies/language/building.py": {"flowrl.engines"},  # which stands on policies
    "flowrl/planning/denoising.py": {"flowrl.contracts"},  # for annotations: plans are made without torch
    "flowrl/planning/language.py": {"flowrl.contracts"},
    "flowrl/core/learning/optimizers.py": {"bitsandbytes"},  # a user's own package
    "flowrl/runs/checkpoint_files.py": {"flowrl.engines"},  # torch.distributed.checkpoint loads when parts are read
    "flowrl/runs/tracking.py": {"accelerate", "mlflow", "trackio"},  # a tracker's package is its own
}
# module -> the only files that may import it
FRIENDS: dict[str, set[str]] = {
    "flowrl.cli": {"flowrl/__main__.py"},
    "flowrl.commands": {"flowrl/cli.py", "flowrl/commands"},
    "flowrl.serve": {"flowrl/commands", "flowrl/serve"},
    "flowrl.runs.start": {"flowrl/commands"},
    "flowrl.runs.loop": {"flowrl/runs/start.py", "flowrl/commands"},
}
T = TypeVar("T")


class Import(NamedTuple):
    """An import in a file: `from a import b` has the name a.b; late ones stand in a function, or for annotations."""

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
        inside |= isinstance(node, ast.If) and _text(node.test) == "TYPE_CHECKING"
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
            if not late and within(name, late_only):
                bad.append(f"{place} at module level; it may do so inside a function only")
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
        ("flowrl/core/iterate.py", "from flowrl.policies.pipelines.policy import PipelinePolicy"),
        ("flowrl/core/iterate.py", "from flowrl.recipe.schema import Recipe"),
        ("flowrl/core/iterate.py", "from samplers.windows import Plan"),
        ("flowrl/core/iterate.py", "from reward_models import shapes"),
        ("flowrl/core/iterate.py", "from flowrl import policies"),
        ("flowrl/core/iterate.py", "from .. import policies"),
        ("flowrl/core/iterate.py", "from ..policies.pipelines.policy import PipelinePolicy"),
        ("flowrl/core/objectives/new.py", "from ...policies.pipelines import gates"),
        ("flowrl/core/iterate.py", "def f():\n    import transformers"),
        ("flowrl/core/learning/learner.py", "try:\n    import peft\nexcept ImportError:\n    pass"),
        ("flowrl/contracts/samples.py", "import importlib\nimportlib.import_module('flowrl.policies')"),
        ("flowrl/policies/new.py", "def f():\n    from flowrl.core.iterate import iterate"),
        ("flowrl/recipe/new.py", "import torch"),
        ("flowrl/recipe/keys/new.py", "from flowrl.recipe.schema import Recipe"),
        ("flowrl/recipe/keys/new.py", "from flowrl.recipe.checks.views import check_views"),
        ("flowrl/kinds/new.py", "from flowrl.planning import walks"),
        ("flowrl/kinds/new.py", "def f():\n    from flowrl.runs.start import run"),
        ("flowrl/kinds/new.py", "if TYPING:\n    import torch"),
        ("reward_models/new.py", "import transformers"),
        ("reward_models/new.py", "if True:\n    import open_clip"),
        ("reward_models/new.py", "class Reward:\n    from diffusers import DiffusionPipeline"),
        ("flowrl/scoring/scorer.py", "from flowrl.cli import app"),
        ("flowrl/runs/start.py", "from flowrl import cli"),
        ("flowrl/policies/loading.py", "from flowrl.runs.start import run"),
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
        ("flowrl/kinds/new.py", "if TYPE_CHECKING:\n    import torch\ndef f():\n    from flowrl.planning import walks"),
        ("flowrl/core/objectives/new.py", "from .divergence import k3\nfrom ...contracts import Score"),
    ],
)
def test_an_allowed_import_is_not(file: str, source: str):
    assert violations(file, source) == []


def test_processes_talk_to_each_other_in_one_room():
    used = {
        file for file in FILES for one in imports((ROOT / file).read_text(), file) if "torch.distributed" in one.name
    }
    assert used == {f"flowrl/engines/{name}.py" for name in ("ranks", "board", "launch", "sharding", "shard_files")}
