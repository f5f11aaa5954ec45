"""The proof that a row does not depend on the others in its call: micro-batches are cut differently than rollouts."""

from dataclasses import replace

import torch

from flowrl.checking.proofs.bench import SEED, Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import LogProbs, Prompt, View
from flowrl.policies.pipelines.probing.probe import REPLAY_TOLERANCE, REPLAY_TOLERANCE_HALF
from samplers.plan import Plan


def row_by_itself(bench: Bench) -> str:
    """Rows drawn in calls of two and replayed one by one keep the rollout's log-prob. Returns the largest gap.

    The two rows are the longest and the shortest training prompt, and one prompt twice. They are called as in a run.
    """
    train, policy, plan = bench.prompts[0], bench.policy, _straight_plan(bench)
    unequal = [max(train, key=lambda p: len(p.text)), min(train, key=lambda p: len(p.text))]
    policy.max_rows, before = bench.recipe.train.rollout_batch, policy.max_rows
    try:
        gap = max(_largest_gap(bench, *rows, plan) for rows in ((unequal, 1), (train[:1], 2)))
    finally:
        policy.max_rows = before
    accepted = REPLAY_TOLERANCE if bench.recipe.dtype.model == "float32" else REPLAY_TOLERANCE_HALF
    if not gap <= accepted:
        raise ProofError(
            f"|log ratio| {gap:.2g} of a row by itself (accepted {accepted:g})",
            "the pipeline's result for a row depends on the others in its call",
            "set train.rollout_batch=1, so that every row has its own call",
        )
    return f"{policy.sharing}, |log ratio| at most {gap:.2g}"


def _straight_plan(bench: Bench) -> Plan:
    """The first iteration's steps without branches, each row from its own initial noise."""
    first = bench.plans[0]
    steps = first.tree(bench.group).trained
    return replace(first, share_noise=False) if isinstance(first, Plan) else Plan(first.num_steps, steps, steps)


@torch.no_grad()
def _largest_gap(bench: Bench, prompts: list[Prompt], group: int, plan: Plan) -> float:
    """The largest gap over decisions with noise, of log-probs as means over elements whatever `sampler.reduce` is."""
    rollout = bench.policy.rollout(prompts, group_size=group, plan=plan, seed=bench.recipe.seed + SEED)
    gaps: list[float] = []

    def visit(score: LogProbs) -> None:
        at = score.rows[:, None], score.columns[None]
        gaps.extend((score.logp.cpu() - rollout.rollout_logp[at])[rollout.mask[at]].abs().tolist())

    for row in range(len(rollout.rollout_logp)):
        bench.policy.look(rollout, torch.tensor([row]), View(), visit)
    summed = bench.recipe.sampler.reduce == "sum"
    elements = rollout.replay.drawn[plan.trained[0]][0][0].numel() if summed else 1
    worst = max(gaps, default=0.0)
    return worst / elements if worst == worst else float("inf")
