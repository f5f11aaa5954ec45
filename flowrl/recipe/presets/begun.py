"""Presets of completions that are drawn in more than one go: trees, hints, corrections, values. For tokens alone.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
treepo   dapo with trees: every 512 tokens a row parts in two, 2 to 8 of them begin at the prompt; less the means of all
         that share a prefix, whitened over decisions: TreePO (arXiv:2508.17445), its script, whose group is 16. For
         tokens.
tree_grpo  two trees of a prompt, two random steps of each are gone on from, group 6; normalised within the tree plus
         within the prompt: Tree-GRPO (arXiv:2509.21240), whose steps are those of an agent, here lines; clip 0.2,
         sample std + 1e-6, mean over decisions. For tokens.
deepsearch  dapo's loss; a search that expands 256 tokens by 8 others gives the samples, 8 as published, and values of
         their segments, less the mean outcome: DeepSearch (arXiv:2509.25454), its script without cached solutions. For
         tokens.
ghpo     grpo with hints: groups without a reward above 0 are drawn anew with 25, 50 and 75 % of the reference solution
         behind the prompt; mean over decisions: GHPO (arXiv:2507.10628), its code, whose group is 8. For tokens.
edge     grpo with corrections: a wrong completion is told so and goes on for 256 tokens, or gets the right answer, half
         and half; advantages times the mean entropy of all rows over the row's own; mean over decisions: EDGE-GRPO
         (arXiv:2507.21848), its numbers from summaries of its code. For tokens.
vineppo  advantages are changes of the value of a step, a line, which nine continuations from its begin give, 20 steps
         at most; whitened, clip 0.2, mean over decisions: VinePPO (arXiv:2410.01679), its script, whose group is 8; it
         adds a KL of 1e-4. For tokens.

Sample std is `advantage.unbiased`.
"""

from flowrl.recipe.presets.shared import LANGUAGE as SHARED
from flowrl.recipe.presets.shared import REFILL
from flowrl.recipe.presets.values import SUMMED, Values

PLAIN = {"clip": 0.2, "kl_kind": "k3", "aggregate": "decision_mean"}
LANGUAGE: dict[str, Values] = {
    "treepo": {
        "objective": SHARED["dapo"]["objective"],
        "advantage": SUMMED | {"credit": "prefix", "scale": "whiten_by_length"},
        "generation": {"tree": {"kind": "treepo", "segment": 512, "width": 2, "roots": [2, 8]}},
        "train": {"refill": REFILL},
    },
    "tree_grpo": {
        "objective": PLAIN,
        "advantage": SUMMED | {"credit": "trees", "eps": 1e-6},
        "generation": {"tree": {"kind": "tree_grpo", "split": "\n", "trees": 2, "expand": 2, "rounds": 1}},
        "train": {"group": 6},
    },
    "deepsearch": {
        "objective": SHARED["dapo"]["objective"],
        "advantage": SUMMED | {"credit": "nodes", "scale": "none"},
        "generation": {"tree": {"kind": "deepsearch", "segment": 256, "width": 8}},
    },
    "ghpo": {"objective": PLAIN, "advantage": SUMMED, "generation": {"again": {"kind": "hints"}}},
    "edge": {
        "objective": PLAIN | {"weight": "inverse_entropy"},
        "advantage": SUMMED,
        "generation": {"again": {"kind": "corrections"}},
    },
    "vineppo": {
        "objective": PLAIN,
        "advantage": SUMMED | {"credit": "values", "scale": "whiten"},
        "generation": {"again": {"kind": "values", "continuations": 9, "steps": 20, "split": "\n"}},
    },
}
