"""Proofs about everything around the model: prompts, rewards, disk, memory."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.core.advantages.combined import advantages, group_stats
from flowrl.planning.sizes.memory import sizes
from flowrl.planning.sizes.units import size_text
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.runs.folder import unused_folder
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import RewardError

CHECKPOINT_BYTES = 16  # per trainable parameter: weight, two moments, average


def prompts_load(bench: Bench) -> str:
    """The prompts load. Returns their numbers, and how many held-out texts are also trained on."""
    train, heldout = bench.prompts
    shared = {p.text for p in train} & {p.text for p in heldout}
    text = f"{len(train)} to train on"
    if not heldout:
        return text + ", none held out"
    overlap = f"{len(shared)} of these texts are also trained on" if shared else "no text in both"
    return f"{text}, {len(heldout)} held out, {overlap}"


def folder_is_writable(bench: Bench) -> str:
    """A file can be written where the run will write. It is removed again, with every folder created for it."""
    wanted = unused_folder(Path(bench.recipe.output or "runs/run"))
    try:
        with contextlib.ExitStack() as undo:
            for missing in reversed([p for p in (wanted, *wanted.parents) if not p.exists()]):
                missing.mkdir()
                undo.callback(missing.rmdir)
            trial = wanted / f".flowrl-check-{uuid.uuid4().hex}"
            undo.callback(trial.unlink, missing_ok=True)
            trial.write_bytes(b"\0" * 4096)
    except OSError as error:
        raise ProofError(
            f"{wanted}: {error.strerror}",
            "a file is in the place of a folder, the location is read-only, or the disk is full",
            "name another folder with output=FOLDER",
        ) from error
    return str(wanted)


def disk_suffices(bench: Bench) -> str:
    """The disk has room for the checkpoints. Returns their size and the free space."""
    wanted = Path(bench.recipe.output or "runs/run").absolute()
    there = next(p for p in (wanted, *wanted.parents) if p.is_dir())
    number = sum(p.numel() for p in bench.policy.trainable())
    keep = bench.recipe.checkpoint.keep + 1  # and the best
    needed = number * CHECKPOINT_BYTES * (keep + 1)  # one more is written before the oldest is removed
    free = shutil.disk_usage(there).free
    text = f"{size_text(needed)} for {keep} checkpoints, {size_text(free)} free"
    if needed > free:
        raise ProofError(
            text, f"{there} is on a disk that is too full", "free some of it, or name another output=FOLDER"
        )
    return text


def rewards_load(bench: Bench) -> str:
    """Every reward can be imported and constructed."""
    try:
        return ", ".join(bench.scorer.rewards)
    except RewardError as error:
        cause = "a package that the reward needs is missing, or its args do not fit"
        raise ProofError(str(error), cause, "install what it names, or change rewards.NAME.args") from error


def rewards_vary(bench: Bench) -> str:
    """Every reward scores real samples, and trained rewards vary within groups. Returns means and silent groups.

    Fails if a reward raises, if a trained one leaves any sample unscored or a witness leaves all unscored, and if no
    sample has an advantage. Groups without spread are reported; they merely teach nothing.
    """
    rollout, scorer = bench.rollout, bench.scorer
    with bench.time_scoring():
        try:
            scores = scorer(rollout.samples)
        except RewardError as error:
            remedy = "call it on a few samples of your own; set required: false if a run may continue without it"
            raise ProofError(str(error), "an error in the reward's own code", remedy) from error
    asked = scorer.asked_masks(rollout.samples)
    for name, score in scores.items():
        score = score[asked[name]] if name in asked else score
        nan = int(score.isnan().sum())
        if scorer.failures[name]:
            raise ProofError(
                f"{name} failed on {scorer.failures[name]} of {len(score)} samples",
                "an error in the reward's own code, which required: false hides from a run",
                f"set rewards.{name}.required=true to see it",
            )
        if nan and (scorer.weights[name] or nan == len(score)):
            raise ProofError(
                f"{name} is NaN for {nan} of {len(score)} samples",
                "the reward could not score them: something that it expects in meta or in the picture is missing",
                f"check what it needs in the prompts' meta, or make it a witness with rewards.{name}.weight=0",
            )
    return _check_spread(bench, scores)


def _check_spread(bench: Bench, scores: dict[str, torch.Tensor]) -> str:
    samples, group = bench.rollout.samples, bench.rollout.samples.group
    counted = counted_rewards(bench.scorer.specs, scores, samples.prompts, group, samples)
    how = bench.recipe.advantage.model_dump(exclude={"credit", "early"})
    adv = advantages(counted.rewards, group, weights=counted.weights, asked=counted.asked, **how)
    tied = group_stats(adv if counted.total is None else counted.total, group).tied
    means = ", ".join(f"{name} {float(s.nanmean()):.3g}" for name, s in scores.items())
    text = f"{means}; {int(tied.sum())} of {len(tied)} groups without spread"
    if not bool((adv != 0).any()):
        raise ProofError(
            f"{text}, so that every advantage is 0",
            "the reward does not tell the samples of a prompt apart: it is constant, saturated, or too coarse",
            "use a graded reward, easier or harder prompts, more noise (sampler.noise), or larger groups (train.group)",
        )
    return text


def memory_suffices(bench: Bench) -> str:
    """The memory that a run needs beyond what is allocated now is free. Returns both.

    Counted: gradients and AdamW's moments (12 bytes per trainable parameter), the average and a kept reference (4
    each), the stored trajectory of an iteration, and the activations of a micro-batch (on a GPU, the measured peak of
    this check's own passes), scaled from this check's rows to the recipe's. Not counted: the rewards' own batches, and
    fragmentation.
    """
    recipe, policy, train = bench.recipe, bench.policy, bench.recipe.train
    number = sum(p.numel() for p in policy.trainable())
    state = number * (12 + 4 * (bool(train.ema) + recipe.keeps_reference))
    rows = train.prompts * train.group
    trajectory = bench.rollout.replay
    stored = sum(_bytes(streams) for part in (trajectory.enter, trajectory.drawn) for streams in part.values())
    stored = stored / len(bench.rollout.rollout_logp) * rows
    micro = train.micro_rows or rows // train.updates
    if bench.device.type == "cuda":
        training = bench.peak["train"] / bench.rows_at_once * micro
        rollout = bench.peak["rollout"] / bench.rows_at_once * (train.rollout_batch or rows)
        free = torch.cuda.mem_get_info(bench.device)[0]
        free += torch.cuda.memory_reserved(bench.device) - torch.cuda.memory_allocated(bench.device)
    else:
        training, rollout = bench.replay.bytes_per_row * micro, 0.0
        if train.gradient_checkpointing and (known := sizes(recipe, bench.drawn_prompts)) is not None:
            training = max(training, known.phases[-1].activations or 0)  # hooks do not see what is recomputed
        free = psutil.virtual_memory().available
    needed = state + stored + max(training, rollout)
    held = sum(p.numel() * p.element_size() for m in modules_of(policy.source).values() for p in m.parameters())
    text = (
        f"{size_text(needed)} beyond the {size_text(held)} of weights ({size_text(training)} activations of "
        f"{micro} rows, {size_text(state)} optimizer, {size_text(stored)} trajectory); {size_text(free)} free"
    )
    if needed > free:
        steps = [] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
        steps += [f"train.micro_batch={max(1, micro // 2)}"] if micro > 1 else []
        steps += [] if recipe.dtype.model != "float32" or bench.device.type == "cpu" else ["dtype.model=bfloat16"]
        remedy = ", ".join(steps) or "use smaller pictures (pipeline.height, width), or a larger device"
        raise ProofError(text, "one training step is too large for this device", remedy)
    return text


def _bytes(streams: dict[int, torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in streams.values())


def describe_model(bench: Bench) -> Iterator[str]:
    """The model, its trainable parameters and its device, in words."""
    policy = bench.policy
    number = sum(p.numel() for p in policy.trainable())
    total = sum(p.numel() for m in policy.modules.values() for p in m.parameters())
    yield type(getattr(policy.source, "model", policy.source)).__name__
    yield f"{number:,} of {total:,} parameters trained"
    yield f"on {bench.device}"


def model_loads(bench: Bench) -> str:
    """The model loads and passes the policy's probe (see policies/pipelines/probing/probe.py). Returns what is
    trained."""
    _ = bench.pipeline_samples  # before the policy is loaded, so that the weights are never in memory twice
    return ", ".join(describe_model(bench))
