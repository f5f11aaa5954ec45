"""`flowrl world build`: the embedded worlds' models, trained from scratch."""

from pathlib import Path
from typing import Annotated

import typer

from flowrl import names
from flowrl.commands.common import silence_libraries
from flowrl.names import UserError

app = typer.Typer(help="Rebuild the tiny models that ship with flowrl.", no_args_is_help=True)


MODELS = {"shapes": "shapes-flux", "arithmetic": "arithmetic-qwen2", "shapes-rewards": "shapes-rewards"}
MODELS |= {"shapes-style": "shapes-style-clip", "shapes-look": "look-llava"}
STEPS = {  # the options of each world
    "shapes": ("vae_steps", "flow_steps"),
    "arithmetic": ("steps",),
    "shapes-rewards": ("clip_steps", "vlm_steps"),
    "shapes-style": ("steps",),
    "shapes-look": ("eye_steps", "steps"),
}


@app.command("build")
def build_world(
    name: Annotated[
        str,
        typer.Argument(
            help="Which world: shapes, arithmetic, shapes-look, or shapes-rewards and shapes-style for the rewards of "
            "shapes."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the model (default: its name); the same command resumes.")
    ] = None,
    vae_steps: Annotated[int | None, typer.Option(min=1, help="shapes: steps of the autoencoder.")] = None,
    flow_steps: Annotated[int | None, typer.Option(min=1, help="shapes: steps of the flow, in one cycle.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="arithmetic, shapes-style, shapes-look: steps of the model.")
    ] = None,
    eye_steps: Annotated[int | None, typer.Option(min=1, help="shapes-look: steps of the image tower.")] = None,
    clip_steps: Annotated[
        int | None, typer.Option(min=1, help="shapes-rewards: steps of each of the two cycles of shapes-clip.")
    ] = None,
    vlm_steps: Annotated[int | None, typer.Option(min=1, help="shapes-rewards: steps of shapes-vlm.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints when done.")] = False,
) -> None:
    """Pretrain a world's model from scratch, reproducibly from its seed; resumable.

    On 2 cores: shapes 1 hour, arithmetic 5 minutes, shapes-look 8 minutes,
    shapes-rewards 15 minutes, shapes-style 5 minutes.
    """
    if name not in MODELS:
        raise UserError(f"world: got {name!r}, accepted: {', '.join(MODELS)}{names.hint(name, MODELS)}")
    given = {"vae_steps": vae_steps, "flow_steps": flow_steps, "steps": steps}
    given |= {"clip_steps": clip_steps, "vlm_steps": vlm_steps, "eye_steps": eye_steps}
    for option, value in given.items():
        if value is not None and option not in STEPS[name]:
            accepted = ", ".join(f"--{o.replace('_', '-')}" for o in STEPS[name])
            raise UserError(f"--{option.replace('_', '-')}: got {value}, but the world {name} takes only {accepted}")
    silence_libraries()
    output = output or Path(MODELS[name])
    make = {
        "shapes": lambda: _shapes(output, vae_steps, flow_steps, keep),
        "arithmetic": lambda: _arithmetic(output, steps, keep),
        "shapes-rewards": lambda: _shapes_rewards(output, clip_steps, vlm_steps, keep),
        "shapes-style": lambda: _shapes_style(output, steps, keep),
        "shapes-look": lambda: _shapes_look(output, eye_steps, steps, keep),
    }
    accuracy = make[name]()
    typer.echo(f"{output}: held-out {accuracy}")


def _shapes(output: Path, vae_steps: int | None, flow_steps: int | None, keep: bool) -> object:
    from flowrl.worlds.shapes.build import FLOW_CYCLES, VAE_STEPS, build

    cycles = FLOW_CYCLES if flow_steps is None else ((flow_steps, 0.25),)
    return build(output, vae_steps=vae_steps or VAE_STEPS, flow_cycles=cycles, keep=keep)


def _arithmetic(output: Path, steps: int | None, keep: bool) -> object:
    from flowrl.worlds.arithmetic.build import CYCLES, build

    return build(output, cycles=CYCLES if steps is None else ((steps, CYCLES[0][1]),), keep=keep)


def _shapes_rewards(output: Path, clip_steps: int | None, vlm_steps: int | None, keep: bool) -> object:
    from flowrl.worlds.shapes.judges.build import CLIP_STEPS, VLM_STEPS, build

    return build(output, clip_steps=clip_steps or CLIP_STEPS, vlm_steps=vlm_steps or VLM_STEPS, keep=keep)


def _shapes_style(output: Path, steps: int | None, keep: bool) -> object:
    from flowrl.worlds.shapes.judges.style import STEPS, build

    return build(output, steps=steps or STEPS, keep=keep)


def _shapes_look(output: Path, eye_steps: int | None, steps: int | None, keep: bool) -> object:
    from flowrl.worlds.shapes_look.build import CYCLES, EYE_CYCLES, build

    eye = EYE_CYCLES if eye_steps is None else ((eye_steps, EYE_CYCLES[0][1]),)
    share = CYCLES[0][0] / sum(number for number, _ in CYCLES)  # of lessons
    split = (round(share * (steps or 0)), (steps or 0) - round(share * (steps or 0)))
    given = tuple((number, fall) for number, (_, fall) in zip(split, CYCLES, strict=True))
    return build(output, eye_cycles=eye, cycles=CYCLES if steps is None else given, keep=keep)
