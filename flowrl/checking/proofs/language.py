"""What is proven of a language model before a run, in order."""

from flowrl.checking.proofs import common, tokens
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Proof
from flowrl.checking.proofs.tokens import TokenBench

BENCH: type[Bench] = TokenBench
PROOFS = (
    common.PROMPTS,
    common.FOLDER,
    common.REWARDS,
    common.MODEL,
    common.DISK,
    Proof("greedy decoding is the model's own", tokens.equals_generate, (common.MODEL.title,)),
    Proof("ratio is 1 at every token", tokens.ratio, (common.MODEL.title,)),
    common.ATTENTION,
    common.COMPILED,
    common.GRADIENT,
    Proof("completions end", tokens.completions_end, (common.MODEL.title,)),
    common.SCORES,
    Proof("memory suffices", tokens.memory_suffices, (common.MODEL.title,)),
    common.UPDATE,
    common.MOVED,
    common.WAY_BACK,
)
