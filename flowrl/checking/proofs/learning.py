"""Proofs about what training does: the ratio it begins from, the gradient, the first update, the way back."""

import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from flowrl.build import build_learner
from flowrl.checking.proofs.bench import Bench, Replay
from flowrl.checking.proofs.proof import Failed
from flowrl.policies import adapters

RATIO_SHARE = 0.01  # of the clip range: a ratio that is off by less moves no clip


def ratio(bench: Bench) -> str:
    """The replay of every step that the run will train gives the log-prob of its rollout. Returns the largest gap.

    Before the first update the policy is the one that sampled, so pi / pi_old is 1 whatever the objective. At equal
    batch shape the same operations run, and the gap is 0 exactly; accepted is a hundredth of the clip range.
    """
    gaps = bench.replay.gap
    silent = sorted(bench.replay.met - set(gaps))
    if not gaps:
        raise Failed(
            f"no noise at trained step{'' if len(silent) == 1 else 's'} {_listed(silent)}",
            "without noise there is no log-prob, and nothing to learn from",
            "raise sampler.noise, or train other steps (sampler.window)",
        )
    accepted = RATIO_SHARE * min(bench.recipe.objective.clip_range)
    worst = max(gaps, key=lambda step: _or_inf(gaps[step]))
    if not gaps[worst] <= accepted:
        off = [step for step in sorted(gaps) if not gaps[step] <= accepted]
        raise Failed(
            f"|log ratio| up to {gaps[worst]:.2g} at step {worst} (accepted {accepted:.2g}), off at steps "
            f"{', '.join(map(str, off))} of {', '.join(map(str, sorted(gaps)))}",
            "the second forward is not the first: dropout or another random draw in the model, a step function that "
            "depends on more than its arguments, or a half-precision kernel that is not deterministic",
            "make sampler.step a pure function, put the model in eval mode, or set dtype.model=float32",
        )
    said = "1 exactly" if gaps[worst] == 0 else f"|log ratio| at most {gaps[worst]:.2g}"
    none = f"; no noise at {_listed(silent)}: not trained (leave it out: sampler.window)" if silent else ""
    return f"{said} at {len(gaps)} steps ({_listed(sorted(gaps))}){none}"


def gradient(bench: Bench) -> str:
    """Gradient reaches every kind of trainable tensor and is finite. Returns the norm and what got none.

    A kind is a name without its block numbers. The last block of some transformers works out what nobody reads: its
    tensors may get none. A LoRA's inner factor gets exactly 0 as long as its outer factor is 0.
    """
    replay = bench.replay
    if not replay.connected:
        raise Failed(
            "no log-prob has a gradient",
            "nothing that is trained is used by the denoiser's forward, or the pipeline runs it under no_grad",
            "look at lora.targets and lora.modules",
        )
    kinds = _kinds(bench)
    broken = [name for tensors in kinds.values() for name, p in tensors if not _finite(p)]
    if broken:
        raise Failed(
            f"not finite in {len(broken)} tensors, such as {broken[0]}",
            "an overflow in half precision, or a step whose standard deviation is next to 0",
            "dtype.model=bfloat16 or float32; leave the last step out (sampler.window.skip_last=1)",
        )
    waiting = {kind for kind in kinds if ".lora_A" in kind and _norm(kinds[_outer(kind)], weights=True) == 0}
    last = _last_blocks(kinds)
    silent = [
        kind
        for kind, tensors in kinds.items()
        if kind not in waiting and _norm(tensors) == 0 and not {name for name, _ in tensors} <= last
    ]
    if silent:
        raise Failed(
            f"none arrives in {silent[0]}" + (f" and {len(silent) - 1} more kinds" if len(silent) > 1 else ""),
            "the graph is cut between these tensors and the log-prob, or no trained step uses them",
            "name in lora.targets (or lora.modules) only layers that work at the trained steps",
        )
    live = [p for kind, tensors in kinds.items() if kind not in waiting for _, p in tensors]
    without = sum(p.grad is None or not bool(p.grad.any()) for p in live)
    norm = float(torch.stack([p.grad.float().norm() for p in live if p.grad is not None]).norm())
    what = f"norm {norm:.2g}, in {len(live) - without} of {len(live)} {'outer factors' if waiting else 'tensors'}"
    held = sum(len(kinds[kind]) for kind in waiting)
    return what + (f"; 0 in {held} inner ones, as it must be while the outer are 0" if waiting else "")


def update(bench: Bench) -> str:
    """One optimizer step at the recipe's full learning rate changes what is drawn. Returns by how much.

    Then the inner LoRA factors get gradient too, which they could not before.
    """
    before = bench.quiet  # drawn before the step, if it was not yet
    train = bench.recipe.train.model_copy(update={"warmup": 0, "ema": None})
    learner = build_learner(bench.recipe.model_copy(update={"train": train}), bench.policy)
    learner.step()
    gap = float((bench.drawn_quietly() - before).abs().max())
    if not gap > 0:
        raise Failed(
            f"no {bench.unit} changes",
            f"train.lr={train.lr:g} is lost in the rounding of dtype.model={bench.recipe.dtype.model}, or what is "
            "trained is not what is sampled from",
            "raise train.lr, or set dtype.model=float32",
        )
    bench.replay_into(Replay(), bench.rollout, calls=1)
    inner = [p for kind, tensors in _kinds(bench).items() if ".lora_A" in kind for _, p in tensors]
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in inner)
    if inner and not reached:
        raise Failed(
            f"a {bench.unit} changes by {gap:.2g}, but no inner LoRA factor gets gradient though the outer ones moved",
            "the inner factors are cut off the graph",
            "lora.init=default",
        )
    more = f"; then {reached} of {len(inner)} inner factors get gradient" if inner else ""
    return f"a {bench.unit} changes by up to {gap:.2g}{more}"


def way_back(bench: Bench) -> str:
    """With its adapters disabled the updated model draws what it drew before, bit for bit: it is its own reference."""
    with adapters.disabled(bench.policy.modules):
        gap = float((bench.drawn_quietly() - bench.quiet).abs().max())
    if gap != 0:
        raise Failed(
            f"max difference {gap:.2g}",
            "something else than the adapters was trained, or they are merged into the weights",
            "train a plain lora; a divergence (objective.kl) would be measured from the wrong model",
        )
    return f"max difference {gap:.1f}"


def _kinds(bench: Bench) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable tensors by kind: their name with block numbers taken out."""
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in _trained(bench):
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append((name, parameter))
    return kinds


def _trained(bench: Bench) -> Iterator[tuple[str, nn.Parameter]]:
    for component, module in bench.policy.modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{component}.{name}".replace(f".{adapters.ADAPTER}.weight", ""), parameter


def _last_blocks(kinds: dict[str, list[tuple[str, nn.Parameter]]]) -> set[str]:
    """Names of the tensors in the last of their numbered blocks."""
    names = [name for tensors in kinds.values() for name, _ in tensors]
    found = {name: match for name in names if (match := re.match(r"(.*?)\.(\d+)\.", name))}
    highest: dict[str, int] = {}
    for match in found.values():
        highest[match[1]] = max(highest.get(match[1], 0), int(match[2]))
    return {name for name, match in found.items() if int(match[2]) == highest[match[1]]}


def _outer(kind: str) -> str:
    return kind.replace(".lora_A", ".lora_B")


def _norm(tensors: list[tuple[str, nn.Parameter]], *, weights: bool = False) -> float:
    """The largest absolute gradient, or weight."""
    values = [p if weights else p.grad for _, p in tensors]
    return max((float(v.detach().abs().max()) for v in values if v is not None), default=0.0)


def _finite(parameter: nn.Parameter) -> bool:
    return parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def _or_inf(value: float) -> float:
    return value if value == value else float("inf")


def _listed(steps: list[int]) -> str:
    whole = len(steps) > 2 and steps == list(range(steps[0], steps[-1] + 1))
    return f"{steps[0]} to {steps[-1]}" if whole else ", ".join(map(str, steps))
