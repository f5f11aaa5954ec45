"""Failure limits over several processes: judged as one process judges all of their samples."""

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.judging import Unscored, merged
from flowrl.scoring.scorer import RewardError, RewardRunner, Scorer


def scorer(lost: set[str], **more: object) -> Scorer:
    """One whose reward cannot score the prompts of these texts."""

    def reward(samples: Samples) -> torch.Tensor:
        return torch.tensor([torch.nan if p.text in lost else 1.0 for p in samples.prompts])

    return Scorer({"own": RewardRunner(reward, RewardSpec(use="own", required=True, **more))})


def samples(texts: list[str], each: int = 2) -> Samples:
    prompts = [Prompt(text, text) for text in texts for _ in range(each)]
    return Samples(prompts, torch.arange(len(texts)).repeat_interleave(each), texts=[""] * len(prompts))


def joined(scorers: list[Scorer]) -> None:
    """Lets them judge together: what each tells is there before any asks."""
    told = [list(one.judge._unsettled) for one in scorers]
    for i, one in enumerate(scorers):
        one.judge.join(lambda own, told=told, i=i: [*told[:i], own, *told[i + 1 :]], loud=i == 0)


def test_samples_stand_in_the_order_of_the_prompts_that_were_dealt_out():
    parts = [
        Unscored(4, {"a": [True, False, False, True]}, {"a": [0, 0, 1, 1]}, failed={"a": 1}),
        Unscored(3, {"a": [False, True, True]}, {"a": [0, 0, 1]}, failed={"a": 2}, said={"a": "why"}, wrong=1),
    ]
    whole = merged(parts)
    assert whole.lost["a"] == [True, False, False, True, False, True, True]
    assert (whole.number, whole.wrong, whole.failed, whole.said) == (7, 1, {"a": 3}, {"a": "why"})


@pytest.mark.parametrize(("limit", "ends"), [(0.3, False), (0.02, True)])
def test_limits_count_the_samples_of_all_and_all_end_alike(limit, ends):
    parts = [scorer({"b", "d"}, failure_limit=limit) for _ in range(2)]
    for one in parts:
        one.judge.join(lambda own: [own], loud=False)
    for one, texts in zip(parts, (["a", "c", "e"], ["b", "d"]), strict=True):
        one(samples(texts))  # the second loses all that it has, which is no reason to end by itself
    joined(parts)
    alone = scorer({"b", "d"}, failure_limit=limit)
    found = []
    for work in (*(one.judge.settle for one in parts), lambda: alone(samples(["a", "b", "c", "d", "e"]))):
        try:
            work()
            found.append("")
        except RewardError as error:
            found.append(str(error))
    assert bool(found[0]) == ends and len(set(found)) == 1
    assert parts[0].state_dict() == parts[1].state_dict() == alone.state_dict()


def test_batches_that_were_dealt_out_stand_one_after_the_other():
    parts = [scorer({"b"}) for _ in range(2)]
    for one in parts:
        one.judge.join(lambda own: [own], loud=False)
    for one, texts in ((parts[0], "a"), (parts[1], "b"), (parts[0], "c")):
        one(samples([texts], 1))
    joined(parts)
    parts[1].judge.settle(apart=True)
    assert parts[1].record["own"].latest == [False, True, False]
