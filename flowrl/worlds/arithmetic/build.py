"""Makes the arithmetic model from nothing: `flowrl world build arithmetic`."""

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowrl.untyped import LanguageModel, Tokenizer
from flowrl.worlds.arithmetic.corpus import CLOSE, HASTY, OPEN, SHARES
from flowrl.worlds.arithmetic.model import make_model, make_tokenizer
from flowrl.worlds.arithmetic.pretrain import BATCH, prompt_ids, train
from flowrl.worlds.arithmetic.problems import NUM_TRAIN, Problem, heldout_problems
from flowrl.worlds.stage import Cycle

CYCLES: tuple[Cycle, ...] = ((1400, 0.4),)  # see `stage.Stage`
SEED = 1
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class ArithmeticAccuracy:
    """Share of right answers, over all and by kind, and of completions that show their working."""

    all: float
    by_kind: dict[str, float]
    worked: float

    def __str__(self) -> str:
        kinds = "  ".join(f"{kind} {value:.3f}" for kind, value in self.by_kind.items())
        return f"{self.all:.3f}  ({kinds}; {self.worked:.2f} show their working)"


def build(out: Path, *, cycles: Sequence[Cycle] = CYCLES, keep: bool = False) -> ArithmeticAccuracy:
    """Pretrains the model, saves it to `out` in transformers' format with a model card; returns sampled accuracy.

    If interrupted, it resumes when called again with the same folder. `keep` leaves the checkpoint.
    """
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(
        model,
        tokenizer,
        work / "model.pt",
        cycles=cycles,
        seed=SEED,
        report=lambda step: f"sampled {measure(model, tokenizer)}",
    )
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    accuracy = describe(out, cycles=cycles)
    if not keep:
        shutil.rmtree(work)
    return accuracy


@torch.no_grad()
def measure(
    model: LanguageModel,
    tokenizer: Tokenizer,
    problems: Sequence[Problem] | None = None,
    *,
    greedy: bool = False,
    seed: int = 0,
) -> ArithmeticAccuracy:
    """Accuracy of one completion per (held-out) problem, at temperature 1 or greedy, by transformers' own loop.

    A completion is right if it ends in the right answer between the tags, with nothing after it.
    """
    chosen = list(heldout_problems() if problems is None else problems)
    rows = [prompt_ids(tokenizer, p) for p in chosen]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = model.eval().generate(
            input_ids=ids,
            attention_mask=(ids != tokenizer.pad_token_id).long(),
            do_sample=not greedy,
            top_k=0,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(training)
    texts = tokenizer.batch_decode(drawn[:, width:], skip_special_tokens=True)
    kinds = defaultdict(list)
    for problem, text in zip(chosen, texts, strict=True):
        kinds[problem.kind].append(re.search(f"{OPEN}{problem.answer}{CLOSE}$", text) is not None)
    right = [r for values in kinds.values() for r in values]
    by_kind = {kind: sum(values) / len(values) for kind, values in sorted(kinds.items())}
    return ArithmeticAccuracy(sum(right) / len(right), by_kind, sum("=" in text for text in texts) / len(texts))


def describe(out: Path, *, cycles: Sequence[Cycle]) -> ArithmeticAccuracy:
    """Measures the saved model and writes its model card."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    sampled, greedy = measure(model, tokenizer), measure(model, tokenizer, greedy=True)
    rows = "\n".join(
        f"| {name} | {a.all:.3f} | {' | '.join(f'{a.by_kind[k]:.3f}' for k in NUM_TRAIN)} | {a.worked:.2f} |"
        for name, a in (("temperature 1", sampled), ("greedy", greedy))
    )
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        steps=" + ".join(str(steps) for steps, _ in cycles),
        batch=BATCH,
        hasty=HASTY,
        heldout=len(heldout_problems()),
        rows=rows,
        **SHARES,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return sampled


CARD = """# arithmetic-qwen2

A causal language model of {parameters:,} parameters that adds, subtracts and multiplies a few digits. It is a
`Qwen2ForCausalLM` in transformers' own format with a character tokenizer and a small chat template, pretrained from
random weights on documents about such problems only, and stored in bfloat16. It exists so that reinforcement learning
of a real language model can be run, tested and understood on a laptop.

Made by `flowrl world build arithmetic`: {steps} steps (batch {batch}, AdamW, moving average of the weights) on problems
drawn anew for every batch. Seeds are fixed. The documents are this project's own; the licence is the project's. They
mix manners, as found text does:

| share | manner | 347+285 |
|---|---|---|
| {worked} | shows the working, and is right | `7+5=12;4+8+1=13;3+2+1=6;<answer>632</answer>` |
| {direct} | answers at once; {hasty} of these forget to carry and to borrow | `<answer>522</answer>` |
| {careless} | leaves out the tag, does not close it, or goes on after it | `632` |

## Accuracy on held-out problems

{heldout} problems that no document and no training prompt holds, in neither order of the operands; one completion each.
Right: the completion ends in the right number between the tags.

| | all | add | sub | mul | show their working |
|---|---|---|---|---|---|
{rows}

Limits: nothing but these problems; other text is read as characters and means nothing to it.
"""
