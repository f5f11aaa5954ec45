"""Nobody but flowrl/kinds asks which kind of model a recipe trains: read off the sources, and shown on planted ones."""

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flowrl import kinds
from flowrl.kinds import KINDS, kind_of
from flowrl.kinds.language import Language
from flowrl.planning.dry_run import describe
from flowrl.recipe.load import load

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("flowrl", "samplers", "reward_models") for path in (ROOT / package).rglob("*.py"))
ASKING = ROOT / "flowrl" / "kinds"
SECTIONS = {"generation"}  # what a recipe chooses its kind by
NAMES = {kind.name for kind in KINDS}
CLASSES = {type(kind).__name__ for kind in KINDS}
POLICIES = {
    node.name
    for path in (ROOT / "flowrl" / "policies").rglob("*.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and node.name.endswith("Policy")
}


def asks(source: str) -> list[str]:
    """The places of a source that tell kinds of model apart, as "line N: what"."""
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in _asking(ast.parse(source))]


def _asking(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)):
                found = name in SECTIONS
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=name), *_]):
                found = name in SECTIONS
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]):
                found = name in SECTIONS
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
                parts = list(ast.walk(classes))
                named = {n.id for n in parts if isinstance(n, ast.Name)}
                named |= {n.attr for n in parts if isinstance(n, ast.Attribute)}
                found = bool(named & (POLICIES | CLASSES))
            case ast.Compare(left=left, comparators=others):
                sides = [n for side in (left, *others) for n in ast.walk(side)]
                found = any(isinstance(n, ast.Constant) and n.value in NAMES for n in sides)
            case _:
                continue
        if found:
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_else_asks_for_the_kind_of_model(path: Path):
    if not path.is_relative_to(ASKING):
        assert asks(path.read_text(encoding="utf-8")) == [], "ask flowrl.kinds.kind_of(recipe) for what differs"


@pytest.mark.parametrize(
    "source",
    [
        "x = 1 if recipe.generation is None else 2",
        "if self.recipe.generation:\n    pass",
        "given = recipe.generation",
        "if values.get('generation') is not None:\n    pass",
        "language = bool(values['generation'])",
        "language = getattr(recipe, 'generation', None) is None",
        "assert isinstance(policy, LanguagePolicy)",
        "if isinstance(policy, (A, policies.PipelinePolicy)):\n    pass",
        "if isinstance(kind_of(recipe), Language):\n    pass",
        "if kind_of(recipe).name == 'denoising':\n    pass",
        "if kind.name in ('language', 'vision'):\n    pass",
    ],
)
def test_a_planted_question_is_seen(source: str):
    assert len(asks(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "section_of(recipe).max_new_tokens",
        "kind_of(recipe).planning.plan(recipe, 0)",
        "model.generation_config",
        "isinstance(value, Tensor)",
        "if kind == 'lora':\n    pass",
    ],
)
def test_what_asks_nothing_is_let_alone(source: str):
    assert asks(source) == []


def test_policies_are_known_by_their_names():
    assert {"PipelinePolicy", "LanguagePolicy"} <= POLICIES


def test_a_recipe_chooses_its_kind():
    denoising, language = load("tiny_flow_grpo"), load("tiny_lm_grpo")
    assert [kind_of(recipe).name for recipe in (denoising, language)] == ["denoising", "language"]
    assert [kind_of(recipe.model_dump()).name for recipe in (denoising, language)] == ["denoising", "language"]
    assert kind_of({}).name == kind_of({"generation": None}).name == "denoising"


class Reader(Language):
    """A kind that is made of another: its own word for the network, and recipes of its own."""

    name = "reader"
    words = dataclasses.replace(Language.words, network="reader")

    def claims(self, values: Mapping[str, Any]) -> bool:
        return super().claims(values) and values.get("seed") == 7


def test_a_further_kind_is_a_class_and_an_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kinds, "KINDS", (Reader(), *KINDS))
    whole = ["lora=null", "full=true", "objective.kl=0"]
    assert "all weights of the reader" in describe(load("tiny_lm_grpo", [*whole, "seed=7"]))
    assert "all weights of the model" in describe(load("tiny_lm_grpo", [*whole, "seed=8"]))
    assert "all weights of the denoiser" in describe(load("tiny_flow_grpo", [*whole, "seed=7"]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_has_all_its_parts(kind):
    for part, wanted in (
        (kind.planning, ("plan", "eval_plan", "group_plan", "reference_plan", "starts", "check", "arithmetic")),
        (kind.planning, ("eval_forwards", "lines", "eval_words")),
        (kind.building, ("build", "retune")),
        (kind.exporter, ("write", "draw", "redraw", "usage")),
        (kind.proofs, ("BENCH", "PROOFS")),
    ):
        assert [name for name in wanted if not hasattr(part, name)] == []
