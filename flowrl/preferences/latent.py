"""A reward of noisy latents fitted to samples that a model draws and a recipe's rewards score, at all noise levels.

Of two samples of a prompt, noised to one level by one noise, the better one is to get the higher reward: the likelihood
of Bradley and Terry over all pairs of a group (Flow-NRG, VideoAlign, arXiv:2501.13918). What the network reads is told
in policies/pipelines/looks/latent_reward.py; the model itself is left as it is.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.contracts import Field, Prompt, Rollout, View
from flowrl.names import UserError
from flowrl.planning.costs import eval_plan
from flowrl.policies.pipelines.looks.latent_reward import Features, LatentReward, save
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.recipe.schema import Recipe
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import Scorer

HIGHEST = 0.95
BINS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATIENCE = 5  # checks, 50 steps apart
FEWEST = 8  # groups of each side with samples that differ


@dataclass(frozen=True)
class Shape:
    """What is drawn and looked at: `group` samples of each prompt, each at `levels` noise levels in (0, 0.95]."""

    group: int = 8
    levels: int = 6


class Group(NamedTuple):
    """Of the samples of one prompt at one level: features [group, width], rewards [group], the level, the prompt."""

    features: Tensor
    rewards: Tensor
    level: float
    text: str


@dataclass(frozen=True)
class LatentFit:
    """How it was fitted. pairs, heldout: numbers of pairs at one level; accuracy: share of those held out that it
    orders as their rewards do; by_level: the same between the levels of a pair of bounds."""

    prompts: int
    pairs: int
    heldout: int
    accuracy: float
    by_level: dict[str, float]


@torch.no_grad()
def collect(
    recipe: Recipe,
    policy: PipelinePolicy,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    shape: Shape,
    *,
    seed: int = 0,
    tell: Callable[[int], None] = lambda samples: None,
) -> tuple[list[Group], Mapping[str, list[str]]]:
    """Draws and scores samples by the evaluation's walk and looks at them at levels drawn anew for each batch.

    Returns the groups, and the blocks that were read. tell: is told how many samples are looked at.
    """
    plan, together = eval_plan(recipe), max(1, recipe.eval.batch // shape.group)
    policy.prepare(prompts[0], plan)
    guide, policy.guide = policy.guide, None
    features = Features(policy.modules)
    generator, groups = torch.Generator().manual_seed(seed), list[Group]()
    try:
        for start in range(0, len(prompts), together):
            part = prompts[start : start + together]
            share = (torch.arange(shape.levels) + torch.rand(shape.levels, generator=generator)) / shape.levels
            levels = tuple((HIGHEST * share.clamp(min=0.02)).tolist())
            rollout = policy.rollout(part, group_size=shape.group, plan=replace(plan, levels=levels), seed=seed)
            samples = rollout.samples
            total = counted_rewards(scorer.specs, scorer(samples), samples.prompts, samples.group, samples).total
            assert total is not None, "a recipe trains on at least one reward"
            found = _looks(policy, rollout, features)
            for looks in found.values():
                x = torch.stack([of for _, _, of in sorted(looks, key=lambda look: look[0])])
                for number, prompt in enumerate(part):
                    rows = slice(number * shape.group, (number + 1) * shape.group)
                    groups.append(Group(x[rows], total[rows].float().cpu(), looks[0][1], prompt.text))
            tell(min(start + together, len(prompts)) * shape.group)
    finally:
        features.close()
        policy.guide = guide
    return groups, features.blocks


def _looks(policy: PipelinePolicy, rollout: Rollout, features: Features) -> dict[int, list[tuple[int, float, Tensor]]]:
    """By column the samples' (row, level, features)."""
    found: dict[int, list[tuple[int, float, Tensor]]] = {}

    def visit(seen: Field) -> None:
        for row, of in zip(seen.rows.tolist(), features.take(len(seen.rows)).cpu(), strict=True):
            found.setdefault(int(seen.columns), []).append((row, seen.level, of))

    policy.prove_looks(rollout.replay)
    features.clear()
    policy.look(rollout, torch.arange(len(rollout.samples)), View("noised", share_noise=True), visit)
    return found


def fit(
    groups: Sequence[Group], *, heldout: float = 0.2, seed: int = 0, steps: int = 1500
) -> tuple[LatentReward, LatentFit]:
    """The reward of these groups. Prompts are held out whole.

    Of the weights along the way those are kept that make the pairs of a fifth of the other prompts likeliest. Raises
    UserError where too few groups have samples that differ.
    """
    told = [g for g in groups if float(g.rewards.max() - g.rewards.min()) > 0 and not g.rewards.isnan().any()]
    texts = sorted({g.text for g in told})
    random.Random(seed).shuffle(texts)
    if len(texts) < 2 * FEWEST:
        raise UserError(
            f"train-latent-reward: the samples of {len(texts)} prompts differ in reward; accepted: at least "
            f"{2 * FEWEST} such prompts; draw more of each (--group) or of more prompts (--number)"
        )
    cut = max(FEWEST // 2, round(heldout * len(texts)))
    sides = set(texts[:cut]), set(texts[cut : 2 * cut])
    test, check = ([g for g in told if g.text in side] for side in sides)
    train = [g for g in told if g.text not in sides[0] | sides[1]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reward = _solve(train, check, steps)
    right = [(g.level, *_ordered(reward, g)) for g in test]
    number = sum(n for _, _, n in right)
    by_level = {}
    for low, high in zip(BINS, BINS[1:], strict=False):
        here = [(k, n) for level, k, n in right if low <= level < high]
        if here:
            by_level[f"{low:g}-{high:g}"] = round(sum(k for k, _ in here) / sum(n for _, n in here), 4)
    pairs = sum(_ordered(reward, g)[1] for g in train)
    return reward, LatentFit(len(texts), pairs, number, sum(k for _, k, _ in right) / number, by_level)


def _solve(train: Sequence[Group], check: Sequence[Group], steps: int) -> LatentReward:
    whole = torch.cat([g.features for g in train])
    reward = LatentReward(whole.shape[1])
    reward.mean, reward.std = whole.mean(0), whole.std(0).clamp(min=1e-4)
    optimizer = torch.optim.AdamW(reward.parameters(), lr=1e-3, weight_decay=0.1)
    best, kept, since = float("inf"), reward.state_dict(), 0
    for step in range(steps):
        some = torch.randint(len(train), (32,)).tolist()
        loss = _loss(reward, [train[i] for i in some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49 or step == steps - 1:
            reward.eval()
            with torch.no_grad():
                now = float(_loss(reward, check))
            reward.train()
            since += 1
            if now < best:
                best, kept, since = now, {name: part.clone() for name, part in reward.state_dict().items()}, 0
            if since == PATIENCE:
                break
    reward.load_state_dict(kept)
    return reward.eval().requires_grad_(False)


def _values(reward: LatentReward, groups: Sequence[Group]) -> list[Tensor]:
    level = torch.cat([torch.full((len(g.rewards),), g.level) for g in groups])
    values = reward(torch.cat([g.features for g in groups]), level)
    return list(values.split([len(g.rewards) for g in groups]))


def _loss(reward: LatentReward, groups: Sequence[Group]) -> Tensor:
    """Mean -log sigmoid of the difference of all pairs whose rewards differ."""
    losses = []
    for group, values in zip(groups, _values(reward, groups), strict=True):
        better = group.rewards[:, None] > group.rewards[None]
        losses.append(functional.softplus(values[None] - values[:, None])[better])
    return torch.cat(losses).mean()


@torch.no_grad()
def _ordered(reward: LatentReward, group: Group) -> tuple[int, int]:
    """How many of the pairs of a group whose rewards differ are ordered alike, and how many there are."""
    values = _values(reward, [group])[0]
    better = group.rewards[:, None] > group.rewards[None]
    return int((values[:, None] > values[None])[better].sum()), int(better.sum())


def write(reward: LatentReward, result: LatentFit, folder: Path, blocks: Mapping[str, list[str]], told: dict) -> None:
    """Writes the reward with its card to a folder; told: what else the card says."""
    save(reward, folder, {**told, "blocks": blocks, **asdict(result)})
