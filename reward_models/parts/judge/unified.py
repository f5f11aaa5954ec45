"""How UnifiedReward is asked and read (arXiv 2503.05236; weights CodeGoat24/UnifiedReward-*, code MIT).

The forms of the answers and the place of the caption are those that the models were trained with; the words around
them are ours. Where the published words matter, they can be given as `prompt`, with {} for the caption.
"""

import math

from reward_models.parts.judge import judging

POINT = (
    "You see a picture that was generated from a text caption. Judge it by two criteria:\n"
    "1. Alignment with the Caption: are the objects, their attributes and their relations as the caption says?\n"
    "2. Overall Image Quality: is it clear, detailed, true in colour, and pleasing?\n"
    "Assign a score from 1 to 5 after 'Final Score:', on the last line.\n"
    "Your task is provided as follows:\nText Caption: [{}]"
)
ACS = (
    "You see a picture that was generated from a text caption. Rate it from 1 to 5 along three axes:\n"
    "- Alignment Score: how well its content matches the caption.\n"
    "- Coherence Score: how logically consistent it is, without glitches and distorted objects.\n"
    "- Style Score: how appealing it looks, whatever the caption says.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
    "Your task is provided as follows:\nText Caption: [{}]"
)
PAIR = (
    "You see Image 1 and Image 2, generated from the same text caption. Which is better, by how closely it follows the "
    "caption, by its quality, and by how authentic it looks?\n"
    "Answer with exactly one of these sentences and nothing else: Image 1 is better / Image 2 is better / tie\n"
    "Text Caption: [{}]"
)
THINK = (
    "You see Image 1 and Image 2, generated from the same text caption. Compare them by semantic consistency, by "
    "aesthetics, by authenticity, and by what else matters here. Within <think> and </think>, score both images from 1 "
    "to 10 in each, with a short reason, and add the scores up. Then write, with no other words, "
    "<answer>Image 1 is better</answer> or <answer>Image 2 is better</answer>.\n"
    "Text Caption: [{}]"
)


def point(text: str | None, *, compatible: bool = False) -> float:
    """The point score over 5, in [0.2, 1]; NaN (compatible: 0) if the answer holds none."""
    if text is None:
        return math.nan
    return judging.final_score(text, compatible=compatible) / 5


def acs(text: str | None, *, compatible: bool = False) -> float:
    """(mean of the three axes - 1) / 4, in [0, 1]; NaN (compatible: 0) if the answer holds none."""
    if text is None:
        return math.nan
    return judging.axes_reward(judging.axis_scores(text, compatible=compatible), compatible=compatible)
