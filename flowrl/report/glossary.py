"""What each metric means, in a few words; used in the charts' hints and in the glossary at the end of the page."""

METRICS = {
    "ratio": "probability of a decision under the current policy over that under the policy that sampled it; mean",
    "log_ratio": "logarithm of the ratio, mean",
    "replay_gap_max": "largest |log ratio| before the first update, when both policies are the same: numerics alone",
    "abs_log_ratio_max": "largest |log ratio| of the iteration: how far the policy moved from the one that sampled",
    "clip_frac": "share of decisions where the clip decides the loss, so that they have no gradient",
    "outside_frac": "share of decisions with a ratio outside the clip range, whichever branch of the loss decides",
    "dual_frac": "share of decisions where the upper bound of the loss (dual clip) decides",
    "approx_kl": "estimated divergence of the updated policy from the one that sampled (k3 estimator)",
    "kl": "divergence from the reference, the model before training",
    "old_distance": "mean squared difference of the velocity from that of the older weights",
    "margin": "for pairs: by how much the implicit reward of the better sample exceeds that of the worse one",
    "implicit_accuracy": "share of pairs whose implicit rewards agree with the preference; 1/2 is chance",
    "likelihood": "-log p per token of the texts that are made likelier; for pairs, of the better one",
    "right/*": "metrics of the term on right answers (objective.right)",
    "pairs/*": "metrics of the term on preferences between texts from a file (objective.pairs)",
    "expert/*": "metrics of the term on an expert's answers (objective.expert)",
    "store/*": "metrics of samples from earlier iterations that are trained again (train.store)",
    "winner_error": "for pairs: squared error of the velocity at the better sample; it depends on the sampled levels",
    "winner_rise": "for pairs: how far that error is above the error under the weights it is compared with; a "
    "large rise is likelihood displacement",
    "sample_loss": "loss of the finished samples, from their rewards alone",
    "estimate_reward": "reward of the one-step estimates that the gradient comes from; that of the samples is reward/*",
    "relative_reward": "reward with the positive control word minus the reward with the negative one",
    "pull_norm": "norm of the gradient of the loss at a finished sample; mean over samples",
    "label": "for pairs of a given and a generated sample: probability that the given one is preferred, by rewards",
    "similarity": "for such pairs: squared error of the velocity at the given sample, which is imitated",
    "preference": "for such pairs: the part of the loss that compares the two",
    "given": "share of the prompts whose groups begin with samples from files",
    "mismatch/mean_abs": "mean |log-prob under the trained policy - log-prob under the one that sampled|, "
    "before the updates",
    "mismatch/max": "the largest of these differences",
    "mismatch/k3": "estimated divergence of the trained policy from the one that sampled (k3), in nats per decision",
    "mismatch/ess": "effective share of decisions, weighted by the ratio of the trained policy to the one that sampled",
    "mismatch/chi2_seq": "mean squared ratio of whole rows, minus 1: the variance of row weights",
    "mismatch/log_ppl_abs_diff": "mean |difference of a row's mean log-prob| between the trained policy and the "
    "one that sampled",
    "correction/weight": "mean weight of a decision before it is bounded; 1 if the trained policy sampled",
    "correction/limited": "share of decisions whose weight, or whose row's weight, is outside the bounds",
    "correction/rejected": "share of decisions that a mask, a rejection or the veto removes from the loss",
    "cov/picked": "share of decisions that objective.covariance picks",
    "off_policy_frac": "share of decisions without policy gradient by objective.off_policy_mask",
    "entropy": "mean entropy of a token's distribution under the trained weights, in nats",
    "entropy_coef": "coefficient of the entropy in an iteration's loss, moved towards objective.entropy_target",
    "loss": "value of the objective; it has no scale of its own and need not fall",
    "grad_norm": "norm of the gradient before clipping, mean over the updates of an iteration",
    "lr": "learning rate of the last update",
    "loss_scale": "factor of the loss, for models in float16",
    "skipped_updates": "share of updates left out because a gradient overflowed float16, which halves the factor",
    "nonfinite_updates": "share of updates left out because a gradient was not finite",
    "empty_updates": "updates without any sample to learn from",
    "active_rows": "share of samples with an advantage other than zero: only these are trained on",
    "groups/zero_variance": "share of prompts whose samples all got the same reward, so that they teach nothing",
    "log_z": "trajectory balance: mean of log R minus log-prob over the texts of a prompt, in nats",
    "imbalance": "trajectory balance: difference between a text's log-prob and its reward, or flows, in nats",
    "adv/abs_mean": "mean size of the advantages",
    "prompts/seen": "share of all training prompts that were ever drawn and scored",
    "prompts/passed_over/*": "prompts that prompts.choose skipped in the iteration, by reason",
    "prompts/brought_back": "skipped prompts that were drawn all the same, because too few others were left",
    "choose/*": "an argument of prompts.choose that the run adapts",
    "budget/samples": "additional samples of hard prompts",
    "budget/prompts": "prompts with additional samples",
    "tree/computed": "share of the tokens of all leaves of a tree that had to be computed; the rest is shared",
    "search/leaves": "finished completions of a search per prompt, also those that are not used as samples",
    "search/right": "share of the samples of a search that are right",
    "values/states": "starts of steps whose value was estimated, per sample; samples share some",
    "values/continuations": "completions that were generated to estimate these values",
    "values/mean": "mean value",
    "hints/groups": "share of prompts whose samples were generated again with a hint",
    "hints/share": "share of the reference solution in a hint, mean",
    "corrections/again": "share of samples that continued after the message that they are wrong",
    "corrections/given": "share of samples that were given the right answer or solution",
    "partial/groups": "groups that were finished in the iteration, and are trained",
    "partial/waiting": "groups that continue in the next iteration",
    "partial/age": "age of a trained token in iterations, mean",
    "perception": "divergence of the policy with the pictures from the policy with changed ones (objective.perception)",
    "perception_entropy": "-log p per token with the changed pictures",
    "views/*": "samples with changed pictures: gap, the difference of their log-probs per token from those with the "
    "original pictures; by reward, the mean of further samples that are not trained",
    "kl_reward": "divergence from the reference that is charged to the reward (objective.kl_in), per decision",
    "value/mean": "mean value that the critic predicted",
    "value/return": "mean return that the critic is fitted to",
    "value/explained_variance": "share of the variance of returns that the critic predicted: 1 all, 0 none",
    "value/loss": "loss of the critic: half the squared distance from the returns, the larger of clipped and unclipped",
    "value/error": "squared distance of the critic's values from the returns, while it is fitted",
    "value/clip_frac": "share of decisions where the clip around the values of the rollout leaves no gradient",
    "value/grad_norm": "norm of the critic's gradient before clipping",
    "value/lr": "learning rate of the critic's last update",
    "value/nonfinite_updates": "share of the critic's updates left out because a gradient was not finite",
    "time_values": "the critic's values, and the reference's log-probabilities for a divergence in the reward",
    "time_rollout": "generating samples",
    "time_rollout/weights": "taking the weights to the server that generates; part of time_rollout",
    "time_rollout/draw": "the server's completions; part of time_rollout",
    "time_score": "scoring them",
    "time_train": "computing gradients and updating",
    "time_eval": "held-out evaluations",
    "ranks/balance": "rows that the busiest of several processes trains / mean of all: 1 is even",
    "ranks/bytes": "bytes that all processes exchanged in an iteration, without gradients",
    "forwards/rollout": "rows (or tokens) that went through the model in rollouts",
    "forwards/train": "rows (or tokens) that went through the model in training, including the reference",
    "reward/*/mean": "mean reward of an iteration's samples",
    "reward/*/std": "standard deviation of the reward over an iteration's samples",
    "reward/*/nan": "share of samples that could not be scored",
    "hack_index": "evidence of reward hacking, 0 to 1: the trained reward rises while witnesses fall or the samples no "
    "longer look like those of the base model; at 0.5 the alarm hacking is raised",
    "hack/*": "a sign of hacking in units of its limit: rise of the trained reward (limit: two standard errors, "
    "prompt by prompt), fall of a witness (three, of means), change of saturation, brightness, contrast or sharpness "
    "(the factor watch.drift), loss of diversity (watch.diversity), divergence from the base (watch.kl_to_base)",
    "kl_to_base": "exact divergence from the model without its adapters, per latent element of a denoising step "
    "or per token; "
    "mean over a few held-out rollouts",
    "phase": "the phase of the run, from 1",
    "curve/*": "value of a recipe key that changes during the run",
    "talk/turns": "turns of the model in a conversation",
    "talk/calls": "calls of tools in a conversation, wrong ones too",
    "talk/wrong_calls": "calls of tools in a conversation that could not be run",
    "talk/*": "share of conversations that ended in this way: an answer, a limit of turns or tokens, a failed "
    "environment",
    "samples/*": "statistics of the samples themselves, whatever the reward says",
}

TERMS = {
    "held-out": "prompts that are not trained on, each with its own noise, the same at every evaluation",
    "±": "one standard error over prompts; a change counts if it is larger than two standard errors of the "
    "paired differences",
    "witness": "a reward of weight 0: measured, never trained on. If it falls while the trained reward rises, "
    "the policy "
    "games the reward",
    "smoothed": "mean over a window centred on the iteration, so that it does not lag; on a log axis, mean of "
    "logarithms",
}


def meaning(metric: str) -> str:
    """What a metric means; empty for one without a description."""
    if metric in METRICS:
        return METRICS[metric]
    head, _, tail = metric.rpartition("/")
    if metric.startswith("reward/"):
        return METRICS.get(f"reward/*/{tail}", "")
    if head == "hack":
        return METRICS["hack/*"]
    for start in ("curve", "right", "expert", "pairs", "store", "choose", "prompts/passed_over", "talk", "views"):
        if metric.startswith(f"{start}/"):
            return METRICS[f"{start}/*"]
    return METRICS["samples/*"] if head.startswith("samples") else ""
