"""`flowrl sample`: pictures of a user's own prompts, or a language model's completions of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flowrl.commands.common import RunArgument, quiet, target_of
from flowrl.names import UserError


def sample(
    target: RunArgument,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to draw or answer, and KEY=VALUE overrides.")
    ],
    output: Annotated[Path | None, typer.Option(help="The PNG to write (samples.png); texts go to a file too.")] = None,
    number: Annotated[int, typer.Option(min=1, help="Samples a prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Names the noise.")] = 0,
) -> None:
    """Draw samples of your own prompts, a row each; a language model's are printed."""
    texts = [p for p in prompts if not _is_override(p)]
    if not texts:
        raise UserError(f"PROMPT: got only overrides ({', '.join(prompts)}); give at least one text to draw")
    checked, weights = target_of(target, [p for p in prompts if _is_override(p)])
    quiet()
    import torch

    from flowrl.build import build_policy, set_up
    from flowrl.contracts import Prompt
    from flowrl.evaluate import still
    from flowrl.pictures import save_grid
    from flowrl.planning import eval_plan

    set_up(checked)
    policy = build_policy(checked, weights)
    wanted = [Prompt(text, text) for text in texts]
    with torch.no_grad(), Console().status("drawing"):
        rollout = policy.rollout(wanted, group_size=number, plan=eval_plan(checked), seed=seed)
    completions, pictures = rollout.samples.texts, still(rollout.samples)
    if completions is not None:
        lines = [f"{p.text}  ->  {text}" for p, text in zip(rollout.samples.prompts, completions, strict=True)]
        typer.echo("\n".join(lines))
        if output is not None:
            output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    if pictures is None:
        raise UserError(f"{target}: its samples are neither pictures nor texts")
    output = output or Path("samples.png")
    save_grid(pictures, output, columns=number)
    typer.echo(f"{output}: {len(texts)} x {number} samples")


def _is_override(text: str) -> bool:
    head, mark, _ = text.partition("=")
    return bool(mark) and head.replace(".", "").replace("_", "").isalnum()
