"""Completions of training that a server draws: what is asked of it, and what of its answers is believed.

Prompts travel as token ids, and come back as token ids with the log-probs under who drew them. Each answer is held
against what was asked: the same prompt ids, the weights of this iteration, tokens of the vocabulary, an end that ends a
completion here. A difference is an error, never a sample.
"""

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from flowrl.contracts import ALONE, Drawing, Explored, Progress, Prompt, Ranks, Rollout, View
from flowrl.engines import client
from flowrl.engines.client import Connection, Drawn, EngineError, UnknownWeightsError, Wanted
from flowrl.engines.pictures import messages_of
from flowrl.engines.weights import Courier
from flowrl.names import UserError
from flowrl.planning.costs import plan_for
from flowrl.policies.language.drawing.rows import DrawsRows, Row, waiting_rows
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import MAX_MEAN_GAP, PROBE_TOKENS
from flowrl.policies.noise import group_keys
from flowrl.recipe.keys.engines import EngineKeys
from flowrl.recipe.schema import Recipe
from samplers.tokens import Generation

COMPLETE = {"vllm": client.vllm_completion, "sglang": client.sglang_completion}
TOKENS = {"vllm": client.vllm_tokens, "sglang": client.sglang_tokens}
ASKED = 64  # of the longest prompts, whose ids are counted against the server's limit


class Engine:
    """Servers that draw for a policy, alike. model: what they call the model that the policy began as."""

    def __init__(self, keys: EngineKeys, model: str):
        self.keys, self.model = keys, keys.model or model
        self.to = [Connection(keys, url) for url in keys.urls]
        self.courier = Courier(self.to, keys.weights)
        self.concurrent = keys.concurrent  # requests of this rank at once
        self._mending = threading.Lock()

    def draw(self, policy: LanguagePolicy, drawing: Drawing, ranks: Ranks = ALONE) -> Explored | None:
        """The groups of these prompts, under the policy's weights of now; None where none of them is of this rank.

        All ranks call it. Raises EngineError where no completions came.
        """
        start, retried = time.perf_counter(), self._retried
        version = self.courier.bring(policy, ranks)
        brought = time.perf_counter()
        self.concurrent = max(1, self.keys.concurrent // ranks.size)
        if not drawing.here:
            return None
        drawn = self._rows_of if policy.conversations is None else self._talks_of
        rollout = drawn(policy, replace(drawing, prompts=drawing.here, own=None), version)
        # metrics are joined as means over prompts, of which this number's is the sum over ranks
        retries = (self._retried - retried) * len(drawing.prompts) / len(drawing.here)
        metrics = {"engine/retries": retries, "time_rollout/weights": brought - start}
        return Explored(rollout, None, metrics | {"time_rollout/draw": time.perf_counter() - brought})

    @property
    def _retried(self) -> int:
        return sum(to.retried for to in self.to)

    def _rows_of(self, policy: LanguagePolicy, drawing: Drawing, version: str, to: Connection | None = None) -> Rollout:
        """One completion a row, drawn by that server (None: by all)."""
        members = range(drawing.first, drawing.first + drawing.group)
        keys = group_keys(drawing.seed, [prompt.id for prompt in drawing.prompts], members)
        rows = policy.start(drawing.prompts, keys, drawing.plan)
        if self.keys.use == "sglang" and any(row.inputs for row in rows):
            raise UserError(
                "rollout.engine.use: got 'sglang', but pictures go to vllm alone; set another, or engine=null"
            )
        self.go_on(policy, rows, drawing.plan, progress=drawing.progress, version=version, to=to)
        return policy.completed(rows, torch.arange(len(keys)).repeat_interleave(drawing.group), drawing.plan)

    def _talks_of(self, policy: LanguagePolicy, drawing: Drawing, version: str) -> Rollout:
        """Conversations: each turn is drawn there, and answered here."""
        speaks = policy.conversations
        assert speaks is not None
        draw = partial(self.go_on, version=version)
        given = drawing.prompts, drawing.group, drawing.plan, drawing.seed, drawing.first, drawing.progress
        return speaks.rollout(policy, *given, draw=draw)

    def go_on(
        self,
        policy: DrawsRows,
        rows: Sequence[Row],
        plan: Generation,
        *,
        until: int | Sequence[int] | None = None,
        keep: bool = False,
        progress: Progress | None = None,
        version: str,
        to: Connection | None = None,
    ) -> None:
        """Has the servers, or this one, draw on in rows; see `rows.go_on`. keep is not used: a server has its cache.

        Raises UserError for a row that was shown a picture behind its prompt: the server would write its tokens anew.
        """
        limits, waiting = waiting_rows(rows, plan, until)
        if any(rows[i].inputs and rows[i].ids for i in waiting):
            raise UserError(
                "rollout.engine: given, but a tool or an environment showed a picture, or spoke to a prompt with one; "
                "a server is given token ids in later turns, and no pictures; set rollout.engine=null"
            )
        if not waiting:
            return
        with ThreadPoolExecutor(min(self.concurrent, len(waiting)), "engine") as threads:
            short = [replace(plan, max_new_tokens=limits[i] - len(rows[i].ids)) for i in waiting]
            asked = [
                threads.submit(self._row, policy, rows[i], own, version, to or self._server_of(rows[i]))
                for i, own in zip(waiting, short, strict=True)
            ]
            try:
                for i, ask in zip(waiting, asked, strict=True):
                    drawn = ask.result()
                    rows[i].give(drawn.ids, drawn.logp, [True] * len(drawn.ids))
                    rows[i].ended = policy.stop.ends(drawn.ids)
                    if progress is not None:
                        progress(len(drawn.ids))
            finally:
                for ask in asked:
                    ask.cancel()

    def _server_of(self, row: Row) -> Connection:
        """Who draws a row, in all of its turns: those of a group are spread evenly."""
        return self.to[(replace(row.key, index=0).number("server") + row.key.index) % len(self.to)]

    def _row(self, policy: Any, row: Row, plan: Generation, version: str, to: Connection) -> Drawn:
        """What is drawn on in one row, by the weights of this version. plan: with what is left of its limit."""
        chat = (messages_of(policy.encode, row.asked or row.prompt), policy.encode.arguments) if row.inputs else None
        seed = row.key.number("tokens", *([len(row.ids)] if row.ids else []))  # each turn has noise of its own
        ids = [*row.prompt_ids, *row.ids]
        wanted = Wanted(ids, seed, plan, policy.stop.texts, tuple(policy.stop), chat)
        problem = ""
        for _ in range(2):
            try:
                drawn = COMPLETE[self.keys.use](to, version, wanted)
                if drawn.version in (None, version):
                    _refuse_unfit(policy, wanted, drawn, to.url)
                    return drawn
                problem = f"drew with the weights {drawn.version!r}, where {version!r} were asked for"
            except UnknownWeightsError as error:
                problem = str(error)
            with self._mending:  # it was started anew, or somebody else brought others: one request brings ours again
                self.courier.load(to, version)
        raise EngineError(f"rollout.engine: {to.url} {problem}; let no other run use this server")

    # ------------------------------------------------------------------ before a run

    def check(self, policy: LanguagePolicy, prompts: Sequence[Prompt], plan: Generation, ranks: Ranks = ALONE) -> None:
        """Refuses a server that serves another model, reads texts otherwise, or takes shorter ones.

        All ranks call it: each has to reach every server, and the first one looks at the rest. Raises UserError, in one
        line, or EngineError where one does not answer.
        """
        longest = sorted(prompts, key=lambda p: len(p.text) + sum(len(m["content"]) for m in p.messages))[-ASKED:]
        for to in self.to:
            limit = self._served(to)
            if ranks.rank == 0:
                self._check_reading(policy, longest, plan, to, limit)
        version = self.courier.bring(policy, ranks)
        for to in self.to if ranks.rank == 0 else ():
            gap = self._gap(policy, [longest[-1], replace(longest[0], id=f"{longest[0].id} (2)")], plan, version, to)
            if not gap <= MAX_MEAN_GAP:
                raise UserError(
                    f"rollout.engine: {to.url} gives its tokens log-probs that are {gap:.2g} off those of the model "
                    f"here on average (accepted: {MAX_MEAN_GAP:g}); serve the same weights, and log-probs at the "
                    "temperature (vLLM: --logprobs-mode processed_logprobs)"
                )

    def _check_reading(
        self, policy: LanguagePolicy, longest: Sequence[Prompt], plan: Generation, to: Connection, limit: int | None
    ) -> None:
        """Raises UserError where a server takes too few tokens, or reads a text as other ones."""
        needed = max(len(policy.encode.row(p, policy.stop)[0]) for p in longest) + plan.max_new_tokens
        if limit is not None and needed > limit:
            raise UserError(
                f"rollout.engine: {to.url} takes {limit} tokens, prompt and completion, and the longest prompt "
                f"needs {needed}; raise its limit (--max-model-len, --context-length), or lower generation."
                "max_new_tokens"
            )
        for prompt in (longest[-1], longest[0]):
            own = list(policy.tokenizer(prompt.text)["input_ids"])
            there = TOKENS[self.keys.use](to, self.model, prompt.text)
            if own != there:
                raise UserError(
                    f"rollout.engine: {to.url} reads {prompt.text[:60]!r} as the ids {_few(there)}, the model "
                    f"here as {_few(own)}; serve the same model with its own tokenizer"
                )

    def _served(self, to: Connection) -> int | None:
        """How many tokens a server takes. Raises UserError where it does not serve the model."""
        served = to.ask("/v1/models", use=lambda answer: {one["id"]: one for one in answer["data"]})
        if self.model not in served:
            raise UserError(
                f"rollout.engine.model: {to.url} does not serve {self.model!r}; accepted: {', '.join(served)}"
            )
        return served[self.model].get("max_model_len")

    def _gap(
        self, policy: LanguagePolicy, prompts: Sequence[Prompt], plan: Generation, version: str, to: Connection
    ) -> float:
        """The mean |log-prob here - log-prob there| of two short completions, drawn without any cut."""
        short = Generation(min(PROBE_TOKENS, plan.max_new_tokens), plan.scale)
        rollout = self._rows_of(policy, Drawing(prompts, 1, short, 0, 0), version, to)
        found: list[Any] = []
        with torch.no_grad():
            policy.look(rollout, torch.arange(len(prompts)), View(), found.append)
        return float((found[0].logp.cpu() - rollout.rollout_logp).abs()[rollout.mask].mean())


@cache
def engine_of(keys: EngineKeys, model: str) -> Engine:
    """The engine of these keys: one in a process, so that it knows which weights it has brought."""
    return Engine(keys, model)


def check_engine(recipe: Recipe, policy: Any, prompts: Sequence[Prompt], ranks: Ranks = ALONE) -> None:
    """Refuses the recipe's servers where they do not fit its model; nothing where none draws. See `Engine.check`."""
    if recipe.rollout.engine is not None:
        engine_of(recipe.rollout.engine, recipe.model).check(policy, prompts, plan_for(recipe, 0), ranks)


def drawn_elsewhere(
    policy: LanguagePolicy, drawing: Drawing, score: object, *, engine: Engine, ranks: Ranks = ALONE
) -> Explored | None:
    """See `Engine.draw`."""
    return engine.draw(policy, drawing, ranks)


def _refuse_unfit(policy: LanguagePolicy, wanted: Wanted, drawn: Drawn, url: str) -> None:
    """Raises EngineError for a completion that cannot be one of the policy's."""
    problem = None
    size = policy.model.config.get_text_config().vocab_size
    read = drawn.prompt if isinstance(drawn.prompt, int) else len(drawn.prompt)
    if read != len(wanted.ids) or (not isinstance(drawn.prompt, int) and drawn.prompt != list(wanted.ids)):
        got = f"{read} ids" if read != len(wanted.ids) or isinstance(drawn.prompt, int) else _few(drawn.prompt)
        problem = f"read a prompt of {len(wanted.ids)} ids ({_few(wanted.ids)}) as {got}"
    elif not drawn.ids or len(drawn.ids) > wanted.plan.max_new_tokens or len(drawn.ids) != len(drawn.logp):
        problem = f"drew {len(drawn.ids)} tokens with {len(drawn.logp)} log-probs; asked for at least 1"
        problem += f" and at most {wanted.plan.max_new_tokens}, with as many"
    elif bad := [i for i in drawn.ids if not 0 <= i < size]:
        problem = f"drew the token {bad[0]}; the model here has {size}"
    elif not all(math.isfinite(value) and value <= 1e-4 for value in drawn.logp):
        problem = "gave a log-prob that is none"
    elif early := [i for i in drawn.ids[:-1] if i in policy.stop]:
        problem = f"went on behind the token {early[0]}, which ends a completion here"
    elif drawn.stopped != policy.stop.ends(drawn.ids) and len(drawn.ids) < wanted.plan.max_new_tokens:
        problem = f"ended a completion with the token {drawn.ids[-1]}, which does not end one here"
    if problem is not None:
        raise EngineError(f"rollout.engine: {url} {problem}; serve the same model, tokenizer and generation config")


def _few(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}"
