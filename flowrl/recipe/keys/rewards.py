"""The keys of a reward: what it is, how it counts, and how it is run."""

from collections.abc import Mapping
from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.keys.views import Contrast
from flowrl.untyped import JSON

DEVICE = r"cpu|mps|(cuda|xpu|npu)(:\d+)?"  # what a recipe may name; whether a machine has it is another question


class Gate(Strict):
    """A condition on another reward: `by` has to give at least `least`, or a sample gets `otherwise`.

    lowest: the lowest score of its group, so that nothing is gained by failing; or a number. least null: the score is
    multiplied by that of the other instead, as the reward of a thought counts where its answer is right
    (Posterior-GRPO, arXiv:2508.05170).
    """

    by: str = key(..., "the name of another reward of the recipe", min_length=1)
    least: float | None = key(..., "a number, or null for the product")
    otherwise: Literal["lowest"] | float = key("lowest", "lowest or a number")


class Shape(Strict):
    """How the scores of completions are reshaped before they are trained on (flowrl/scoring/shaping.py).

    stop_properly: those of completions that their limit ended are multiplied by `factor`, or replaced by one below 0.
    cosine_length: by length, from the first number of `correct`, or of `wrong`, at length 0 to the second at `limit`
    tokens. difficulty_length: plus a term that favours short correct completions, the more so the easier the prompt
    (DAST); full: the score of a correct one. length_bonus: plus `bonus` for correct ones of `shortest` to `longest`
    tokens, where a group has several (Video-R1). right: the score from which on one is correct.
    """

    kind: Literal["stop_properly", "cosine_length", "difficulty_length", "length_bonus"] = key(
        ..., "stop_properly, cosine_length, difficulty_length or length_bonus"
    )
    factor: float | None = key(None, "a number")
    limit: int | None = key(None, "a whole number >= 1", ge=1)
    right: float | None = key(None, "a number")
    correct: tuple[float, float] | None = key(None, "two numbers")
    wrong: tuple[float, float] | None = key(None, "two numbers")
    full: float | None = key(None, "a number")
    slope: float | None = key(None, "a number")
    offset: float | None = key(None, "a number")
    bonus: float | None = key(None, "a number")
    shortest: int | None = key(None, "a whole number >= 0", ge=0)
    longest: int | None = key(None, "a whole number >= 1", ge=1)

    @property
    def given(self) -> dict[str, JSON]:
        """The keys that the recipe gives, beside kind."""
        return {name: value for name in SHAPE_KEYS[self.kind] if (value := getattr(self, name)) is not None}


SHAPE_KEYS = {
    "stop_properly": ("factor",),
    "cosine_length": ("limit", "right", "correct", "wrong"),
    "difficulty_length": ("full", "slope", "offset"),
    "length_bonus": ("right", "bonus", "shortest", "longest"),
}


def fits(when: Mapping[str, JSON] | None, meta: Mapping[str, JSON]) -> bool:
    """Whether a prompt of this meta is meant: each key in `when` has the value there, or one of those listed."""
    for name, wanted in (when or {}).items():
        accepted = wanted if isinstance(wanted, list) else [wanted]
        if name not in meta or meta[name] not in accepted:
            return False
    return True


class RewardSpec(Strict):
    """use: a short name or a dotted path. weight 0 is a witness: reported, never trained on. args go to the reward.

    required: more than the share failure_limit of the latest 100 samples (or of a whole call) without a score ends the
    run; with false, samples without a score are left out and counted. when: keys of the prompts' meta and the value, or
    list of values, that the reward is asked about (null: about every prompt). gate: this reward counts only where
    another is satisfied, or in proportion to it. shape: completions' scores, reshaped by length and end before that.
    contrast: more for right samples of groups that do as well as those that a view draws beside them
    (recipe/keys/views.py).

    batch: samples in one call (null: all). device: where a reward with weights lives (null: the run's). offload: on the
    CPU while nothing is scored. time_limit: seconds that a call may take; after them its samples have no score.
    overlap: samples are scored while the next are drawn (train.rollout_batch says how many at a time). cache: scores
    are kept by picture, prompt, args and the reward's code: true in memory, or in a file that other runs may use too.
    steps: how the values of steps make the score of a completion, for rewards that give them (process rewards).
    """

    use: str = key(..., "the name of a reward or a dotted path", min_length=1)
    weight: float = key(1.0, "a number")
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")
    required: bool = key(True, "true or false")
    failure_limit: float = key(0.1, "a number in [0, 1]", ge=0, le=1)
    when: dict[str, JSON] | None = key(None, "keys of the prompts' meta mapped to a value or a list of values, or null")
    gate: Gate | None = key(None, "a mapping with by, least, otherwise, or null")
    shape: Shape | None = key(None, "a mapping with kind, or null")
    contrast: Contrast | None = key(None, "a mapping with bonus, share and right, or null")
    batch: int | None = key(None, "a whole number >= 1 or null", ge=1)
    device: str | None = key(None, "cpu, mps, cuda, cuda:N (or xpu, npu) or null", pattern=rf"^({DEVICE})$")
    offload: bool = key(False, "true or false")
    time_limit: float | None = key(None, "seconds > 0 or null", gt=0)
    overlap: bool = key(False, "true or false")
    cache: bool | str = key(False, "true, false or the path of a file")
    steps: Literal["sum", "mean"] = key("sum", "sum or mean")
