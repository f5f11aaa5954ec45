"""What stands in brackets in names and prompts is shown as it is, and never taken for markup."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console as RichConsole

from flowrl.commands.evaluate import _table
from flowrl.contracts import Prompt
from flowrl.core.evaluation import Evaluation
from flowrl.recipe.load import load
from flowrl.runs.console import Console

BRACKETS = ["[/red]", "[bold]x", "a[1]", "[link=x]y[/link]"]


@pytest.fixture
def shown() -> tuple[RichConsole, io.StringIO]:
    file = io.StringIO()
    return RichConsole(file=file, width=300), file


@pytest.mark.parametrize("text", BRACKETS)
def test_a_run_shows_brackets_as_they_are(text, shown):
    rich, file = shown
    console = Console(rich)
    layer = torch.nn.Linear(2, 2)
    policy = SimpleNamespace(trainable=layer.parameters, modules={"x": layer}, device="cpu")
    recipe = load("tiny_flow_grpo").model_copy(update={"model": text})
    console.started(recipe, policy, Path(text))  # pyright: ignore[reportArgumentType]
    console.note(text)
    with console.working(text):
        pass
    prompts = [Prompt("a", text, meta={"kind": text}), Prompt("b", text, meta={"kind": text})]
    found = {i: Evaluation(prompts, {"r": torch.tensor([0.0, 1.0])}, None) for i in (0, 1)}
    console.evaluated(1, found[1])
    console.finished(found, Path(text), Path(text) / "lora", 1.0)
    rich.print(_table({"rewards": found[1]}, f"{text}: 2 prompts"))
    lines = [line for line in file.getvalue().splitlines() if text in line]
    assert len(lines) >= 7, file.getvalue()
