"""The model card of look-llava."""

from collections.abc import Mapping
from typing import Any

from flowrl.worlds.shapes_look.corpus import GUESS, RIGHT, SHARES, TWICE, WHERE
from flowrl.worlds.shapes_look.pretrain import BATCH
from flowrl.worlds.shapes_look.scenes import NUM_HELDOUT


def card(rows: Mapping[str, Any], aims: Any, *, parameters: int, steps: tuple[str, str]) -> str:
    """The text of a card: accuracies by how they were measured (`build.Measured`), `build.Aims`, what was trained."""
    table = "\n".join(
        f"| {name} | {m.all:.3f} | {m.small:.3f} | {m.large:.3f} | {m.zooms:.2f} |" for name, m in rows.items()
    )
    led = "\n".join(
        f"| {told} | {getattr(aims, name)['small']:.2f} | {getattr(aims, name)['large']:.2f} |"
        for name, told in LED.items()
    )
    eye, language = steps
    return CARD.format(
        parameters=parameters,
        eye=eye,
        language=language,
        batch=BATCH,
        heldout=NUM_HELDOUT,
        guess=GUESS,
        twice=TWICE,
        right=RIGHT,
        where=WHERE,
        table=table,
        led=led,
        **SHARES,
    )


LED = {
    "direct": "right shape, answering at once, greedy",
    "looked": "right shape after two right zooms, greedy",
    "look": "probability of a zoom",
    "first": "probability of the right quadrant in it",
    "again": "probability of a second zoom after a right one",
    "second": "probability of the right quadrant in the second",
}

CARD = """# look-llava

A vision-language model of {parameters:,} parameters that answers one question about pictures of 128 x 128 pixels, "What
shape is the red object?", and sees 32 x 32 pixels of them. It is a `LlavaForConditionalGeneration` in transformers' own
format with its processor and a chat template that has a tool's turn, pretrained from random weights and stored in
float16. It exists so that reinforcement learning of a model that reads pictures and calls a tool can be run, tested and
understood on a laptop.

Large objects (32 to 42 pixels wide) can be told at once. Small ones (7 to 9 pixels) are a spot of colour in what the
model sees; the tool `quadrant` gives a quarter of the picture that was shown last, and two calls give 32 x 32 pixels as
they are.

Made by `flowrl world build shapes-look`: {eye} steps of the image tower on labels of its patches, then {language} steps
of the language model on lessons, then on documents, {batch} of them at once beside some lessons (AdamW, moving averages
of the weights). Seeds are fixed. Pictures and texts are this project's own; the licence is the project's. Lessons are
questions about shapes and places, many to a picture and all answered rightly. Documents mix manners, as found text
does:

| share | manner |
|---|---|
| {direct} | answers at once; {guess} of these with any shape |
| {look} | zooms first, {twice} of these twice, {right} of the zooms aimed, the others anywhere; then the right answer |
| {careless} | leaves out a tag, or goes on after it |

A share of {where} is asked "Where is the red object?" instead, and answers with a quadrant.

## Accuracy on held-out questions

{heldout} questions, half of them on small objects, on pictures that no document shows; one conversation each. Right:
the last turn ends in the right shape between the tags. A guess is right once in six times.

| | all | small | large | zoom |
|---|---|---|---|---|
{table}

What it does where it is led along the right path:

| | small | large |
|---|---|---|
{led}

Limits: nothing but these questions; other text is read as characters and means nothing to it. The template does not
list the tools: the documents have taught the one that there is.
"""
