"""Proofs about training: the ratio it starts from, the gradient, the first update, the model without its adapters."""

import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowrl.checking.proofs.bench import Bench, ReplayEvidence
from flowrl.checking.proofs.proof import ProofError
from flowrl.learners import build_learner
from flowrl.policies import adapters

RATIO_SHARE = 0.01  # of the clip range: a smaller error of the ratio does not affect the clip


def ratio(bench: Bench) -> str:
    """The replay of every step that the run will train reproduces the rollout's log-prob. Returns the largest gap.

    Before the first update the policy is the one that sampled, so pi / pi_old is 1 whatever the objective. At equal
    batch shape the same operations run and the gap is exactly 0; up to a hundredth of the clip range is accepted.
    """
    gaps = bench.replay.gap
    silent = sorted(bench.replay.visited - set(gaps))
    if not gaps:
        raise ProofError(
            f"no noise at trained step{'' if len(silent) == 1 else 's'} {_join_steps(silent)}",
            "without noise there is no log-prob and nothing to learn from",
            "raise sampler.noise, or train other steps (sampler.window)",
        )
    accepted = RATIO_SHARE * min(bench.recipe.objective.clip_range)
    worst = max(gaps, key=lambda step: _or_inf(gaps[step]))
    if not gaps[worst] <= accepted:
        off = [step for step in sorted(gaps) if not gaps[step] <= accepted]
        raise ProofError(
            f"|log ratio| up to {gaps[worst]:.2g} at step {worst} (accepted {accepted:.2g}), off at steps "
            f"{', '.join(map(str, off))} of {', '.join(map(str, sorted(gaps)))}",
            "the second forward pass differs from the first: dropout or another random draw in the model, a step "
            "function that depends on more than its arguments, or a nondeterministic half-precision kernel",
            "make sampler.step a pure function, put the model in eval mode, or set dtype.model=float32",
        )
    largest = "1 exactly" if gaps[worst] == 0 else f"|log ratio| at most {gaps[worst]:.2g}"
    without_noise = f"; no noise at {_join_steps(silent)}: not trained (leave it out: sampler.window)" if silent else ""
    return f"{largest} at {len(gaps)} steps ({_join_steps(sorted(gaps))}){without_noise}"


def gradient(bench: Bench) -> str:
    """The gradient reaches every kind of trainable tensor and is finite. Returns its norm and what gets none.

    A kind is a name without its block numbers. The last block of some transformers computes outputs that nothing uses:
    its tensors may get no gradient. The gradient of a LoRA's inner factor is exactly 0 while its outer factor is 0.
    """
    replay = bench.replay
    if not replay.connected:
        raise ProofError(
            "no log-prob has a gradient",
            "the denoiser's forward pass uses nothing that is trained, or the pipeline runs it under no_grad",
            "check lora.targets and lora.modules",
        )
    kinds = _parameters_by_kind(bench)
    broken = [name for tensors in kinds.values() for name, p in tensors if not _is_finite(p)]
    if broken:
        raise ProofError(
            f"not finite in {len(broken)} tensors, such as {broken[0]}",
            "an overflow in half precision, or a step whose standard deviation is close to 0",
            "set dtype.model=bfloat16 or float32, or leave the last step out (sampler.window.skip_last=1)",
        )
    waiting = {
        kind for kind in kinds if ".lora_A" in kind and _largest_value(kinds[_outer_factor(kind)], weights=True) == 0
    }
    last = _last_blocks(kinds)
    silent = [
        kind
        for kind, tensors in kinds.items()
        if kind not in waiting and _largest_value(tensors) == 0 and not {name for name, _ in tensors} <= last
    ]
    if silent:
        raise ProofError(
            f"no gradient reaches {silent[0]}" + (f" and {len(silent) - 1} more kinds" if len(silent) > 1 else ""),
            "the graph is cut between these tensors and the log-prob, or no trained step uses them",
            "name in lora.targets (or lora.modules) only layers that are used at the trained steps",
        )
    live = [p for kind, tensors in kinds.items() if kind not in waiting for _, p in tensors]
    without = sum(p.grad is None or not bool(p.grad.any()) for p in live)
    norm = float(torch.stack([p.grad.float().norm() for p in live if p.grad is not None]).norm())
    what = f"norm {norm:.2g}, in {len(live) - without} of {len(live)} {'LoRA factors B' if waiting else 'tensors'}"
    held = sum(len(kinds[kind]) for kind in waiting)
    return what + (f"; 0 in {held} factors A, as expected while B is 0" if waiting else "")


def update(bench: Bench) -> str:
    """One optimizer step at the recipe's full learning rate changes the samples. Returns by how much.

    Afterwards the LoRA factors A get gradients too.
    """
    before = bench.quiet_samples  # drawn before the step, if it was not yet
    train = bench.recipe.train.model_copy(update={"warmup": 0, "ema": None})
    learner = build_learner(bench.recipe.model_copy(update={"train": train}), bench.policy)
    learner.step()
    gap = float((bench.draw_quietly() - before).abs().max())
    if not gap > 0:
        raise ProofError(
            f"no {bench.unit} changes",
            f"train.lr={train.lr:g} is lost in the rounding of dtype.model={bench.recipe.dtype.model}, or the trained "
            "weights are not the ones that are sampled from",
            "raise train.lr, or set dtype.model=float32",
        )
    bench.replay_into(ReplayEvidence(), bench.rollout, calls=1)
    inner = [p for kind, tensors in _parameters_by_kind(bench).items() if ".lora_A" in kind for _, p in tensors]
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in inner)
    if inner and not reached:
        raise ProofError(
            f"a {bench.unit} changes by {gap:.2g}, but no LoRA factor A gets a gradient after the factors B moved",
            "the factors A are not part of the graph",
            "set lora.init=default",
        )
    more = f"; then {reached} of {len(inner)} LoRA factors A get a gradient" if inner else ""
    return f"a {bench.unit} changes by up to {gap:.2g}{more}"


def unadapted_samples(bench: Bench) -> Tensor:
    """`Bench.quiet_samples` of the model as it is on disk: without adapters that go on from a folder and change it."""
    lora = bench.recipe.lora
    if lora is None or lora.begun is None:
        return bench.quiet_samples
    with adapters.disable_adapters(bench.policy.modules):
        return bench.draw_quietly()


def without_adapters(bench: Bench) -> str:
    """With its adapters disabled the updated model draws the same as before, bit for bit: it is its own reference."""
    with adapters.disable_adapters(bench.policy.modules):
        gap = float((bench.draw_quietly() - unadapted_samples(bench)).abs().max())
    if gap != 0:
        raise ProofError(
            f"max difference {gap:.2g}",
            "something other than the adapters was trained, or they are merged into the weights",
            "train a plain lora: otherwise the divergence (objective.kl) is measured from the wrong model",
        )
    return f"max difference {gap:.1f}"


def _parameters_by_kind(bench: Bench) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable tensors by kind: their name without block numbers."""
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in _trained_parameters(bench):
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append((name, parameter))
    return kinds


def _trained_parameters(bench: Bench) -> Iterator[tuple[str, nn.Parameter]]:
    for component, module in bench.policy.modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{component}.{name}".replace(f".{adapters.ADAPTER}.weight", ""), parameter


def _last_blocks(kinds: dict[str, list[tuple[str, nn.Parameter]]]) -> set[str]:
    """Names of the tensors in the last of their numbered blocks."""
    names = [name for tensors in kinds.values() for name, _ in tensors]
    matches = {name: match for name in names if (match := re.match(r"(.*?)\.(\d+)\.", name))}
    highest: dict[str, int] = {}
    for match in matches.values():
        highest[match[1]] = max(highest.get(match[1], 0), int(match[2]))
    return {name for name, match in matches.items() if int(match[2]) == highest[match[1]]}


def _outer_factor(kind: str) -> str:
    return kind.replace(".lora_A", ".lora_B")


def _largest_value(tensors: list[tuple[str, nn.Parameter]], *, weights: bool = False) -> float:
    """The largest absolute gradient, or weight."""
    values = [p if weights else p.grad for _, p in tensors]
    return max((float(v.detach().abs().max()) for v in values if v is not None), default=0.0)


def _is_finite(parameter: nn.Parameter) -> bool:
    return parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def _or_inf(value: float) -> float:
    return value if value == value else float("inf")


def _join_steps(steps: list[int]) -> str:
    whole = len(steps) > 2 and steps == list(range(steps[0], steps[-1] + 1))
    return f"{steps[0]} to {steps[-1]}" if whole else ", ".join(map(str, steps))
