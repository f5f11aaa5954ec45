"""`flowrl eval`: held-out scores of a run or a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flowrl.commands.common import Overrides, RunArgument, quiet, target_of
from flowrl.names import UserError


def evaluate_command(
    target: RunArgument,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers here, as JSON.")] = None,
) -> None:
    """Score held-out prompts, by the ODE or as eval.temperature says: a run's weights, or a recipe's model as it is."""
    checked, weights = target_of(target, overrides or [])
    if checked.prompts.heldout is None:
        raise UserError("prompts.heldout: null, but an evaluation needs prompts; set prompts.heldout=FILE")
    quiet()
    from dataclasses import asdict

    from flowrl.build import build_policy, read_inputs, set_up
    from flowrl.loop import evaluate_heldout
    from flowrl.planning import eval_words

    set_up(checked)
    inputs = read_inputs(checked)
    policy = build_policy(checked, weights)
    with Console().status(f"evaluating {len(inputs.heldout)} held-out prompts"):
        result = evaluate_heldout(checked, policy, inputs)
    kinds = result.by("kind")
    table = Table(title=f"{target}: {len(inputs.heldout)} held-out prompts, {eval_words(checked)}")
    table.add_column("reward")
    table.add_column("mean", justify="right")
    for name, mean in result.means().items():
        table.add_row(name, str(mean))
        for kind, part in kinds.get(name, {}).items():
            table.add_row(f"  {kind}", f"{part} (n = {part.number})")
    Console().print(table)
    if output is not None:
        numbers = {name: asdict(m) for name, m in result.means().items()}
        by_kind = {name: {kind: asdict(m) for kind, m in parts.items()} for name, parts in kinds.items()}
        output.write_text(json.dumps({"target": target, "rewards": numbers, "by_kind": by_kind}, indent=2) + "\n")
