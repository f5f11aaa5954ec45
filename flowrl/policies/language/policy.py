"""Any causal language model of transformers as a policy, one that reads pictures too: a decision is a token.

A rollout decodes with a key-value cache; a replay feeds the same tokens at once and scores them with gradient. Both use
the same prompt ids, positions and temperature, so that a replay under unchanged weights gives the rollout's log-probs.
Before the first rollout a short generation checks this (`prepare`); a model that fails is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Progress, Prompt, Rollout, Samples, View, Visit
from flowrl.core.batches import rollout_chunks
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.chat import Encoder, check_tokens
from flowrl.policies.language.completions import Completions, given_texts, shown_beside
from flowrl.policies.language.drawing.decoding import decode, decode_alone
from flowrl.policies.language.drawing.ends import said, texts_of, token_ends
from flowrl.policies.language.drawing.forwards import cache_argument
from flowrl.policies.language.drawing.low_precision import low_precision
from flowrl.policies.language.drawing.prefixes import can_join
from flowrl.policies.language.drawing.rows import Begun, Row, begun_rows, finish, stacked
from flowrl.policies.language.drawing.static_cache import StaticCache
from flowrl.policies.language.drawing.stopping import Stop, stop_ids
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.language.media.processing import placeholder_ids
from flowrl.policies.language.proving import prove, telling
from flowrl.policies.language.scores import Scores
from flowrl.policies.language.source import LanguageSource
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.policies.merging import drawing
from flowrl.policies.noise import Key, copy_numbers, token_uniforms
from flowrl.policies.roles import speaking
from flowrl.policies.weights import under, weights_of
from flowrl.untyped import JSON, LanguageModel, Processor, Tokenizer
from samplers.tokens import Generation


class LanguagePolicy:
    """A causal language model that samples, and scores its own tokens again.

    model, tokenizer: as `from_pretrained` gives them, the model in evaluation mode. template, system, chat_arguments:
    see chat.Encoder. max_rows: the most rows that a rollout decodes at once. precision: of log-probabilities.
    keep_entropy: decisions have the statistic `entropy`, in nats, of the distribution that a token is scored under,
    when it was drawn; keep_squares: `squares`, the sum of its squared probabilities; keep_ends: `end`, see token_ends.
    stop: texts that end a completion.
    batch_invariant: every row goes through the model alone, in rollouts and looks, so that its tokens and log-probs are
    bit for bit the same in any batch. processor: of a model that reads pictures or sounds, None for one of text alone.
    """

    whole_rows = True  # a look hands over rows with all their tokens

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        template: bool | str = "auto",
        system: str | None = None,
        chat_arguments: Mapping[str, JSON] | None = None,
        device: torch.device | str = "cpu",
        max_rows: int | None = None,
        precision: torch.dtype = torch.float32,
        keep_entropy: bool = False,
        keep_squares: bool = False,
        keep_ends: bool = False,
        stop: Sequence[str] = (),
        batch_invariant: bool = False,
        processor: Processor | None = None,
    ):
        cache_argument(model)
        self.source, self.modules = LanguageSource(model, processor or tokenizer), {"model": model}
        self.model, self.tokenizer = model.to(device), tokenizer
        self.device, self.max_rows, self.precision = torch.device(device), max_rows, precision
        self.keep_entropy, self.keep_squares, self.batch_invariant = keep_entropy, keep_squares, batch_invariant
        self.keep_ends, self.merge = keep_ends, False  # merge: whether rollouts are drawn by merged weights
        self.weights = weights_of(self.modules)  # others than those that learn
        self.roles: Sequence[str] = ()  # the labels of adapters, where there are several
        self.teacher: LanguageModel | None = None  # another model as the reference
        self.static: StaticCache | None = None  # keeps keys and values in buffers of fixed size; None: they grow
        self.conversations: Conversations | None = None  # how it talks to an environment
        self.processor = processor
        self.barred: Sequence[int] = () if processor is None else placeholder_ids(model.config, processor)
        self.encode = self.encoder(template=template, system=system, arguments=chat_arguments)
        self.stop = Stop(stop_ids(model, tokenizer), stop, tokenizer)
        self.pad = next((i for i in (tokenizer.pad_token_id, *self.stop) if i is not None), 0)
        self._proven: set[bool] = set()  # for prompts with media, and for those without
        self._containing: dict[str, frozenset[int]] = {}
        self._looks = Scores(
            self.model, self.pad, self.precision, lambda: under(self._weights, "reference"), batch_invariant
        )

    def encoder(self, **options: Any) -> Encoder:
        """How prompts become rows of this model; options: see chat.Encoder."""
        return Encoder(self.tokenizer, processor=self.processor, barred=self.barred, **options)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int = 1,
        plan: Generation,
        seed: int,
        first: int = 0,
        progress: Progress | None = None,
        finished: Callable[[Samples], None] | None = None,
        begun: Sequence[Begun | None] | None = None,
    ) -> Rollout:
        """Draws `group_size` completions for each prompt; rows are samples, prompt by prompt. See `contracts.Policy`.

        The mask holds the drawn tokens, the one that ends a completion included; greedy ones are not to be trained.
        begun: for each row a completion that it goes on from, whose tokens count in plan.max_new_tokens, or None.
        Raises ValueError where it does not have one for each row.
        """
        self.prepare(telling(prompts), plan)
        if self.conversations is not None and begun is None:
            return self.conversations.rollout(self, prompts, group_size, plan, seed, first, progress)
        if begun is not None or plan.force is not None:
            begun = [None] * (len(prompts) * group_size) if begun is None else begun
            rows = begun_rows(self, begun, prompts, plan, seed, first)
            finish(self, rows, plan, progress=progress)
            return self.completed(rows, torch.arange(len(prompts)).repeat_interleave(len(rows) // len(prompts)), plan)
        model = self.model if plan.precision is None else low_precision(self.model, plan.precision)
        (ids, media), copy = self._rows(prompts, plan), copy_numbers(p.id for p in prompts)
        parts, slots = [], self.max_rows if can_join(model) and not self.batch_invariant else None
        for chunk in rollout_chunks(len(prompts), group_size, self.max_rows if slots is None else None):
            members = range(first + chunk.first, first + chunk.first + chunk.size)
            keys = [Key(seed, prompts[i].id, member, copy[i]) for i in chunk.prompts for member in members]
            own = None if media is None else [media[i] for i in chunk.prompts]
            parts.append(self._decode(model, [ids[i] for i in chunk.prompts], own, keys, plan, progress, slots))
        length = torch.cat([part[2] for part in parts])
        width = int(length.max())
        tokens, logp = (torch.cat([part[i][:, :width] for part in parts]) for i in (0, 1))
        kept = [n for n, wanted in (("entropy", self.keep_entropy), ("squares", self.keep_squares)) if wanted]
        step_stats = {name: torch.cat([part[3][name][:, :width] for part in parts]) for name in kept}
        if self.keep_ends:
            step_stats["end"] = token_ends(self.tokenizer, tokens, length, self.stop)
        owners = [i for i in range(len(prompts)) for _ in range(group_size)]
        mask = (torch.arange(width) < length[:, None]) & (plan.temperature > 0)
        return Rollout(
            Samples(
                [prompts[i] for i in owners],
                torch.tensor(owners),
                texts=texts_of(self.tokenizer, said(tokens, length, self.stop)),
                lengths=length,
                truncated=~self.stop.complete(tokens, length),
            ),
            logp,
            mask,
            Completions(
                [ids[i] for i in owners], tokens, length, plan, None if media is None else [media[i] for i in owners]
            ),
            step_stats=step_stats,
        )

    def start(self, prompts: Sequence[Prompt], keys: Sequence[Sequence[Key]], plan: Generation) -> list[Row]:
        """Rows without a token yet, prompt by prompt, one for each of the keys of a prompt."""
        ids, media = self._rows(prompts, plan)
        begun = zip(prompts, ids, media or [None] * len(ids), keys, strict=True)
        return [Row(p, at, key, inputs=shown) for p, at, shown, own in begun for key in own]

    def completed(self, rows: Sequence[Row], group: Tensor, plan: Generation) -> Rollout:
        """A rollout of these rows as they stand, each with a token or more; group int64 [R] as in `Samples`.

        Tokens with a log-prob are trained; step_stats has `node` and `tree` where rows form trees.
        """
        tokens, logp = stacked(rows, "ids"), stacked(rows, "logp")
        length = torch.tensor([len(row.ids) for row in rows])
        mask = (torch.arange(tokens.shape[1]) < length[:, None]) & ~logp.isnan() & (plan.temperature > 0)
        stats = {"entropy": stacked(rows, "entropy")} if self.keep_entropy else {}
        if any(node for row in rows for node in row.node):
            stats["node"] = stacked(rows, "node")
        if any(row.tree for row in rows):
            stats["tree"] = torch.tensor([[float(row.tree)] for row in rows]).expand_as(mask).clone()
        if self.keep_ends:
            stats["end"] = token_ends(self.tokenizer, tokens, length, self.stop)
        given = None
        if not all(all(row.drawn) for row in rows):
            parts = [[i for i, drawn in zip(row.ids, row.drawn, strict=True) if not drawn] for row in rows]
            given = self.tokenizer.batch_decode(parts, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        samples = Samples(
            [row.prompt for row in rows],
            group,
            texts=texts_of(self.tokenizer, said(tokens, length, self.stop)),
            lengths=length,
            truncated=torch.tensor([not row.ended for row in rows]),
            given=given,
        )
        media = [row.inputs for row in rows if row.inputs is not None] or None
        roles = torch.tensor([row.role for row in rows]) if len(self.roles) > 1 else None
        asked = [row.asked or row.prompt for row in rows]
        replay = Completions([row.prompt_ids for row in rows], tokens, length, plan, media, roles, asked=asked)
        return Rollout(samples, logp.nan_to_num(), mask, replay, step_stats=stats, roles=roles)

    def tokens_with(self, text: str) -> frozenset[int]:
        """The ids of the tokens that contain a text, special tokens left out."""
        if text not in self._containing:
            special, known = set(self.tokenizer.all_special_ids), sorted(self.tokenizer.get_vocab().values())
            decoded = self.tokenizer.batch_decode([[i] for i in known], clean_up_tokenization_spaces=False)
            self._containing[text] = frozenset(
                i for i, shown in zip(known, decoded, strict=True) if text in shown and i not in special
            )
        return self._containing[text]

    def given(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[str]], *, plan: Generation, **how: Any
    ) -> Rollout:
        """A rollout of the texts of each prompt, as many for each; see completions.py. Seeds are of views alone."""
        self.prepare(telling(prompts), plan)
        ids, media = self._rows(prompts, plan)
        texts = [text for own in pictures for text in own]
        rollout = given_texts(self.tokenizer, self.stop, self.pad, prompts, ids, texts, plan, media)
        return shown_beside(self, rollout, **how) if how.get("shown") else rollout

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """Scores all tokens of `rows`, in one block for each role. See `contracts.Policy`.

        exact_kl: the divergence from the reference, over the vocabulary. Its logits are computed here and not kept:
        [R, K, V] of them would be larger than the model, and none larger than a chunk ever stand whole. Raises
        PolicyError for `centred`.
        """
        if view.centred:
            raise PolicyError(
                "tokens are not drawn around a mean: set objective.ratio=plain and objective.kl_mask=null"
            )
        for role, part in rollout.replay.by_role(rows):
            with self.speaking(role):
                self._look(rollout, part, view, visit, progress)

    def speaking(self, role: int) -> AbstractContextManager[None]:
        """Within, the adapter of this role is active; the first is, where there is one."""
        return speaking(self.modules, self.roles, role)

    def _look(self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, progress: Progress | None) -> None:
        """`look` at rows of one role."""
        columns = torch.arange(rollout.rollout_logp.shape[1])
        exact_kl = view.exact_kl and view.weights == "current"
        with under(self._weights, view.weights):
            view = replace(view, exact_kl=exact_kl)
            completions = rollout.replay
            with_teacher = self.model if self.teacher is None else self.teacher
            logp, kl, entropy = self._looks.at(
                completions.prompts,
                completions.tokens,
                completions.length,
                rows,
                completions.plan.scale,
                view,
                with_teacher,
                completions.beside(view.shown),
            )
            if view.shown:
                logp = logp.masked_fill(completions.unshown(rows)[:, None].to(logp.device), torch.nan)
            if progress is not None:
                progress(int(rollout.replay.length[rows].sum()))
            visit(LogProbs(rows, columns, logp, kl, entropy=entropy))

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        return adapters.trainable(self.modules)

    def prepare(self, prompt: Prompt, plan: Generation) -> None:
        """Proves once that a replay is its rollout. Raises PolicyError where it is not, or where the prompt is unknown.

        See proving.py for how.
        """
        seeing = bool(prompt.media)
        if seeing in self._proven:
            return
        check_tokens(self.tokenizer, prompt.text)
        self._proven.add(seeing)  # the proof is a rollout itself
        try:
            prove(self, prompt, plan)
        except BaseException:
            self._proven.discard(seeing)
            raise

    def _decode(
        self,
        model: LanguageModel,
        ids: list[list[int]],
        inputs: list[Inputs] | None,
        keys: list[Key],
        plan: Generation,
        progress: Progress | None,
        slots: int | None,
    ) -> tuple[Any, ...]:
        """Tokens, log-probs, lengths, and by name the statistics that are kept, of one chunk of a rollout.

        keys name its rows, prompt by prompt. slots: see `decode`.
        """
        uniforms = token_uniforms(keys, plan.max_new_tokens)
        kept = {name: torch.zeros(uniforms.shape) for name in ("entropy", "squares") if getattr(self, f"keep_{name}")}
        options: dict[str, Any] = {"group": len(keys) // len(ids), "stop": self.stop, "pad": self.pad} | kept
        options |= {"inputs": inputs, "barred": self.barred}
        draw = decode_alone if self.batch_invariant else partial(decode, slots=slots, static=self.static)
        with drawing(self):
            return *draw(model, ids, uniforms, plan, progress=progress, **options), kept

    def _weights(self, name: str) -> AbstractContextManager[None]:
        """The weights of that name; a teacher is another model, for which those of this one stay."""
        return nullcontext() if name == "reference" and self.teacher is not None else self.weights(name)

    def _rows(self, prompts: Sequence[Prompt], plan: Generation) -> tuple[list[list[int]], list[Inputs] | None]:
        """Ids and media of each prompt; None for the media where the model reads text alone."""
        rows = [self.encode.row(prompt, self.stop) for prompt in prompts]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for prompt, (ids, _) in zip(prompts, rows, strict=True):
            if limit is not None and len(ids) + plan.max_new_tokens > limit:
                raise PolicyError(
                    f"generation.max_new_tokens: got {plan.max_new_tokens}, but prompt {prompt.id!r} takes {len(ids)} "
                    f"of the model's {limit} positions; lower it or shorten the prompt"
                )
        media = [shown for _, shown in rows if shown is not None]
        return [ids for ids, _ in rows], media or None
