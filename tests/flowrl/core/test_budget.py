"""More samples for hard prompts: how many, that they are others, and that they teach what one larger group would."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import golden
from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.advantages.combined import advantages
from flowrl.core.budget import Budget, extra_samples
from flowrl.core.iterate import Iteration, iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.update import Settings

DARS = [f"dars.extra_rollouts.{kind}" for kind in ("ET", "HW")]
OBJECTIVE = ClippedObjective(0.2, 0.2, aggregate="seq_mean_mean")
GROUP = 4


@pytest.mark.parametrize(
    "case", golden.cases("objectives/llm_sampler_filter.json", where=lambda c: golden.kind(c) in DARS)
)
def test_the_published_number_of_further_samples(case) -> None:
    params = case["params"]
    kind = "hardness_weighted" if golden.kind(case).endswith("HW") else "equal_treatment"
    how = {"kind": kind, "std": params["std"]}
    got = [extra_samples(a, params["N"], params["N_max"], **how) for a in case["inputs"]["accuracy"]]
    golden.check({"extra_rollouts": got}, case)


class Rolls:
    """Decisions of probability sigmoid(f . theta), f a function of the prompt and of the number of the noise."""

    whole_rows = True

    def __init__(self) -> None:
        self.theta = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.drawn: list[tuple[list[str], int, int]] = []
        self.gradient = torch.zeros(3)
        self.theta.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self.gradient += gradient

    def rollout(self, prompts: Sequence[Prompt], *, group_size: int, first: int = 0, **_: Any) -> Rollout:
        self.drawn.append(([p.id for p in prompts], group_size, first))
        return self.of([(p, first + i) for p in prompts for i in range(group_size)])

    def of(self, rows: Sequence[tuple[Prompt, int]]) -> Rollout:
        """Rows of these prompts and numbers of noise."""
        seeds = [zlib.crc32(p.id.encode()) + number for p, number in rows]
        width = max(p.meta["length"] for p, _ in rows)
        features = torch.stack([torch.randn(9, 3, generator=torch.Generator().manual_seed(s)) for s in seeds])[
            :, :width
        ]
        names = list(dict.fromkeys(p.id for p, _ in rows))
        group = torch.tensor([names.index(p.id) for p, _ in rows])
        lengths = torch.tensor([p.meta["length"] for p, _ in rows])
        samples = Samples([p for p, _ in rows], group, texts=[f"{n}" for _, n in rows], lengths=lengths)
        logp = nn.functional.logsigmoid(features @ self.theta.detach())
        return Rollout(samples, logp, torch.arange(width) < lengths[:, None], features)

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        logp = nn.functional.logsigmoid(rollout.replay[rows] @ self.theta)
        visit(LogProbs(rows, torch.arange(logp.shape[1]), logp))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.theta


RIGHT = {"easy": lambda n: n % 4 != 0, "hard": lambda n: n % 4 == 1, "never": lambda n: n == 9, "half": lambda n: n % 2}
PROMPTS = [Prompt(name, name, meta={"length": 3 + i}) for i, name in enumerate(RIGHT)]


def score(samples: Samples) -> dict[str, Tensor]:
    rows = zip(samples.prompts, samples.texts or (), strict=True)
    return {"r": torch.tensor([float(RIGHT[p.id](int(number))) for p, number in rows])}


def advantage(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    return advantages(rewards, rollout.samples.group, weights={"r": 1.0}), {"right": float(rewards["r"].mean())}


def trained(settings: Settings, limit: int | None) -> tuple[Rolls, Iteration]:
    policy = Rolls()
    budget = None if limit is None else Budget(GROUP, limit, "hardness_weighted", False, lambda r, rollout: r["r"])
    how = {"score": score, "advantage": advantage, "objective": OBJECTIVE, "settings": settings, "budget": budget}
    given = policy, Learner(policy.trainable(), lr=0.1), PROMPTS
    return policy, iterate(*given, plan=None, seed=0, first=0, **how)


@pytest.mark.parametrize("micro", [None, 3])
def test_hard_prompts_get_more_samples_and_teach_what_one_larger_group_would(micro: int | None) -> None:
    policy, result = trained(Settings(GROUP, micro_batch=micro, members=16), 10)
    extra = extra_samples(0.25, GROUP, 10, kind="hardness_weighted")
    assert policy.drawn == [([*RIGHT], GROUP, 0), (["hard"], extra, GROUP), (["never"], 10 - GROUP, GROUP)]
    assert (result.metrics["budget/samples"], result.metrics["budget/prompts"]) == (extra + 6, 2)
    sizes = {"easy": GROUP, "hard": GROUP + extra, "never": 10, "half": GROUP}
    alone = Rolls()
    rollout = alone.of([(p, n) for p in PROMPTS for n in range(sizes[p.id])])
    adv = advantage(score(rollout.samples), rollout)[0]
    assert adv[rollout.samples.group == 2].count_nonzero() == 10  # the tenth sample was right: the group says something
    ratio = (nn.functional.logsigmoid(rollout.replay @ alone.theta) - rollout.rollout_logp).exp()
    loss = -(weights(rollout.mask, OBJECTIVE.aggregate) * adv[:, None] * ratio).sum()
    wanted = torch.autograd.grad(loss, alone.theta)[0]
    torch.testing.assert_close(policy.gradient, wanted, rtol=1e-5, atol=1e-7)
    assert result.metrics["right"] == pytest.approx(float(score(rollout.samples)["r"].mean()))
    assert torch.equal(result.samples.group.bincount(), torch.tensor(list(sizes.values())))


def test_updates_take_whole_groups_of_unequal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    from flowrl.core import update as loop

    monkeypatch.setattr(loop, "_blocks", lambda *given, kept=loop._blocks: blocks.append(kept(*given)) or blocks[-1])
    _, result = trained(Settings(GROUP, updates=2, members=16), 10)
    groups = [set(result.samples.group[block].tolist()) for block in blocks[0]]
    assert groups == [{0, 1}, {2, 3}] and sum(map(len, blocks[0])) == len(result.samples)


def test_without_hard_prompts_nothing_changes() -> None:
    for limit in (None, GROUP):  # a limit that leaves no room
        policy, _ = trained(Settings(GROUP), limit)
        assert len(policy.drawn) == 1
