"""The model cards of the shapes world's reward models, filled with what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrl.worlds.shapes.judges.build import Results

REBUILD = """Made by `flowrl world build shapes-rewards` from seeds and shapes-flux alone: pictures and captions are
this project's own. Training sees no composition that the world holds out, neither in pictures nor in captions.
Licence: Apache-2.0."""

CLIP = """# shapes-clip

A CLIP of {parameters:,} parameters for pictures of coloured shapes at 32 x 32 pixels, in open_clip's local format
(`open_clip.create_model_and_transforms("local-dir:shapes-clip")`), stored in float16. As a reward: `use: clip_score,
args: {{model: shapes-clip}}`.

Trained for two cycles of {steps} steps (batch 48, AdamW, moving average of the weights) by the contrastive loss on
{renders} renders, a third of them as the generator's autoencoder returns them, and {drawn} pictures that shapes-flux
drew in 4, 6 or 10 steps, captioned with what the checker finds in them; half of the pictures of a batch are spoilt.
Each caption stands against three that the picture nearly shows and against what the generator was asked for and
missed. Linear probes of what lies where and of how spoilt a picture is help it on, and are not kept.

{rebuild}

## On compositions that it was never trained on

| | |
|---|---|
| 320 renders: the right caption is above four with a changed colour, shape, number or relation | {picked:.3f} |
| of counts, pairs, relations | {count:.3f}, {pair:.3f}, {relation:.3f} |
| 640 pictures that shapes-flux drew: AUROC of the cosine for the checker's exact match | {auroc:.3f} |
| the same pictures: correlation of the cosine with the checker's partial credit | {graded:.3f} |

By chance: 0.2 and 0.5. Limits: it knows nothing but these shapes, colours and words.
"""

AESTHETIC = """# shapes-aesthetic

A head of LAION's form (linear layers without activations, tensors layers.0, 2, 4, 6, 7; {parameters:,} parameters) on
the embedding of shapes-clip, scaled to length 1. As a reward: `use: aesthetic, args: {{model: shapes-clip, head:
shapes-aesthetic}}`.

What counts as beautiful is a rule, `flowrl/worlds/shapes/judges/damage.py`: a clean render is rated 10, and noise,
blur, washed-out contrast, wrong saturation and bent silhouettes, each of severity s, multiply what it has above 1 by
1 - s. Trained for {steps} steps on {renders} renders, most of them spoilt.

{rebuild}

## On compositions that it was never trained on

| | |
|---|---|
| 1000 spoilt renders: correlation with the rule | {r:.3f} |
| mean absolute error, of 1 to 10 | {error:.2f} |
| 640 pictures that shapes-flux drew: mean rating | {mean:.2f} |
| the same pictures: correlation with the checker's partial credit, of which it is not told | {graded:.3f} |

Limits: a rating says nothing about the caption.
"""

VLM = """# shapes-vlm

A LLaVA of {parameters:,} parameters (image tower of shapes-clip, Llama of three layers) that answers `Does this figure
show "CAPTION"? Please answer yes or no.` about pictures of coloured shapes, in transformers' own format, stored in
float16. As a reward: `use: vlm_judge, args: {{model: shapes-vlm}}`.

Its tower is that of shapes-clip after the first of its cycles, and is left as it is. Trained for {steps} steps (batch
32, AdamW, moving average of the weights) on the pictures of shapes-clip, a third of those of a batch spoilt, with
right captions and ones that the picture nearly shows. Its last layer is divided by the temperature that calibrates it
on 1280
other questions about training's compositions.

{rebuild}

## On compositions that it was never trained on

| | accuracy | AUROC | calibration error |
|---|---|---|---|
| 320 renders, each with its caption and a changed one | {accuracy:.3f} | {auroc:.3f} | {ece:.3f} |
| 640 drawn by shapes-flux, exact match | {drawn_accuracy:.3f} | {drawn_auroc:.3f} | {drawn_ece:.3f} |

Changed is a colour, a shape, a number or the relation; exact match is by the checker, with whose partial credit the
probability correlates by {graded:.3f} on drawn pictures. By chance: 0.5. Limits: it knows
nothing but these shapes, colours, words and this question.
"""


def write(out: Path, results: "Results", *, renders: int, drawn: int, clip_steps: int, vlm_steps: int) -> None:
    """Writes README.md into each model's folder."""
    from flowrl.worlds.shapes.judges import beauty, clip, vlm

    eye, _ = clip.load(out / "shapes-clip")
    judge, _ = vlm.load(out / "shapes-vlm")
    head = beauty.load(out / "shapes-aesthetic")
    common = {"rebuild": REBUILD, "renders": renders, "drawn": drawn}
    for name, text, model, numbers, steps in (
        ("shapes-clip", CLIP, eye, results.clip, clip_steps),
        ("shapes-aesthetic", AESTHETIC, head, results.aesthetic, beauty.STEPS),
        ("shapes-vlm", VLM, judge, results.vlm, vlm_steps),
    ):
        parameters = sum(p.numel() for p in model.parameters())
        card = text.format(parameters=parameters, steps=steps, **common, **numbers)
        (out / name / "README.md").write_text(card, encoding="utf-8")
