"""Proofs about what stands around the model: prompts, rewards, disk, memory."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Failed
from flowrl.core.advantages import advantages, group_stats
from flowrl.planning.sizes.memory import sizes
from flowrl.planning.sizes.units import size_text
from flowrl.policies.pipelines.working_copy import modules_of
from flowrl.runs.folder import fresh
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import RewardError

CHECKPOINT_BYTES = 16  # of a trainable parameter: weight, two moments, average


def prompts(bench: Bench) -> str:
    """The prompts load. Returns their numbers, and how many held-out texts are trained on."""
    train, heldout = bench.prompts
    shared = {p.text for p in train} & {p.text for p in heldout}
    said = f"{len(train)} to train on"
    if not heldout:
        return said + ", none held out"
    overlap = f"{len(shared)} of these texts are trained on as well" if shared else "no text in both"
    return f"{said}, {len(heldout)} held out, {overlap}"


def folder(bench: Bench) -> str:
    """A file can be written where the run will write. It is removed again, with every folder made for it."""
    wanted = fresh(Path(bench.recipe.output or "runs/run"))
    try:
        with contextlib.ExitStack() as undo:
            for missing in reversed([p for p in (wanted, *wanted.parents) if not p.exists()]):
                missing.mkdir()
                undo.callback(missing.rmdir)
            trial = wanted / f".flowrl-check-{uuid.uuid4().hex}"
            undo.callback(trial.unlink, missing_ok=True)
            trial.write_bytes(b"\0" * 4096)
    except OSError as error:
        raise Failed(
            f"{wanted}: {error.strerror}",
            "a file stands where a folder is needed, the place is read-only, or the disk is full",
            "name another folder with output=FOLDER",
        ) from error
    return str(wanted)


def disk(bench: Bench) -> str:
    """The disk holds the checkpoints. Returns what they take and what is free."""
    wanted = Path(bench.recipe.output or "runs/run").absolute()
    there = next(p for p in (wanted, *wanted.parents) if p.is_dir())
    number = sum(p.numel() for p in bench.policy.trainable())
    keep = bench.recipe.checkpoint.keep + 1  # and the best
    needed = number * CHECKPOINT_BYTES * (keep + 1)  # one more is written aside before the oldest goes
    free = shutil.disk_usage(there).free
    said = f"{size_text(needed)} for {keep} checkpoints, {size_text(free)} free"
    if needed > free:
        raise Failed(said, f"{there} is on a disk that is too full", "free some of it, or name another output=FOLDER")
    return said


def rewards_load(bench: Bench) -> str:
    """Every reward can be imported and constructed."""
    try:
        return ", ".join(bench.scorer.rewards)
    except RewardError as error:
        cause = "a package that the reward needs is not there, or its args do not fit"
        raise Failed(str(error), cause, "install what it names, or change rewards.NAME.args") from error


def rewards(bench: Bench) -> str:
    """Every reward scores real samples, and what is trained differs within groups. Returns means and silent groups.

    Fails where a reward raises, where a trained one leaves a sample unscored or a witness all of them, and where no
    sample has an advantage. Single groups without spread are told, they merely teach nothing.
    """
    rollout, scorer = bench.rollout, bench.scorer
    with bench.scoring():
        try:
            scores = scorer(rollout.samples)
        except RewardError as error:
            remedy = "call it on a few samples of your own; set required: false if a run may go on without it"
            raise Failed(str(error), "an error in the reward's own code", remedy) from error
    asked = scorer.asked(rollout.samples)
    for name, score in scores.items():
        score = score[asked[name]] if name in asked else score
        nan = int(score.isnan().sum())
        if scorer.failures[name]:
            raise Failed(
                f"{name} failed on {scorer.failures[name]} of {len(score)} samples",
                "an error in the reward's own code, which required: false hides from a run",
                f"set rewards.{name}.required=true to see it",
            )
        if nan and (scorer.weights[name] or nan == len(score)):
            raise Failed(
                f"{name} is NaN for {nan} of {len(score)} samples",
                "the reward could not score them: something that it looks for in meta or in the picture is missing",
                f"look at what it needs of the prompts' meta, or make it a witness with rewards.{name}.weight=0",
            )
    return _spread(bench, scores)


def _spread(bench: Bench, scores: dict[str, torch.Tensor]) -> str:
    group = bench.rollout.samples.group
    found = counted_rewards(bench.scorer.specs, scores, bench.rollout.samples.prompts, group)
    how = bench.recipe.advantage.model_dump()
    adv = advantages(found.rewards, group, weights=found.weights, asked=found.asked, **how)
    tied = group_stats(adv if found.total is None else found.total, group).tied
    means = ", ".join(f"{name} {float(s.nanmean()):.3g}" for name, s in scores.items())
    said = f"{means}; {int(tied.sum())} of {len(tied)} groups without spread"
    if not bool((adv != 0).any()):
        raise Failed(
            f"{said}, so that every advantage is 0",
            "the reward does not tell the samples of a prompt apart: it is constant, saturated, or too coarse",
            "a graded reward, easier or harder prompts, more noise (sampler.noise), or larger groups (train.group)",
        )
    return said


def memory(bench: Bench) -> str:
    """What a run needs beyond what is held now fits into the memory that is free. Returns both.

    Counted: gradients and AdamW's moments (12 bytes a trainable parameter), the average and a kept reference (4 each),
    the stored trajectory of an iteration, and the activations of a micro-batch (on a GPU the measured peak of this
    check's own passes), scaled from this check's rows to the recipe's. Not counted: a reward's own batches,
    fragmentation.
    """
    recipe, policy, train = bench.recipe, bench.policy, bench.recipe.train
    number = sum(p.numel() for p in policy.trainable())
    state = number * (12 + 4 * (bool(train.ema) + recipe.keeps_reference))
    rows = train.prompts * train.group
    trajectory = bench.rollout.replay
    stored = sum(_bytes(streams) for part in (trajectory.enter, trajectory.drawn) for streams in part.values())
    stored = stored / len(bench.rollout.rollout_logp) * rows
    micro = train.micro_batch or rows // train.updates
    if bench.device.type == "cuda":
        training = bench.peak["train"] / bench.rows_at_once * micro
        rollout = bench.peak["rollout"] / bench.rows_at_once * (train.rollout_batch or rows)
        free = torch.cuda.mem_get_info(bench.device)[0]
        free += torch.cuda.memory_reserved(bench.device) - torch.cuda.memory_allocated(bench.device)
    else:
        training, rollout = bench.replay.bytes_per_row * micro, 0.0
        if train.gradient_checkpointing and (known := sizes(recipe, bench.drawn)) is not None:
            training = max(training, known.phases[-1].activations or 0)  # what is computed again is not seen by hooks
        free = psutil.virtual_memory().available
    needed = state + stored + max(training, rollout)
    held = sum(p.numel() * p.element_size() for m in modules_of(policy.source).values() for p in m.parameters())
    said = (
        f"{size_text(needed)} beyond the {size_text(held)} of weights ({size_text(training)} activations of "
        f"{micro} rows, {size_text(state)} optimizer, {size_text(stored)} trajectory); {size_text(free)} free"
    )
    if needed > free:
        steps = [] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
        steps += [f"train.micro_batch={max(1, micro // 2)}"] if micro > 1 else []
        steps += [] if recipe.dtype.model != "float32" or bench.device.type == "cpu" else ["dtype.model=bfloat16"]
        remedy = ", ".join(steps) or "a smaller picture (pipeline.height, width), or a larger device"
        raise Failed(said, "one training step is too large for this device", remedy)
    return said


def _bytes(streams: dict[int, torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in streams.values())


def parts_of(bench: Bench) -> Iterator[str]:
    """What learns, in words."""
    policy = bench.policy
    number = sum(p.numel() for p in policy.trainable())
    total = sum(p.numel() for m in policy.modules.values() for p in m.parameters())
    yield type(getattr(policy.source, "model", policy.source)).__name__
    yield f"{number:,} of {total:,} parameters learn"
    yield f"on {bench.device}"


def model(bench: Bench) -> str:
    """The model loads and keeps the contract of a policy (see policies/probe.py). Returns what learns, and where."""
    _ = bench.untouched  # before the policy is there, so that no two copies of the weights are held
    return ", ".join(parts_of(bench))
