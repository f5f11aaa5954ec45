"""What is proven of a denoising model before a run, in order."""

from flowrl.checking.proofs import common, learning, sampling, surroundings
from flowrl.checking.proofs import rows as single_rows
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Proof

BENCH: type[Bench] = Bench
PROOFS = (
    common.PROMPTS,
    common.FOLDER,
    common.REWARDS,
    common.MODEL,
    common.DISK,
    Proof("noise 0 equals the untouched pipeline", sampling.equals_pipeline, (common.MODEL.title,)),
    Proof("ratio is 1 at every trained step", learning.ratio, (common.MODEL.title,)),
    Proof("a row is the same in any company", single_rows.row_by_itself, (common.MODEL.title,)),
    common.GRADIENT,
    Proof("noise keeps the sample statistics", sampling.statistics, (common.MODEL.title,)),
    common.SCORES,
    Proof("memory suffices", surroundings.memory_suffices, (common.MODEL.title,)),
    common.UPDATE,
    common.WAY_BACK,
)
