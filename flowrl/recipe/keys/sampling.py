"""The keys of `sampler`: the walk from noise to sample, its sigma table, its window, its tree."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from flowrl.recipe.base import Strict, key, part
from flowrl.recipe.keys.guide import GuideKeys
from flowrl.recipe.keys.noised import Levels
from flowrl.recipe.sections import Own, choices_of, keys_of, name_of, open_to
from flowrl.untyped import JSON


class Window(keys_of("window", "all")):
    """Which steps draw noise and are trained: kinds and keys are functions of samplers/windows.py and their arguments.

    Steps are counted from 0; size, low and high are numbers of steps of the walk. Keys of another kind are refused.
    """

    @property
    def moves(self) -> bool:
        """Whether its steps differ from iteration to iteration."""
        return self.kind not in ("all", "first", "frozen")

    @property
    def slides(self) -> bool:
        """Whether it moves step by step towards the data."""
        return self.kind in ("progressive", "decay", "exp_decay")


class OwnWindow(Own):
    """A window of the user's own, which may move as it likes."""

    part: ClassVar[str] = "window"
    beside: ClassVar[Mapping[str, JSON]] = dict.fromkeys(Window.model_fields)
    moves: ClassVar[bool] = True
    slides: ClassVar[bool] = True


class Schedule(keys_of("schedule", "own")):
    """The sigma table, as many steps as the pipeline's own: kinds and keys are those of samplers/tables.py.

    merge: that many steps from merge_at on become one, which covers all their noise (E-GRPO); evaluations do not merge.
    """

    merge_at: int | None = key(None, "a whole number >= 0 or null", ge=0)
    merge: int | None = key(None, "a whole number >= 2 or null", ge=2)


class OwnSchedule(Own):
    """A sigma table of the user's own, made of the pipeline's; its steps are merged as those of one that ships."""

    part: ClassVar[str] = "schedule"
    beside: ClassVar[Mapping[str, JSON]] = dict.fromkeys(Schedule.model_fields)
    merge_at: int | None = key(None, "a whole number >= 0 or null", ge=0)
    merge: int | None = key(None, "a whole number >= 2 or null", ge=2)


class OwnSolver(Own):
    """A solver of the user's own."""

    part: ClassVar[str] = "solver"


Solver = name_of("solver", OwnSolver)
SOLVER_WORDS = choices_of("solver")


class Tail(Strict):
    """The steps after the last that draws, by a solver of their own (MixGRPO-Flash: ratio 0.4, dpmpp_2m).

    ratio: how many of the points that are left are kept; steps: how many steps there are instead. Neither: as many as
    the table has. solver: see samplers/solvers.py.
    """

    ratio: float | None = key(None, "a number in (0, 1] or null", gt=0, le=1)
    steps: int | None = key(None, "a whole number from 1 to 10000, or null", ge=1, le=10_000)
    solver: Solver = key("dpmpp_2m", SOLVER_WORDS)  # pyright: ignore[reportInvalidTypeForm]


class TreeKeys(keys_of("tree")):
    """Samples of a prompt that share more than a start: kinds and keys are functions of samplers/growth.py and their
    arguments. Keys of another kind are refused."""

    def width_list(self) -> list[int]:
        """Children at each split."""
        widths = 2 if self.widths is None else self.widths
        return [widths] * len(self.splits or []) if isinstance(widths, int) else widths


class OwnTree(Own):
    """A tree of the user's own."""

    part: ClassVar[str] = "tree"
    beside: ClassVar[Mapping[str, JSON]] = dict.fromkeys(TreeKeys.model_fields)


class Sampler(Strict):
    """The walk from noise to sample. noise: strength of the noise a step draws, eta of ddim; null: the usual one of the
    step and the model's family, which the step says (samplers/facts.py). share_noise: a group starts from one latent,
    and the steps up to the first stochastic one run once a prompt. reduce: how a latent's log-density becomes one
    number; published clip ranges assume mean. levels: where objective.loss noises finished samples again. look:
    arguments about guidance of the calls that look at them there, in the place of those of `pipeline` and of the
    prompts ({guidance_scale: 1.0}: without guidance, whatever the rollouts have). guide: a reward of noisy latents that
    steers evaluations and `flowrl sample` (recipe/keys/guide.py). step_args: arguments of a step of
    one's own beside those that every step has; `step: {kind: PATH, ...}` is another way to write them."""

    step: str = key("flow_sde", "the name of a step or a dotted path", min_length=1)
    step_args: dict[str, JSON] = key({}, "a mapping of the step's own arguments to values")
    noise: float = key(0.7, "a number >= 0, or null for the usual one of step and model", ge=0, curve=True)
    steps: int = key(10, "a whole number from 1 to 10000", ge=1, le=10_000)
    schedule: open_to(Schedule, OwnSchedule) = part(Schedule)  # pyright: ignore[reportInvalidTypeForm]
    window: open_to(Window, OwnWindow) = part(Window)  # pyright: ignore[reportInvalidTypeForm]
    tree: open_to(TreeKeys, OwnTree) | None = key(None, "a mapping with kind, or null")  # pyright: ignore
    tail: Tail | None = key(None, "a mapping with ratio, steps, solver, or null")
    share_noise: bool = key(False, "true or false")
    levels: Levels | None = key(None, "a mapping with kind, or null")
    look: dict[str, JSON] = key({}, "a mapping of arguments about guidance to values")
    guide: GuideKeys | None = key(None, "a mapping with path, or null")
    reduce: Literal["mean", "sum"] = key("mean", "mean or sum")

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, values: JSON) -> JSON:
        step = values.get("step") if isinstance(values, dict) else None
        if not isinstance(step, dict) or not isinstance(step.get("kind"), str):
            return values
        args = {name: value for name, value in step.items() if name != "kind"}
        return {**values, "step": step["kind"], "step_args": {**(values.get("step_args") or {}), **args}}
