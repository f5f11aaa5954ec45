"""Draws samples, has the rewards of a recipe rank them, and writes the pairs: pairs.jsonl and their pictures."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowrl.contracts import Policy, Prompt, Samples
from flowrl.core.pairs import best_and_worst
from flowrl.media.pictures import save_picture
from flowrl.names import UserError
from flowrl.planning.costs import eval_plan
from flowrl.policies.pipelines.walks.given_samples import noise_of
from flowrl.recipe.schema import Recipe
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import Scorer
from samplers.plan import Plan

FILE, PICTURES, NOISE = "pairs.jsonl", "pictures", "noise"


@dataclass(frozen=True)
class Choice:
    """How samples become pairs: `group` of a prompt are drawn, and `each` pairs of them are taken, the best with the
    worst and so on, whose rewards lie at least min_margin apart; `number` pairs in all. noise: whether that which each
    sample came from is kept."""

    number: int
    group: int
    each: int = 1
    min_margin: float = 0.0
    noise: bool = True


def collect(
    recipe: Recipe,
    policy: Policy,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    choice: Choice,
    folder: Path,
    *,
    seed: int = 0,
    tell: Callable[[int], None] = lambda pairs: None,
) -> tuple[int, int]:
    """Writes pairs of the evaluation's ODE walk to a folder; returns how many, and how many samples were drawn.

    The noise that each sample came from is written beside it where the walk begins with nothing else. Goes through the
    prompts again, with other noise, as long as pairs are missing and a pass gives any. tell: is told
    how many pairs are written. Raises UserError where there are none, and for samples that are no pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = drawn = 0
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for samples, noise, rewards in _draws(recipe, policy, scorer, prompts, choice, seed):
            if samples is None:  # a pass is over
                if written == 0:
                    break
                continue
            drawn += len(samples)
            for better, worse in _pairs(samples, rewards, choice)[: choice.number - written]:
                assert samples.images is not None
                names = [f"{PICTURES}/{written:06d}_{which}.png" for which in ("better", "worse")]
                for name, row in zip(names, (better, worse), strict=True):
                    save_picture(samples.images[row], folder / name)
                scores = [round(float(rewards[row]), 6) for row in (better, worse)]
                prompt = samples.prompts[better]
                record = dict(prompt.meta.items()) | {"prompt": prompt.text, "better": names[0], "worse": names[1]}
                if noise is not None:
                    record["noise"] = _save_noise(noise[[better, worse]], names, folder)
                file.write(json.dumps(record | {"rewards": scores}, ensure_ascii=False) + "\n")
                written += 1
            tell(written)
            if written >= choice.number:
                break
    if written == 0:
        (folder / FILE).unlink()
        raise UserError(
            f"pairs: of {drawn} samples none differ in reward by {choice.min_margin:g}; draw more of each prompt "
            "(--group), or lower --margin"
        )
    return written, drawn


def _save_noise(noise: Tensor, names: Sequence[str], folder: Path) -> list[str]:
    """Writes the noise [n, ...] of pictures of these names, a file each; returns the files' names."""
    files = [f"{NOISE}/{Path(name).stem}.safetensors" for name in names]
    (folder / NOISE).mkdir(exist_ok=True)
    for file, one in zip(files, noise.cpu(), strict=True):
        save_file({"noise": one.contiguous()}, folder / file)
    return files


def _pairs(samples: Samples, rewards: Tensor, choice: Choice) -> list[list[int]]:
    return best_and_worst(rewards, samples.group, number=choice.each, min_margin=choice.min_margin).tolist()


@torch.no_grad()
def _draws(
    recipe: Recipe, policy: Policy, scorer: Scorer, prompts: Sequence[Prompt], choice: Choice, seed: int
) -> Iterator[tuple[Samples | None, Tensor | None, Tensor]]:
    """Samples of some prompts, their noise [B, ...] where it is kept, and their rewards [B], about eval.batch of them
    at a time; None after each pass."""
    plan = eval_plan(recipe)
    plan = replace(plan, keep_noise=choice.noise) if isinstance(plan, Plan) else plan
    together = max(1, recipe.eval.batch // choice.group)
    for lap in count():
        for start in range(0, len(prompts), together):
            rollout = policy.rollout(
                prompts[start : start + together],
                group_size=choice.group,
                plan=plan,
                seed=seed,
                first=lap * choice.group,
            )
            samples = rollout.samples
            if samples.images is None:
                raise UserError("pairs: the model's samples are no pictures; accepted: a model of pictures")
            total = counted_rewards(scorer.specs, scorer(samples), samples.prompts, samples.group).total
            assert total is not None, "a recipe trains on at least one reward"
            yield samples, noise_of(rollout) if choice.noise else None, total
        yield None, None, torch.empty(0)
