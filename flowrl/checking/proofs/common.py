"""The proofs that every kind of model is put to."""

from flowrl.checking.proofs import attention, compiled, learning, moved, surroundings
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Proof


def _has_lora(bench: Bench) -> bool:
    return bench.recipe.lora is not None


PROMPTS = Proof("prompts load", surroundings.prompts_load)
FOLDER = Proof("output folder can be written", surroundings.folder_is_writable)
REWARDS = Proof("rewards can be set up", surroundings.rewards_load)
MODEL = Proof("model loads and can be replayed", surroundings.model_loads, (PROMPTS.title,))
DISK = Proof("disk holds the checkpoints", surroundings.disk_suffices, (FOLDER.title, MODEL.title))
GRADIENT = Proof("gradient arrives and is finite", learning.gradient, (MODEL.title,))
SCORES = Proof("rewards score and vary within groups", surroundings.rewards_vary, (REWARDS.title, MODEL.title))
UPDATE = Proof("one update changes the samples", learning.update, (GRADIENT.title,))
MOVED = Proof("moved adapters keep their log-probs", moved.ratio, (UPDATE.title,), moved.computed_otherwise)
WAY_BACK = Proof("disabling adapters undoes the update", learning.without_adapters, (UPDATE.title,), applies=_has_lora)
ATTENTION = Proof(
    "attention kernels: same numbers", attention.same_numbers, (MODEL.title,), applies=attention.is_chosen
)
COMPILED = Proof(
    "compiled networks give the same numbers", compiled.same_numbers, (MODEL.title,), applies=compiled.is_compiled
)
