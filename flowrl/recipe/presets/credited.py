"""Presets of tokens that give each of them a credit of its own, most with the values of a critic.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
ppo      advantages by GAE (gamma 1, lambda 0.95) with a critic, whitened over the tokens of the batch; clip 0.2, mean
         over decisions: PPO (arXiv:1707.06347) as InstructGPT (arXiv:2203.02155) has it for texts; values clipped
         within 0.5 (verl). A divergence (objective.kl) of kind k1 is charged to the reward.
reinforce_pp no baseline, rewards summed from each token on, whitened over the tokens of the batch: REINFORCE++
         (arXiv:2501.03262); clip 0.2, mean over decisions; a divergence of kind k1 in the reward with 0.01, the default
         of OpenRLHF.
remax    the reward of the prompt's greedy completion as the baseline, no std, log-probs without a ratio, one sample per
         prompt: ReMax (arXiv:2310.10505, algorithm 2); a divergence (objective.kl) is charged to the reward.
orz      GAE with gamma 1 and lambda 1, whitened, no divergence, clip 0.2, twelve updates of the critic per iteration:
         Open-Reasoner-Zero (arXiv:2503.24290, section 2.3).
pf_ppo   ppo with samples resampled by |reward| ** 2 before anything is trained: PF-PPO (arXiv:2409.06957, its code).
vc_ppo   GAE with lambda 0.95 for the policy and 1 for the critic, which alone is trained in the first 100 iterations:
         VC-PPO (arXiv:2503.01491, section 3); whitened, clip 0.2, mean over decisions.
vapo     GAE with lambda 1 - 1 / (0.05 l) for rows of l tokens, 1 for the critic, which alone is trained in the first 50
         iterations; clip 0.2 and 0.28, mean over decisions: VAPO (arXiv:2504.05118, section 4); plus 0.1 times the mean
         of -log p over the tokens of right answers, rewards of 1 or more (objective.right).
starpo   GAE over turns with gamma 0.95, then within them: StarPO with bi-level GAE (arXiv:2504.20073), whitened, clip
         0.2 and 0.28, no divergence. StarPO-S adds advantage.groups=0.25. Turns are those of an environment; a
         row without one is one turn.
grpo_process rewards of steps normalised over all steps of a group, summed from each token on: GRPO with process
         supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3); clip 0.2, mean over decisions, sample std + 1e-4,
         each reward separately. A reward must return scores of steps.
psgpo    ppo with rewards of lines added to the outcome's, and a critic that starts from the weights of the model that
         scores lines, except for its head: PSGPO (arXiv:2410.17621). The recipe gives the weight of the rewards of
         lines, and critic={use: model, path: ...}; without it, the critic starts as a copy of the model.
gflow_subtb trains the probability of texts towards the reference's probability times their reward, at least 0.05, to
         the power 1 / temperature = 2, by the flow through each token: sub-trajectory balance (arXiv:2209.12782), all
         spans of a text alike, with log-flows from a critic that is fitted to the rest of the text. One of the losses
         of GFlowVLM (arXiv:2503.06514), whose flows are rewards and probabilities of stopping after each turn and not
         learned. Floor, temperature and the reference are our own.
gflow_db the same for single tokens: detailed balance (arXiv:2111.09266), the critic fitted to the next token's flow.

Each of these but grpo_process adds up raw rewards; none clips advantages.
"""

from typing import Any

from flowrl.recipe.presets.values import SUMMED, Values

RAW = {"combine": "sum", "baseline": "none", "clip": None}


def _ppo(credit: dict[str, Any], clip: Any = 0.2, right: dict[str, Any] | None = None, **critic: Any) -> Values:
    objective = {"clip": clip, "kl_kind": "k1", "kl_in": "reward"} | ({} if right is None else {"right": right})
    return {"objective": objective, "advantage": RAW | {"scale": "whiten", "credit": credit}, "critic": critic}


def _flows(lam: float) -> Values:
    given = {"floor": 0.05, "temperature": 0.5, "prior": "reference", "lam": lam}
    return {
        "objective": {"clip": 0.2, "kl_kind": "k3", "loss": {"kind": "sub_balance", **given}},
        "advantage": RAW | {"scale": "none", "credit": {"kind": "flow", "lam": lam}},
        "critic": {"clip": None},
    }


LANGUAGE: dict[str, Values] = {
    "ppo": _ppo({"kind": "gae", "lam": 0.95}),
    "pf_ppo": _ppo({"kind": "gae", "lam": 0.95}) | {"train": {"resample": {"by": "pow", "power": 2.0}}},
    "reinforce_pp": {
        "objective": {"clip": 0.2, "kl": 0.01, "kl_kind": "k1", "kl_in": "reward"},
        "advantage": RAW | {"scale": "whiten", "credit": {"kind": "reward_to_go"}},
    },
    "remax": {
        "objective": {"clip": 0.2, "gate": "pg", "kl_kind": "k1", "kl_in": "reward"},
        "advantage": RAW | {"baseline": "given", "scale": "none", "credit": {"kind": "reward_to_go"}},
        "train": {"group": 1},
    },
    "orz": _ppo({"kind": "gae"}, updates=12),
    "vc_ppo": _ppo({"kind": "gae", "lam": 0.95, "lam_critic": 1.0}, warmup=100),
    "vapo": _ppo({"kind": "gae", "alpha": 0.05, "lam_critic": 1.0}, [0.2, 0.28], {"coef": 0.1}, warmup=50),
    "starpo": _ppo({"kind": "two_level"}, [0.2, 0.28]),
    "grpo_process": {
        "objective": {"clip": 0.2, "kl_kind": "k3"},
        "advantage": SUMMED | {"combine": "per_reward", "credit": {"kind": "step"}},
    },
    "psgpo": _ppo({"kind": "gae", "lam": 0.95}),
    "gflow_subtb": _flows(1.0),
    "gflow_db": _flows(0.0),
}
