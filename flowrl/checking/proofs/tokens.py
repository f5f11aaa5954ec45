"""The evidence and the proofs that are a language model's own: its completions, its ratio, its memory."""

import itertools
from functools import cached_property

import psutil
import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench, Replay, parts
from flowrl.checking.proofs.learning import RATIO_SHARE
from flowrl.checking.proofs.proof import Failed
from flowrl.contracts import LogProbs, Rollout, View
from flowrl.exports import language
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes.saved import count_saved
from flowrl.planning.sizes.units import size_text
from flowrl.policies.language.building import build as build_policy
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language

# Of a log-prob in float32, decoded with a cache and replayed without one: other batch shapes, hence other roundings.
ROUNDING = 5e-5


class TokenBench(Bench):
    """A check's evidence where decisions are tokens. "Pictures" of the base class are greedy completions here."""

    unit = "token or its log-prob"

    @cached_property
    def policy(self) -> LanguagePolicy:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The recipe's policy, proven by its own probe."""
        policy = build_policy(self.recipe)
        policy.max_rows = self.rows_at_once
        policy.prepare(self.drawn[0], self.plans[0])
        return policy

    @cached_property
    def plans(self) -> list:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How tokens are drawn, alike in every iteration."""
        return [plan_for(self.recipe, 0)]

    @cached_property
    def untouched(self) -> Tensor:
        """Greedy completions of the pair by the model as it is on disk, through its own `generate`; see `language`."""
        network, tokenizer = load_language(self.recipe.model, getattr(torch, self.recipe.dtype.model))
        return torch.stack(language.complete_greedily(self.recipe, network, tokenizer, self.pair))

    def drawn_quietly(self) -> Tensor:
        """The same completions by the policy as it is now: [P, 2, K], token ids and their log-probs."""
        return torch.stack(language.draw(self.policy, self.recipe, self.pair))

    def replay_into(self, found: Replay, rollout: Rollout, *, calls: int | None = None) -> None:
        """Replays in the parts that were decoded together, with the gradient of advantages that alternate."""
        parameters = list(self.policy.trainable())
        frozen = [p for module in self.policy.modules.values() for p in module.parameters()]

        def tick(tokens: int) -> None:
            found.forwards += tokens

        self.policy.tick = tick
        with self._watched("train") as start, count_saved([*parameters, *frozen]) as saved:

            def visit(score: LogProbs) -> None:
                mask = rollout.mask[score.rows].to(score.logp.device)
                gap = (score.logp - rollout.rollout_logp[score.rows].to(score.logp.device)).where(mask, 0.0)
                found.gap[0] = max(found.gap.get(0, 0.0), float(gap.detach().abs().max()))
                found.bytes_per_row = max(found.bytes_per_row, saved.bytes / len(score.rows))
                if score.logp.requires_grad:
                    found.connected = True
                    sign = (1.0 - 2.0 * (score.rows % 2)).to(gap.device)[:, None]
                    ((-sign * gap.exp() * mask).sum() / mask.sum()).backward()

            for part in itertools.islice(parts(rollout, self.rows_at_once), calls):
                self.policy.look(rollout, part, View(), visit)
        self.policy.tick = None
        found.seconds += self._since(start)


def untouched(bench: Bench) -> str:
    """Greedy decoding is the model's own `generate`, token for token. Returns the largest difference of a log-prob."""
    own, found = bench.untouched, bench.quiet
    gap = float((own[:, 1] - found[:, 1]).abs().max())
    if not torch.equal(own[:, 0], found[:, 0]):
        raise Failed(
            f"{int((own[:, 0] != found[:, 0]).any(1).sum())} of {len(own)} greedy completions differ",
            "the model is not the one on disk when training begins, or two tokens are equally likely in half precision",
            "lora.init=default, and dtype.model=float32 to tell the two apart",
        )
    return f"{len(own)} greedy completions alike, log-probs within {gap:.2g}"


def ratio(bench: Bench) -> str:
    """The replay of every drawn token gives the log-prob it was drawn with. Returns the largest gap.

    Before the first update pi / pi_old is 1. Decoding with a cache and a teacher-forced replay round differently, so
    accepted is a hundredth of the clip range, and in any case what float32 explains.
    """
    gap, tokens = bench.replay.gap[0], int(bench.rollout.mask.sum())
    accepted = max(RATIO_SHARE * min(bench.recipe.objective.clip_range), ROUNDING)
    half = bench.recipe.dtype.model != "float32"
    if not gap <= accepted and not half:
        raise Failed(
            f"|log ratio| up to {gap:.2g} over {tokens} tokens (accepted {accepted:.2g})",
            "the second forward is not the first: dropout, or attention that reads padding or another cache",
            "put the model in eval mode, or set dtype.model=float32",
        )
    return f"|log ratio| at most {gap:.2g} over {tokens} tokens" + (", in half precision" if half else "")


def memory(bench: Bench) -> str:
    """What a run needs beyond what is held now fits into the memory that is free. Returns both.

    Counted: gradients and AdamW's moments (12 bytes a trainable parameter), the average and a kept reference (4 each),
    and the activations of a micro-batch, scaled from this check's rows. Not counted: the cache of a rollout, and
    fragmentation.
    """
    recipe, train = bench.recipe, bench.recipe.train
    number = sum(p.numel() for p in bench.policy.trainable())
    state = number * (12 + 4 * (bool(train.ema) + recipe.keeps_reference))
    micro = train.micro_batch or train.prompts * train.group // train.updates
    if bench.device.type == "cuda":
        training = bench.peak["train"] / bench.rows_at_once * micro
        free = torch.cuda.mem_get_info(bench.device)[0]
        free += torch.cuda.memory_reserved(bench.device) - torch.cuda.memory_allocated(bench.device)
    else:
        training, free = bench.replay.bytes_per_row * micro, psutil.virtual_memory().available
    said = (
        f"{size_text(state + training)} beyond the weights ({size_text(training)} activations of {micro} rows, "
        f"{size_text(state)} optimizer); {size_text(free)} free"
    )
    if state + training > free:
        remedy = f"train.micro_batch={max(1, micro // 2)}, or train.gradient_checkpointing=true"
        raise Failed(said, "one training step is too large for this device", remedy)
    return said + ("" if not recipe.train.gradient_checkpointing else ", without what is computed again")


def completions(bench: Bench) -> str:
    """Most completions end by themselves. Returns how long they are; fails where the limit cuts off every one."""
    samples = bench.rollout.samples
    assert samples.lengths is not None and samples.truncated is not None
    cut, length = int(samples.truncated.sum()), samples.lengths.float()
    limit = plan_for(bench.recipe, 0).max_new_tokens
    said = f"{length.mean():.0f} tokens in the mean, {cut} of {len(length)} cut off at {limit}"
    if cut == len(length):
        raise Failed(
            said,
            "generation.max_new_tokens is too small for this task, or the model's end token is not the tokenizer's",
            "raise generation.max_new_tokens, or look at the completions with `flowrl sample`",
        )
    return said
