"""The part of --dry-run about parameters and memory."""

from collections.abc import Sequence

from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.planning.sizes.encoders import lines as encoder_lines
from flowrl.planning.sizes.fits import lines as fits_lines
from flowrl.planning.sizes.flops import lines as flop_lines
from flowrl.planning.sizes.memory import Sizes, reference_bytes
from flowrl.planning.sizes.prompt_tokens import ASSUMED
from flowrl.planning.sizes.shared import told
from flowrl.planning.sizes.units import count_text, size_text
from flowrl.recipe.schema import Recipe

INDENT = " " * 12
COLUMNS = ("weights", "optimizer", "trajectory", "activations")


def describe_sizes(recipe: Recipe, prompts: Sequence[Prompt]) -> str:
    """Parameters by component, memory by phase and operations of an iteration, from configs alone; or why not."""
    planning = kind_of(recipe).planning
    estimate = planning.sizes(recipe, prompts)
    if estimate is None:
        known = f", or one of {', '.join(planning.KNOWN)}" if planning.KNOWN else ""
        return (
            f"memory      not estimated: there is no config of {recipe.model} on this machine; give its folder{known}"
        )
    fits = [f"{'fits' if not i else '':<12}{line}" for i, line in enumerate(fits_lines(recipe, prompts))]
    encoders = encoder_lines(recipe, estimate, prompts)
    compute = flop_lines(planning.flops(recipe, prompts))
    lines = [*_parameters(estimate), *_table(estimate), *_notes(recipe, estimate), *encoders, *fits, *compute]
    return "\n".join(
        lines if prompts else [*lines, f"{INDENT}no prompts on this machine: assumes texts of {ASSUMED} tokens"]
    )


def _parameters(estimate: Sizes) -> list[str]:
    total = sum(estimate.parameters.values())
    share = f"{estimate.trainable:,} trained"
    listed = ", ".join(f"{name} {count_text(number)}" for name, number in estimate.parameters.items())
    return [f"parameters  {share}; {count_text(total)} in total: {listed}"]


def _table(estimate: Sizes) -> list[str]:
    judged = any(phase.rewards for phase in estimate.phases)
    rows: list[tuple[str, ...]] = [("memory by phase", *COLUMNS, *(["rewards"] if judged else []), "sum")]
    for phase in estimate.phases:
        cells = [phase.weights, phase.optimizer, phase.trajectory, phase.activations]
        cells += [*([phase.rewards] if judged else []), phase.total]
        rows.append((phase.name, *("-" if cell is None else size_text(cell) for cell in cells)))
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    lines = []
    for i, (name, *cells) in enumerate(rows):
        label = "memory      phase     " if i == 0 else f"{INDENT}{name:<10}"
        lines.append(label + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return lines


def _notes(recipe: Recipe, estimate: Sizes) -> list[str]:
    train = recipe.train
    lora = "" if recipe.lora is None else f"with {size_text(estimate.adapters)} of LoRA; "
    copies = (", the average" if train.ema else "") + (", the reference" if recipe.keeps_reference else "")
    copies += ", the older copy" if recipe.train.old is not None else ""
    notes = [f"weights {lora}optimizer: two moments{copies}, gradients while training"]
    if estimate.latent is None:
        notes.append(f"activations and trajectory: not estimated for {estimate.pipeline}: {estimate.unknown}")
    else:
        kept = "block inputs and one block" if train.gradient_checkpointing else "all that autograd keeps"
        notes.append(f"activations: training, {kept} of a forward; rollout, {estimate.drawing}")
    if (reference := reference_bytes(recipe)) is None:
        paths = ", ".join(one.path for one in recipe.references if one.path is not None)
        notes.append(f"not included: the weights of the reference, since {paths} is not on this machine")
    elif reference:
        notes.append(f"{size_text(reference)} of the weights belong to the reference")
    notes += told(recipe)
    notes.append(f"not included: {estimate.left_out}")
    return [INDENT + note for note in notes]
