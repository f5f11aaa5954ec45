"""The evidence and the proofs that are specific to language models: completions, ratio, memory."""

import itertools
from functools import cached_property

import psutil
import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench, ReplayEvidence, call_chunks
from flowrl.checking.proofs.learning import RATIO_SHARE, unadapted_samples
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import LogProbs, Rollout, View
from flowrl.exports import language
from flowrl.kinds.language import section_of
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes.saved import count_saved
from flowrl.planning.sizes.units import size_text
from flowrl.policies.language.building import build as build_policy
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.loading import load_language, load_processor

# Of a log-prob in float32, decoded with a cache and replayed without: different batch shapes round differently.
ROUNDING = 5e-5


class TokenBench(Bench):
    """A check's evidence if decisions are tokens. The samples of the base class are greedy completions here."""

    unit = "token or its log-prob"

    @cached_property
    def policy(self) -> LanguagePolicy:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The recipe's policy, checked by its own probe."""
        policy = build_policy(self.recipe)
        policy.max_rows = self.rows_at_once
        policy.prepare(telling(self.drawn_prompts), self.plans[0])
        return policy

    @cached_property
    def plans(self) -> list:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How tokens are drawn, which is the same in every iteration."""
        return [plan_for(self.recipe, 0)]

    @cached_property
    def pipeline_samples(self) -> Tensor:
        """Greedy completions of the prompt pair by the model on disk, by its own `generate`; see `draw_quietly`."""
        network, tokenizer = load_language(self.recipe.model, getattr(torch, self.recipe.dtype.model))
        processor = load_processor(self.recipe.model, section_of(self.recipe).processor)
        return torch.stack(language.complete_greedily(self.recipe, network, tokenizer, processor, self.prompt_pair))

    def draw_quietly(self) -> Tensor:
        """The same completions by the policy as it is now: float64 [P, 2, K], token ids and their log-probs."""
        return torch.stack(language.draw(self.policy, self.recipe, self.prompt_pair))

    def view_of(self, rollout: Rollout) -> View:
        """See Bench: the drawn tokens."""
        return View()

    def replay_into(self, evidence: ReplayEvidence, rollout: Rollout, *, calls: int | None = None) -> None:
        """Replays rows as they were decoded together, with the gradient of advantages of alternating sign."""
        parameters = list(self.policy.trainable())
        frozen = [p for module in self.policy.modules.values() for p in module.parameters()]

        def tick(tokens: int) -> None:
            evidence.forwards += tokens

        with self._peak_memory("train") as start, count_saved([*parameters, *frozen]) as saved:

            def visit(score: LogProbs) -> None:
                mask = rollout.mask[score.rows].to(score.logp.device)
                gap = (score.logp - rollout.rollout_logp[score.rows].to(score.logp.device)).where(mask, 0.0)
                evidence.gap[0] = max(evidence.gap.get(0, 0.0), float(gap.detach().abs().max()))
                evidence.bytes_per_row = max(evidence.bytes_per_row, saved.bytes / len(score.rows))
                if score.logp.requires_grad:
                    evidence.connected = True
                    sign = (1.0 - 2.0 * (score.rows % 2)).to(gap.device)[:, None]
                    ((-sign * gap.exp() * mask).sum() / mask.sum()).backward()

            for part in itertools.islice(call_chunks(rollout, self.rows_at_once), calls):
                self.policy.look(rollout, part, View(), visit, progress=tick)
        evidence.seconds += self._since(start)


def equals_generate(bench: Bench) -> str:
    """Greedy decoding is the model's own `generate`, token for token. Returns the largest difference of a log-prob."""
    own, drawn = bench.pipeline_samples, unadapted_samples(bench)
    gap = float((own[:, 1] - drawn[:, 1]).abs().max())
    if not torch.equal(own[:, 0], drawn[:, 0]):
        raise ProofError(
            f"{int((own[:, 0] != drawn[:, 0]).any(1).sum())} of {len(own)} greedy completions differ",
            "at the start of training the model is not the one on disk, or two tokens are equally likely in half "
            "precision",
            "set lora.init=default, and dtype.model=float32 to tell the two causes apart",
        )
    return f"{len(own)} greedy completions alike, log-probs within {gap:.2g}"


def ratio(bench: Bench) -> str:
    """The replay of every drawn token reproduces the log-prob it was drawn with. Returns the largest gap.

    Before the first update pi / pi_old is 1. Decoding with a cache and a teacher-forced replay round differently, so a
    hundredth of the clip range is accepted, and in any case the rounding of float32.
    """
    gap, tokens = bench.replay.gap[0], int(bench.rollout.mask.sum())
    accepted = max(RATIO_SHARE * min(bench.recipe.objective.clip_range), ROUNDING)
    half = bench.recipe.dtype.model != "float32"
    if not gap <= accepted and not half:
        raise ProofError(
            f"|log ratio| up to {gap:.2g} over {tokens} tokens (accepted {accepted:.2g})",
            "the second forward pass differs from the first: dropout, or attention that reads padding or another cache",
            "put the model in eval mode, or set dtype.model=float32",
        )
    return f"|log ratio| at most {gap:.2g} over {tokens} tokens" + (", in half precision" if half else "")


def memory_suffices(bench: Bench) -> str:
    """The memory that a run needs beyond what is allocated now is free. Returns both.

    Counted: gradients and AdamW's moments (12 bytes per trainable parameter), the average and a kept reference (4
    each), and the activations of a micro-batch, scaled from this check's rows. Not counted: the cache of a rollout, and
    fragmentation.
    """
    recipe, train = bench.recipe, bench.recipe.train
    number = sum(p.numel() for p in bench.policy.trainable())
    state = number * (12 + 4 * (bool(train.ema) + recipe.keeps_reference))
    micro = train.micro_rows or train.prompts * train.group // train.updates
    if bench.device.type == "cuda":
        training = bench.peak["train"] / bench.rows_at_once * micro
        free = torch.cuda.mem_get_info(bench.device)[0]
        free += torch.cuda.memory_reserved(bench.device) - torch.cuda.memory_allocated(bench.device)
    else:
        training, free = bench.replay.bytes_per_row * micro, psutil.virtual_memory().available
    text = (
        f"{size_text(state + training)} beyond the weights ({size_text(training)} activations of {micro} rows, "
        f"{size_text(state)} optimizer); {size_text(free)} free"
    )
    if state + training > free:
        remedy = f"train.micro_batch={max(1, micro // 2)}, or train.gradient_checkpointing=true"
        raise ProofError(text, "one training step is too large for this device", remedy)
    return text + ("" if not recipe.train.gradient_checkpointing else ", without recomputed activations")


def completions_end(bench: Bench) -> str:
    """Most completions end by themselves. Returns their mean length; fails if the limit cuts off every one."""
    samples = bench.rollout.samples
    assert samples.lengths is not None and samples.truncated is not None
    cut, length = int(samples.truncated.sum()), samples.lengths.float()
    limit = plan_for(bench.recipe, 0).max_new_tokens
    text = f"{length.mean():.0f} tokens on average, {cut} of {len(length)} cut off at {limit}"
    if cut == len(length):
        raise ProofError(
            text,
            "generation.max_new_tokens is too small for this task, or the model's end token is not the tokenizer's",
            "raise generation.max_new_tokens, or inspect completions with `flowrl sample`",
        )
    return text
