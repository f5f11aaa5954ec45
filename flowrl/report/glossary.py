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
    "margin": "of pairs: by how much the implicit reward of the better sample exceeds that of the worse one",
    "implicit_accuracy": "share of pairs whose implicit rewards agree with the preference; 1/2 is chance",
    "likelihood": "-log p a token of the texts that are made likelier, of pairs the better one's",
    "right/*": "of the term on right answers (objective.right)",
    "pairs/*": "of the term on preferences between texts from a file (objective.pairs)",
    "expert/*": "of the term on an expert's answers (objective.expert)",
    "store/*": "of samples from earlier iterations that are trained again (train.store)",
    "winner_error": "of pairs: squared error of the velocity at the better sample; it depends on the levels drawn",
    "winner_rise": "of pairs: by how much that error is above the one under the weights it is compared with; a "
    "large rise is likelihood displacement",
    "sample_loss": "loss of the finished samples, from their rewards alone",
    "estimate_reward": "reward of the one-step estimates that the gradient comes from; the samples' own is reward/*",
    "relative_reward": "reward with the positive control word against that with the negative one",
    "pull_norm": "length of the loss's gradient at a finished sample; mean over samples",
    "label": "of pairs of a given and a drawn sample: probability that the given one is preferred, by their rewards",
    "similarity": "of such pairs: squared error of the velocity at the given sample, which is imitated",
    "preference": "of such pairs: the part of the loss that compares the two",
    "given": "share of the prompts whose groups begin with samples from files",
    "mismatch/mean_abs": "mean |log-prob under who trains less that under who sampled|, before an iteration's updates",
    "mismatch/max": "the largest of these differences",
    "mismatch/k3": "estimated divergence of who trains from who sampled (k3), nats a decision",
    "mismatch/ess": "effective share of decisions when each is weighted by its ratio of who trains to who sampled",
    "mismatch/chi2_seq": "mean squared ratio of whole rows, less 1: what a correction by rows has to bear",
    "mismatch/log_ppl_abs_diff": "mean |difference of a row's mean log-prob| between who trains and who sampled",
    "correction/weight": "mean weight of a decision before it is bounded; 1 where who trains is who sampled",
    "correction/limited": "share of decisions whose weight, or whose row's, is beyond the bounds",
    "correction/rejected": "share of decisions that leave the loss by a mask, a rejection or the veto",
    "cov/picked": "share of decisions that objective.covariance picks",
    "off_policy_frac": "share of decisions without policy gradient by objective.off_policy_mask",
    "entropy": "mean entropy of a token's distribution under the weights that learn, in nats",
    "entropy_coef": "coefficient of the entropy in an iteration's loss, moved towards objective.entropy_target",
    "loss": "value of the objective; it has no scale of its own and need not fall",
    "grad_norm": "length of the gradient before clipping, mean over the updates of an iteration",
    "lr": "learning rate of the last update",
    "loss_scale": "factor of the loss, of models in float16",
    "skipped_updates": "share of updates left out because a gradient overflowed float16, which halves the factor",
    "nonfinite_updates": "share of updates left out because a gradient was not finite",
    "empty_updates": "updates without any sample to learn from",
    "active_rows": "share of samples with an advantage other than zero: only these are trained on",
    "groups/zero_variance": "share of prompts whose samples all got the same reward: they teach nothing",
    "log_z": "of balance: mean of log R less log-prob over a prompt's texts, what its rewards add up to, in nats",
    "imbalance": "of balance: by how many nats a text's log-prob and its reward, or flows, disagree",
    "adv/abs_mean": "mean size of the advantages",
    "prompts/seen": "share of all training prompts that were ever drawn and scored",
    "prompts/passed_over/*": "prompts that prompts.choose passed over in the iteration, by reason",
    "prompts/brought_back": "passed-over prompts that had to fill up a draw, as too few others were left",
    "choose/*": "an argument of prompts.choose that the run adapts",
    "budget/samples": "samples that hard prompts got beyond their group's",
    "budget/prompts": "prompts that got them",
    "tree/computed": "of the tokens of all leaves of a tree, the share that had to be computed: the rest is shared",
    "search/leaves": "completions that a search ended with a prompt, those that are no sample included",
    "search/right": "share of its samples that are right",
    "values/states": "begins of steps that were valued, a sample; samples share some",
    "values/continuations": "completions that were drawn to value them",
    "values/mean": "mean value",
    "hints/groups": "share of prompts whose samples were drawn anew with a hint",
    "hints/share": "share of the reference solution that a prompt was given, mean",
    "corrections/again": "share of samples that were told they are wrong and went on",
    "corrections/given": "share of samples that were given the right answer or solution",
    "partial/groups": "groups that ended in the iteration, and are trained",
    "partial/waiting": "groups that go on in the next iteration",
    "partial/age": "how many iterations ago a trained token was drawn, mean",
    "perception": "divergence of what is said beside the pictures from what was said beside changed ones "
    "(objective.perception)",
    "perception_entropy": "-log p a token beside the changed pictures",
    "views/*": "of samples drawn beside changed pictures: gap, how far their log-probs are off those beside the "
    "pictures as they are, a token; by reward, the mean of further samples that are not trained",
    "kl_reward": "divergence from the reference that is paid as a reward (objective.kl_in), a decision",
    "value/mean": "what the critic expected of the decisions, mean",
    "value/return": "what the critic is fitted to, mean",
    "value/explained_variance": "share of the returns' variance that the critic knew beforehand: 1 all, 0 none",
    "value/loss": "loss of the critic: half the squared distance from the returns, the larger of clipped and unclipped",
    "value/error": "squared distance of the critic's values from the returns, while it is fitted",
    "value/clip_frac": "share of decisions where the clip around the values of the rollout leaves no gradient",
    "value/grad_norm": "length of the critic's gradient before clipping",
    "value/lr": "learning rate of the critic's last update",
    "value/nonfinite_updates": "share of the critic's updates left out because a gradient was not finite",
    "time_values": "the critic's values, and the reference's log-probabilities for a divergence in the reward",
    "time_rollout": "drawing samples",
    "time_score": "scoring them",
    "time_train": "computing gradients and updating",
    "time_eval": "held-out evaluations",
    "ranks/balance": "rows that the busiest of several processes trains / mean of all: 1 is even",
    "ranks/bytes": "bytes that processes told each other in an iteration, all together, without gradients",
    "forwards/rollout": "rows (or tokens) that went through the model in drawing samples",
    "forwards/train": "rows (or tokens) that went through the model in training, the reference's included",
    "reward/*/mean": "mean reward of an iteration's samples",
    "reward/*/std": "standard deviation of the reward over an iteration's samples",
    "reward/*/nan": "share of samples that could not be scored",
    "hack_index": "evidence of reward hacking, 0 to 1: the trained reward rises while witnesses fall or the samples no "
    "longer look like the base model's; at 0.5 the alarm hacking rings",
    "hack/*": "a sign of hacking in units of its limit: rise of the trained reward (limit: two standard errors, "
    "prompt by prompt), fall of a witness (three, of means), change of saturation, brightness, contrast or sharpness "
    "(the factor watch.drift), loss of diversity (watch.diversity), divergence from the base (watch.kl_to_base)",
    "kl_to_base": "exact divergence from the model without its adapters, a denoising step's latent element or a token; "
    "mean over a few held-out rollouts",
    "phase": "the phase of the run, from 1",
    "curve/*": "value of a key of the recipe that changes during the run",
    "talk/turns": "turns of the model in a conversation",
    "talk/calls": "calls of tools in a conversation, wrong ones too",
    "talk/wrong_calls": "calls of tools in a conversation that could not be run",
    "talk/*": "share of conversations that ended so: by an answer, a limit of turns or tokens, or a failed environment",
    "samples/*": "statistics of the samples themselves, whatever the reward says",
}

TERMS = {
    "held-out": "prompts that training does not draw, each with its own noise, the same at every evaluation",
    "±": "one standard error over prompts; a change counts as shown beyond two of them, of the paired differences",
    "witness": "a reward of weight 0: measured, never trained on; one that falls while the trained reward rises says "
    "that the reward is gamed",
    "smoothed": "mean over a window centred on the iteration, so that it does not lag; on a log axis of logarithms",
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
