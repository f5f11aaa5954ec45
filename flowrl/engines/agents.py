"""Agents of the user's own that ask the policy over HTTP as they like, and are trained by what they asked.

An agent is a function (base_url, prompt): it calls the OpenAI-compatible endpoint at base_url, and returns what came of
it. It is not looked into: its calls are recorded by the sample that its base_url names, and become rows (records.py),
which share the sample's advantage. How tokens are drawn is the recipe's affair, whatever a request says of it, since
all of them are scored under one distribution; max_tokens, stop and n are the agent's.
"""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Conversation, Credit, Progress, Prompt, Rollout, Said, Samples
from flowrl.engines.records import Record, rows_of
from flowrl.engines.service import Completion, PolicyService, RefusedError
from flowrl.environments.workers import Workers
from flowrl.policies.language.drawing.rows import Row, go_on
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.noise import Key, copy_numbers
from samplers.tokens import Generation

Solve = Callable[[str, Prompt], Any]  # an agent
MODEL = "policy"  # what requests may call the model; the name is not asked for
_SESSION: ContextVar[str] = ContextVar("session")
_PATH = re.compile(r"/s/([^/]+)(/.*)")


@dataclass
class Session:
    """The calls of one sample. key names its noise; a closed session takes no more calls. ended: by which limit."""

    key: Key
    records: list[Record] = field(default_factory=list)
    asked: Counter[tuple[int, ...]] = field(default_factory=Counter)
    calls: int = 0
    drawn: int = 0
    ended: str | None = None
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seed(self, ids: Sequence[int]) -> int:
        """Names the noise of a call: by its prompt and how often it was asked before, not by the order of calls."""
        name = tuple(ids)
        self.asked[name] += 1
        digest = hashlib.blake2b(repr(name).encode(), digest_size=8).hexdigest()
        return self.key.number("call", digest, self.asked[name])


class RecordingService(PolicyService):
    """Completions for the sessions of samples, which it records. turns: the most calls of one; turn_tokens: the most
    tokens of a call (None: what is left of plan.max_new_tokens, which all calls of a sample share)."""

    def __init__(
        self, policy: LanguagePolicy, plan: Generation, turns: int, turn_tokens: int | None, *, batch: int = 1
    ):
        super().__init__(policy, MODEL, plan, batch=batch)
        self.turns, self.turn_tokens = turns, turn_tokens
        self.sessions: dict[str, Session] = {}

    def room(self, ids: Sequence[int], wanted: int | None) -> int:
        """See `PolicyService`; at most what the session has left. Raises RefusedError where that is nothing."""
        session = self._session()
        with session.lock:
            left = self.plan.max_new_tokens - session.drawn
            if session.calls >= self.turns:
                session.ended = "turns"
                raise RefusedError(400, f"the sample has had its {self.turns} calls; see environment.turns")
            if left < 1:
                session.ended = "length"
                had = f"{self.plan.max_new_tokens} tokens"
                raise RefusedError(400, f"the sample has had its {had}; see generation.max_new_tokens")
        return super().room(ids, min(n for n in (wanted, self.turn_tokens, left) if n is not None))

    def complete(
        self, ids: Sequence[int], plan: Generation, *, number: int = 1, **how: Any
    ) -> tuple[list[Completion], str]:
        """See `PolicyService`. The noise is that of the sample, and the plan the recipe's but for its length."""
        session, made, version = self._session(), [], ""
        own = replace(self.plan, max_new_tokens=plan.max_new_tokens)
        if how.get("media"):
            raise RefusedError(400, "messages: the calls of an agent that is trained are texts; leave pictures out")
        how |= {"model": None}
        for _ in range(number):
            with session.lock:
                if session.closed or session.calls >= self.turns:
                    session.ended = session.ended or "turns"
                    raise RefusedError(400, f"the sample has had its {self.turns} calls, or its time; see environment")
                session.calls += 1
                how["seed"] = session.seed(ids)
            (one,), version = super().complete(ids, own, **how)
            with session.lock:
                if session.closed:
                    raise RefusedError(400, "the sample has had its time; see environment.deadline")
                session.records.append(Record(list(ids), one.ids, one.logp, one.text, one.reason == "length"))
                session.drawn += len(one.ids)
            made.append(one)
        return made, version

    def _session(self) -> Session:
        session = self.sessions.get(_SESSION.get(""))
        if session is None:
            raise RefusedError(404, "no sample goes by this address; call the base_url that the agent was given")
        return session


class BySession:
    """An ASGI application at /s/SESSION/..., which tells the one inside whose request it is."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Takes the session out of the path."""
        if scope["type"] == "http" and (found := _PATH.fullmatch(scope["path"])):
            _SESSION.set(found[1])
            scope = scope | {"path": found[2], "raw_path": found[2].encode()}
        await self.app(scope, receive, send)


class Agents:
    """How a policy is asked by an agent; it stands where `Conversations` does
    (policies/language/talks/conversations.py).

    turns, turn_tokens: see `RecordingService`. workers: runs agents, several at once, each with its deadline. batch:
    calls that are drawn together, see `PolicyService`.
    """

    def __init__(self, solve: Solve, workers: Workers, *, turns: int, turn_tokens: int | None = None, batch: int = 1):
        self.solve, self.workers, self.turns, self.turn_tokens = solve, workers, turns, turn_tokens
        self.batch = batch

    def rollout(
        self,
        policy: LanguagePolicy,
        prompts: Sequence[Prompt],
        group: int,
        plan: Generation,
        seed: int,
        first: int,
        progress: Progress | None = None,
    ) -> Rollout:
        """`group` samples of each prompt, prompt by prompt, `turns` rows of each, of which those not used are masked.

        A text is that of the last call, a length what was drawn in all. An agent that raises, or takes too long, leaves
        a sample without a score; one that ran into a limit of calls or tokens, and raised at that, is scored.
        """
        from flowrl.engines.app import build_app  # an extra's packages: who has no agent needs none of them
        from flowrl.engines.run import served

        service, copy = (
            RecordingService(policy, plan, self.turns, self.turn_tokens, batch=self.batch),
            copy_numbers(p.id for p in prompts),
        )
        owners = [at for at in range(len(prompts)) for _ in range(group)]
        for i, at in enumerate(owners):
            service.sessions[str(i)] = Session(Key(seed, prompts[at].id, first + i % group, copy[at]))
        sessions = list(service.sessions.values())
        with served(BySession(build_app(service))) as url:
            asked = [partial(self.solve, f"{url}/s/{i}/v1", prompts[at]) for i, at in enumerate(owners)]
            results = self.workers(
                [partial(_run, call, session) for call, session in zip(asked, sessions, strict=True)]
            )
            for session in sessions:
                with session.lock:
                    session.closed = True
        talks = [_conversation(session, result) for session, result in zip(sessions, results, strict=True)]
        if progress is not None:
            progress(sum(session.drawn for session in sessions))
        starts = policy.start(prompts, [[Key(seed, p.id, first, copy[at])] for at, p in enumerate(prompts)], plan)
        rows = [row for i, at in enumerate(owners) for row in self._rows(starts[at], sessions[i], policy.pad)]
        rollout = policy.completed(rows, torch.arange(len(rows)), plan)
        samples = Samples(
            [prompts[at] for at in owners],
            torch.tensor(owners),
            texts=[talk.said[-1].text if talk.said else "" for talk in talks],
            lengths=torch.tensor([session.drawn for session in sessions]),
            truncated=torch.tensor([talk.end != "answer" for talk in talks]),
            talks=talks,
        )
        credit = _credit(rollout.mask.any(1), len(prompts), group)
        return replace(rollout, samples=samples, credit=credit)

    def probe(self, policy: Any, prompts: Sequence[Prompt], plan: Generation) -> Rollout:
        """Short rows with tokens given within, one a prompt, for the proof that a replay is its rollout."""
        rows = policy.start(prompts, [[Key(0, prompt.id, 0)] for prompt in prompts], plan)
        half = max(plan.max_new_tokens // 2, 1)
        go_on(policy, rows, plan, until=half)
        for row in rows:
            row.give(row.prompt_ids[-half:])
            row.ended = False
        longer = replace(plan, max_new_tokens=max(len(row.ids) for row in rows) + half)
        go_on(policy, rows, longer)
        return policy.completed(rows, torch.arange(len(prompts)), longer)

    def _rows(self, start: Row, session: Session, pad: int) -> list[Row]:
        """As many rows as a sample may have; those that it does not have hold one token that is not trained."""
        rows = []
        for recorded in rows_of(session.records):
            row = Row(start.prompt, recorded.prompt, session.key)
            row.give(recorded.ids, recorded.logp)
            rows.append(row)
        while len(rows) < self.turns:
            rows.append(Row(start.prompt, start.prompt_ids, session.key))
            rows[-1].give([pad])
        return rows


def _run(call: Callable[[], Any], session: Session) -> dict[str, float]:
    """The outcome of an agent, by name. Its session is closed, also where it raises."""
    try:
        return outcome_of(call())
    finally:
        with session.lock:
            session.closed = True


def outcome_of(given: Any) -> dict[str, float]:
    """What an agent returned, as numbers by name: a number is `reward`, None no number at all.

    Raises TypeError for anything else.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(name): float(value) for name, value in given.items()}
    if isinstance(given, int | float | Tensor) or hasattr(given, "__float__"):
        return {"reward": float(given)}
    raise TypeError(f"an agent returned a {type(given).__name__}; accepted: a number, numbers by name, or None")


def _conversation(session: Session, result: Any) -> Conversation:
    """A sample as rewards see it."""
    said = tuple(Said(record.text, cut=record.cut) for record in session.records)
    shown = ((),) * len(said)  # what an agent makes of an answer it keeps to itself
    if isinstance(result, BaseException):
        if session.ended is not None and said and not isinstance(result, TimeoutError):
            return Conversation(said, shown, end=session.ended)
        reason = " ".join(str(result).split())
        return Conversation(said, shown, end="failed", failure=f"the agent failed: {type(result).__name__}: {reason}")
    if not said:
        return Conversation((Said(""),), ((),), end="failed", failure="the agent made no call")
    return Conversation(said, shown, end=session.ended or "answer", outcome=result)


def _credit(trained: Tensor, prompts: int, group: int) -> Credit:
    """Each row takes the advantage of its sample. trained bool [R]: rows that are there."""
    each = len(trained) // prompts
    weights = torch.zeros(prompts, 1, each, group)
    for row in range(each):
        weights[:, 0, row, row * group // each] = trained.view(prompts, each)[:, row].float()
    return Credit(weights, torch.zeros(each, dtype=torch.int64), by_row=False)
