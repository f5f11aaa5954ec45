"""`flowrl train-reward`: fits a reward to pairs, such as a person's own votes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowrl.commands.common import silence_libraries
from flowrl.names import UserError
from flowrl.terminal import output_console


def train_reward_command(
    pairs: Annotated[str, typer.Argument(help="Pairs: a .jsonl, .json or .csv file, or a data set's name.")],
    kind: Annotated[
        Literal["clip", "aesthetic"], typer.Option(help="clip: judges pictures and prompts; aesthetic: pictures alone.")
    ] = "clip",
    model: Annotated[
        str, typer.Option(help="The vision model: shapes-clip, a folder, a hub id or an open_clip architecture.")
    ] = "openai/clip-vit-large-patch14",
    weights: Annotated[str | None, typer.Option(help="Weights of an open_clip architecture: a tag or a file.")] = None,
    features: Annotated[
        Literal["embedding", "patches"],
        typer.Option(help="For kind aesthetic; patches show sizes and places better than the embedding."),
    ] = "embedding",
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the fitted head.")] = Path("runs/reward"),
    heldout: Annotated[float, typer.Option(min=0.05, max=0.5, help="Share of held-out prompts.")] = 0.2,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many pairs, the first ones.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses the held-out prompts.")] = 0,
) -> None:
    """Fit a reward to preference pairs, print its held-out accuracy, and show how a recipe uses it."""
    if (output / "head.safetensors").exists():
        raise UserError(f"--output: {output} holds a head already; name another folder")
    from flowrl.reading.pairs import load

    prompts = load(pairs, limit=limit)
    silence_libraries()
    from flowrl.policies.devices import device_of
    from flowrl.preferences.fit import HEAD, USES, fit

    with output_console().status("embedding") as status:
        result = fit(
            prompts,
            kind,
            output,
            model=model,
            weights=weights,
            features=features,
            heldout=heldout,
            device=device_of(device, "--device"),
            seed=seed,
            tell=lambda pictures: status.update(f"{pictures} pictures embedded"),
        )
    before = "" if result.before is None else f"; the plain cosine {result.before:.3f}"
    typer.echo(f"{result.pairs} pairs fitted; of {result.heldout} held out it orders {result.accuracy:.3f}{before}")
    given = f"head: {output / HEAD}, model: {model}" + ("" if weights is None else f", weights: {weights}")
    given += "" if features == "embedding" else f", features: {features}"
    typer.echo(f"rewards: {{votes: {{use: {USES[kind]}, args: {{{given}}}}}}}")
