"""What is proven of a denoising model before a run, in order."""

from flowrl.checking.proofs import common, learning, noised, sampling, surroundings, teacher
from flowrl.checking.proofs import rows as single_rows
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Proof


def _draws(bench: Bench) -> bool:
    """Whether steps of the walk draw noise and are trained."""
    return not noised.is_noised(bench)


BENCH: type[Bench] = Bench
LOOK = Proof("a look is the walk's velocity", noised.look_at_noised, (common.MODEL.title,), noised.is_noised)
TEACHER = Proof("the teacher can be learned from", teacher.teaches, (common.MODEL.title,), teacher.has_teacher)
PROOFS = (
    common.PROMPTS,
    common.FOLDER,
    common.REWARDS,
    common.MODEL,
    common.DISK,
    Proof("noise 0 equals the untouched pipeline", sampling.equals_pipeline, (common.MODEL.title,)),
    Proof("ratio is 1 at every trained step", learning.ratio, (common.MODEL.title,), _draws),
    Proof("a row does not depend on its batch", single_rows.row_by_itself, (common.MODEL.title,), _draws),
    LOOK,
    common.ATTENTION,
    common.COMPILED,
    common.GRADIENT,
    Proof("noise keeps the sample statistics", sampling.statistics, (common.MODEL.title,), _draws),
    common.SCORES,
    Proof("memory suffices", surroundings.memory_suffices, (common.MODEL.title,)),
    common.UPDATE,
    common.MOVED,
    common.WAY_BACK,
    TEACHER,  # last: adapters of a reference are added to the model
)
