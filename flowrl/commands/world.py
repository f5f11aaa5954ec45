"""`flowrl world build`: the embedded worlds' models, from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from flowrl import names
from flowrl.commands.common import quiet
from flowrl.names import UserError

app = typer.Typer(help="The embedded worlds: tiny models that are made and checked here.", no_args_is_help=True)


@app.command("build")
def build_world(
    name: Annotated[str, typer.Argument(help="Which world; there is `shapes`.")],
    output: Annotated[Path, typer.Option(help="Folder for the pipeline; called again, it goes on.")] = Path(
        "shapes-flux"
    ),
    vae_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the autoencoder.")] = None,
    flow_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the flow model, in one cycle.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints when done.")] = False,
) -> None:
    """Pretrain a world's model from nothing but seeds (shapes: about an hour on 2 cores); resumable."""
    if name != "shapes":
        raise UserError(f"world: got {name!r}, accepted: shapes{names.hint(name, ['shapes'])}")
    quiet()
    from flowrl.worlds.shapes.build import FLOW_CYCLES, VAE_STEPS, build

    cycles = FLOW_CYCLES if flow_steps is None else ((flow_steps, 0.25),)
    accuracy = build(output, vae_steps=vae_steps or VAE_STEPS, flow_cycles=cycles, keep=keep)
    typer.echo(f"{output}: held-out {accuracy}")
