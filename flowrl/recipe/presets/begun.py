"""Presets of completions that are drawn in more than one go: trees, hints, corrections, values. For tokens alone.

preset   what it sets, and its source
-------  -----------------------------------------------------------------------------------------------------------
treepo   dapo with trees: a row splits in two every 512 tokens, 2 to 8 rows begin at the prompt; the advantage is the
         reward minus the mean of all rows that share a prefix, whitened over decisions: TreePO (arXiv:2508.17445), its
         script, whose group is 16. For tokens.
tree_grpo  two trees per prompt, continued from two random steps each, group 6; normalised within the tree plus within
         the prompt: Tree-GRPO (arXiv:2509.21240), whose steps are those of an agent; here steps are lines; clip 0.2,
         sample std + 1e-6, mean over decisions. For tokens.
deepsearch  dapo's loss; a search over segments of 256 tokens, 8 per expansion, gives the samples, 8 as published, and
         the values of their segments, minus the mean outcome: DeepSearch (arXiv:2509.25454), its script without cached
         solutions. For tokens.
ghpo     grpo with hints: groups without a reward above 0 are generated again with 25, 50 and 75 % of the reference
         solution after the prompt; mean over decisions: GHPO (arXiv:2507.10628), its code, whose group is 8. For
         tokens.
edge     grpo with corrections: a wrong completion continues for 256 tokens after a message that it is wrong, or gets
         the right answer, half of each; advantages times the mean entropy of all rows over the row's own; mean over
         decisions: EDGE-GRPO (arXiv:2507.21848), its numbers from summaries of its code. For tokens.
vineppo  the advantage of a step (a line) is the change of value, estimated by nine continuations from its start, for at
         most 20 steps; whitened, clip 0.2, mean over decisions: VinePPO (arXiv:2410.01679), its script, whose group is
         8; it adds a KL of 1e-4. For tokens.

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
