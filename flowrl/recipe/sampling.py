"""The keys of `sampler`: the walk from noise to sample, its sigma table, its window, its tree."""

from typing import Literal

from flowrl.recipe.base import Strict, key, part


class Window(Strict):
    """Which steps draw noise and are trained; see samplers/windows.py.

    all: all but the last skip_last, which draw noise too, untrained, where draw_last is true (Flow-GRPO). first: the
    first size. frozen: size adjacent ones from low on. random: size steps of [low, high), or of the list `steps`.
    random_window: size adjacent ones. progressive: size adjacent ones, stride further every interval iterations, within
    [0, high). decay, exp_decay: the same, with stays that shorten from interval towards shortest, or by exp(-rate) a
    step behind step `hold`. fraction: all but the last draw noise, and a random share of them is trained, anew each
    iteration. high null: all but the last step. Keys of another kind are refused.
    """

    kind: Literal[
        "all", "first", "frozen", "random", "random_window", "progressive", "decay", "exp_decay", "fraction"
    ] = key("all", "all, first, frozen, random, random_window, progressive, decay, exp_decay or fraction")
    skip_last: int | None = key(None, "a whole number >= 0", ge=0)
    draw_last: bool | None = key(None, "true or false")
    size: int | None = key(None, "a whole number >= 1", ge=1)
    low: int | None = key(None, "a whole number >= 0", ge=0)
    high: int | None = key(None, "a whole number >= 1 or null", ge=1)
    interval: int | None = key(None, "a whole number >= 1", ge=1)
    stride: int | None = key(None, "a whole number >= 0", ge=0)
    roll_back: bool | None = key(None, "true or false")
    steps: list[int] | None = key(None, "a list of steps that rise, such as [1, 2, 5]")
    shortest: int | None = key(None, "a whole number >= 1", ge=1)
    rate: float | None = key(None, "a number >= 0", ge=0)
    hold: int | None = key(None, "a whole number >= 0", ge=0)
    share: float | None = key(None, "a number in (0, 1]", gt=0, le=1)

    @property
    def moves(self) -> bool:
        """Whether its steps differ from iteration to iteration."""
        return self.kind not in ("all", "first", "frozen")

    @property
    def slides(self) -> bool:
        """Whether it moves step by step towards the data."""
        return self.kind in ("progressive", "decay", "exp_decay")


class Schedule(Strict):
    """The sigma table (samplers/tables.py), as many steps as the pipeline's own.

    own: what the pipeline's scheduler gives. linear, shifted (by `shift`, 3 in DanceGRPO and MixGRPO), exponential (by
    `mu`), karras (of `rho`, 7 by default, between the ends of the own one). merge: that many steps from merge_at on
    become one, which covers all their noise (E-GRPO); evaluations do not merge.
    """

    kind: Literal["own", "linear", "shifted", "exponential", "karras"] = key(
        "own", "own, linear, shifted, exponential or karras"
    )
    shift: float | None = key(None, "a number > 0", gt=0)
    mu: float | None = key(None, "a number")
    rho: float | None = key(None, "a number > 0", gt=0)
    merge_at: int | None = key(None, "a whole number >= 0 or null", ge=0)
    merge: int | None = key(None, "a whole number >= 2 or null", ge=2)


class Tail(Strict):
    """The steps after the last that draws, by a solver of their own (MixGRPO-Flash: ratio 0.4, dpmpp_2m).

    ratio: how many of the points that are left are kept; steps: how many steps there are instead. Neither: as many as
    the table has. dpmpp_2m is DPM-Solver++(2M), dpmpp_2m_heun its heun form.
    """

    ratio: float | None = key(None, "a number in (0, 1] or null", gt=0, le=1)
    steps: int | None = key(None, "a whole number from 1 to 10000, or null", ge=1, le=10_000)
    solver: Literal["euler", "dpmpp_2m", "dpmpp_2m_heun"] = key("dpmpp_2m", "euler, dpmpp_2m or dpmpp_2m_heun")


class Tree(Strict):
    """Samples of a prompt that share more than a start (samplers/trees.py). Keys of another kind are refused.

    branch (BranchGRPO): at each of `splits` every live row parts into `widths`, one number or one a split. splits_from
    window: they count from the window's first step. correlation: between the draws of siblings where they part;
    split_noise: factor of its std. credit: how leaves' rewards reach the rows above. compare depth: rows with those of
    their depth; leaves: samples with each other, and rows take the mean of their advantages. prune: steps that are
    drawn and not trained, one step nearer to the start every prune_interval iterations until the first is prune_stop;
    all are trained after iteration prune_until. width_prune: behind the last split only width_ratio (0.5) of decisions
    are trained: of each branch (its earliest: they share an advantage), or the best and worst of all, by ends.
    train.group is the number of leaves of all trees of a prompt.
    per_step (TempFlow-GRPO, G2RPO): at each step of the window children leave the ODE's trunk; train.group of them,
    over `anchors` trunks. per_anchor: children are compared with those of their trunk alone. strides: every child is
    finished once by each, on ever coarser tables.
    """

    kind: Literal["branch", "per_step"] = key(..., "branch or per_step")
    splits: list[int] | None = key(None, "a list of steps that rise")
    splits_from: Literal["start", "window"] | None = key(None, "start or window")
    widths: int | list[int] | None = key(None, "a whole number >= 2, or a list of one for each split")
    correlation: float | None = key(None, "a number in [0, 1)", ge=0, lt=1)
    split_noise: float | None = key(None, "a number > 0", gt=0)
    credit: Literal["uniform", "path_probability"] | None = key(None, "uniform or path_probability")
    compare: Literal["depth", "leaves"] | None = key(None, "depth or leaves")
    prune: list[int] | None = key(None, "a list of steps")
    prune_interval: int | None = key(None, "a whole number >= 1", ge=1)
    prune_stop: int | None = key(None, "a whole number >= 0", ge=0)
    width_prune: Literal["branches", "ends"] | None = key(None, "branches, ends or null")
    width_ratio: float | None = key(None, "a number in (0, 1)", gt=0, lt=1)
    prune_until: int | None = key(None, "a whole number >= 0", ge=0)
    anchors: int | None = key(None, "a whole number >= 1", ge=1)
    per_anchor: bool | None = key(None, "true or false")
    strides: list[int] | None = key(None, "a list of whole numbers >= 1")

    def width_list(self) -> list[int]:
        """Children at each split."""
        widths = 2 if self.widths is None else self.widths
        return [widths] * len(self.splits or []) if isinstance(widths, int) else widths


class Sampler(Strict):
    """The walk from noise to sample. noise: strength of the noise a step draws, eta of ddim; null: the usual one of the
    step and the model's family (recipe/noise.py). share_noise: a group starts from one latent, and the steps up to the
    first stochastic one run once a prompt. reduce: how a latent's log-density becomes one number; published clip ranges
    assume mean."""

    step: str = key("flow_sde", "the name of a step or a dotted path", min_length=1)
    noise: float = key(0.7, "a number >= 0, or null for the usual one of step and model", ge=0, curve=True)
    steps: int = key(10, "a whole number from 1 to 10000", ge=1, le=10_000)
    schedule: Schedule = part(Schedule)
    window: Window = part(Window)
    tree: Tree | None = key(None, "a mapping with kind, or null")
    tail: Tail | None = key(None, "a mapping with ratio, steps, solver, or null")
    share_noise: bool = key(False, "true or false")
    reduce: Literal["mean", "sum"] = key("mean", "mean or sum")
