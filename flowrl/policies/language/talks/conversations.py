"""Conversations: rows whose turns are answered by an environment, under the same weights and the same noise.

A row goes on from what it was shown (rows.py). What the model drew is never decoded and encoded again, what it was
shown is given and not trained, and token k of a row is drawn by number k of its noise, whatever turn it is in.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from flowrl.contracts import Environment, Episode, Progress, Prompt, Rollout, Said, Shown
from flowrl.environments.calls import Reader
from flowrl.environments.observations import Observations
from flowrl.environments.workers import Workers
from flowrl.policies.language.drawing.low_precision import low_precision
from flowrl.policies.language.drawing.rows import DrawsOn, DrawsRows, Row, finish, go_on
from flowrl.policies.language.talks.shown import written
from flowrl.policies.language.talks.state import Talk, completed
from flowrl.policies.noise import Key, group_keys
from samplers.tokens import Generation

PROBED = "0"  # what the proof of a replay shows the model


class Conversations:
    """How a policy talks to an environment.

    turns: the most of the model in a row. turn_tokens: the most tokens of one (None: what is left of the row's).
    observe writes what is shown, read reads calls, workers runs the environment.
    """

    def __init__(
        self,
        environment: Environment,
        observe: Observations,
        read: Reader,
        workers: Workers,
        *,
        turns: int,
        turn_tokens: int | None = None,
    ):
        self.environment, self.observe, self.read, self.workers = environment, observe, read, workers
        self.turns, self.turn_tokens = turns, turn_tokens

    def rollout(
        self,
        policy: Any,
        prompts: Sequence[Prompt],
        group: int,
        plan: Generation,
        seed: int,
        first: int,
        progress: Progress | None = None,
        *,
        draw: DrawsOn | None = None,
    ) -> Rollout:
        """`group` conversations about each prompt, prompt by prompt; see `LanguagePolicy.rollout`.

        draw: who draws each turn (None: the model, or its copy in the plan's precision).
        step_stats has `turn` [R, K]: the number of the model's turn, from 1, that a token belongs to or stands behind.
        """
        keys = group_keys(seed, [prompt.id for prompt in prompts], range(first, first + group))
        talks = self.started(policy, prompts, keys, plan)
        self.converse(policy, talks, plan, progress, draw=draw or drawer(policy, plan))
        return completed(policy, talks, torch.arange(len(prompts)).repeat_interleave(group), plan)

    def probe(self, policy: Any, prompts: Sequence[Prompt], plan: Generation) -> Rollout:
        """Short rows with something shown within, one a prompt, for the proof that a replay is its rollout.

        The environment is not asked.
        """
        rows = policy.start(prompts, [[Key(0, prompt.id, 0)] for prompt in prompts], plan)
        half = max(plan.max_new_tokens // 2, 1)
        go_on(policy, rows, plan, until=half)
        pictures = () if policy.processor is None or self.observe.frame is not None else (Image.new("RGB", (48, 64)),)
        for row in rows:
            ids, media = written(self.observe, policy, [Shown(PROBED, pictures)], row.ids[-1])
            row.give(ids, inputs=media)
            row.ended = False
        longer = replace(plan, max_new_tokens=max(len(row.ids) for row in rows) + half)
        go_on(policy, rows, longer)
        return policy.completed(rows, torch.arange(len(prompts)), longer)

    def converse(
        self,
        policy: DrawsRows,
        talks: Sequence[Talk],
        plan: Generation,
        progress: Progress | None = None,
        *,
        draw: DrawsOn = go_on,
    ) -> None:
        """Goes on with these conversations to their ends. draw: who draws each turn."""
        while self.turn(policy, talks, plan, progress, draw=draw):
            pass
        self.outcomes(talks)

    def started(
        self, policy: Any, prompts: Sequence[Prompt], keys: Sequence[Sequence[Key]], plan: Generation
    ) -> list[Talk]:
        """Conversations in which nothing was said yet, prompt by prompt, one for each of the keys of a prompt."""
        calls = [
            partial(_begun, self.environment, p, _seed(key))
            for p, own in zip(prompts, keys, strict=True)
            for key in own
        ]
        episodes, talks = self.workers(calls), list[Talk]()
        openings = [_opening(one) for one in episodes]
        for prompt, of in zip(prompts, keys, strict=True):
            own = range(len(talks), len(talks) + len(of))
            asked = [_opened(prompt, openings[i]) for i in own]
            if any(openings[i] for i in own):
                rows = [row for one, key in zip(asked, of, strict=True) for row in policy.start([one], [[key]], plan)]
            else:
                rows = policy.start([prompt], [of], plan)
            for row, i in zip(rows, own, strict=True):
                row.asked, row.prompt = (row.prompt if openings[i] else None), prompt
                talk = Talk(row)
                if isinstance(episodes[i], BaseException):
                    talk.fail("the start of the environment", episodes[i])
                else:
                    talk.episode = episodes[i]
                talks.append(talk)
        return talks

    def forked(self, talk: Talk, turn: int, key: Key) -> Talk:
        """A conversation that shares the first `turn` turns of another, and what was shown behind them.

        Its environment is begun anew and told the same; one that answers otherwise has failed, and so has the row. One
        whose environment could not be started is forked as that.
        """
        begin = talk.spans[turn][0] if turn < len(talk.spans) else len(talk.row.ids)
        made = Talk(talk.row.fork(begin, key), None, talk.said[:turn], talk.shown[:turn], talk.spans[:turn])
        if talk.failure is not None and not talk.spans:
            made.end, made.failure = talk.end, talk.failure
            return made
        (found,) = self.workers([partial(_again, self.environment, talk, turn)], [turn])
        if isinstance(found, BaseException):
            made.fail("the environment, begun anew,", found)
        else:
            made.episode = found
        return made

    def turn(
        self,
        policy: DrawsRows,
        talks: Sequence[Talk],
        plan: Generation,
        progress: Progress | None = None,
        *,
        draw: DrawsOn = go_on,
    ) -> bool:
        """One turn of each that has not ended, and what it is shown behind it; whether there was one.

        Each is drawn by itself where no batch is to change anything. What stands in a row before its first turn, such
        as a hint, belongs to that turn.
        """
        live = [talk for talk in talks if talk.end is None or (talk.end == "failed" and not talk.spans)]
        if not live:
            return False
        begin = [len(talk.row.ids) if talk.said else 0 for talk in live]
        room = self.turn_tokens or plan.max_new_tokens
        until = [len(talk.row.ids) + (room if talk.end is None else 1) for talk in live]
        last = all(len(talk.said) == self.turns - 1 for talk in live)
        for own in [[i] for i in range(len(live))] if policy.batch_invariant else [list(range(len(live)))]:
            rows, ends = [live[i].row for i in own], [until[i] for i in own]
            # rows with pictures are read whole again, and so is what no batch, and no server, is to change
            keep = not (last or policy.batch_invariant or any(row.inputs for row in rows))
            starts = [begin[i] for i in own]
            finish(policy, rows, plan, begin=starts, until=ends, keep=keep, progress=progress, draw=draw)
        for talk, at in zip(live, begin, strict=True):
            talk.spans.append((at, len(talk.row.ids)))
            talk.said.append(self._said(policy, talk.row, at))
        asked = [talk for talk in live if talk.end is None]
        calls = [partial(_step, talk.episode, talk.said[-1]) for talk in asked if talk.episode is not None]
        answers = self.workers(calls, [len(talk.said[-1].calls) for talk in asked])
        for talk, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                talk.fail("the environment", answer)
            elif not talk.row.ended:
                talk.end = "length"
            elif answer is None:
                talk.end = "answer"
            elif len(talk.said) == self.turns:
                talk.end = "turns"
            else:
                self._show(policy, talk, answer, plan)
        for talk in live:
            talk.row.prefix = talk.row.prefix if talk.end is None else None
        return True

    def _said(self, policy: DrawsRows, row: Row, begin: int) -> Said:
        drawn = row.ids[begin:]
        end = drawn[-1] if drawn[-1] in policy.stop else None
        own = drawn if end is None else drawn[:-1]
        return self.read(own, prompt=[*row.prompt_ids, *row.ids[:begin]], end=end, cut=not row.ended)

    def _show(self, policy: DrawsRows, talk: Talk, answer: Sequence[Shown], plan: Generation) -> None:
        """Puts messages before the model, if there is room for them and for a token of its own."""
        ids, media = written(self.observe, policy, answer, talk.row.ids[-1])
        if len(talk.row.ids) + len(ids) >= plan.max_new_tokens:
            talk.end = "length"
            return
        talk.row.give(ids, inputs=media)
        talk.row.ended = False
        talk.shown.append(tuple(answer))

    def outcomes(self, talks: Sequence[Talk]) -> None:
        """Asks the environments of conversations that have ended for their numbers."""
        asked = [talk for talk in talks if talk.episode is not None and talk.end != "failed"]
        for talk, found in zip(
            asked, self.workers([partial(_outcome, t.episode) for t in asked if t.episode is not None]), strict=True
        ):
            if isinstance(found, BaseException):
                talk.fail("the outcome of the environment", found)
            else:
                talk.outcome = found


def _begun(environment: Environment, prompt: Prompt, seed: int) -> Episode:
    episode = environment.start(prompt, seed)
    if not callable(getattr(episode, "step", None)):
        raise TypeError(
            f"start gave a {type(episode).__name__}, which has no step(said); give an object with step and outcome, "
            "and as its attribute opening the text that the prompt ends with"
        )
    return episode


def _opening(episode: object) -> str:
    """The text that the prompt ends with, of a conversation that this environment begins."""
    return getattr(episode, "opening", "") or ""


def drawer(policy: Any, plan: Generation) -> DrawsOn:
    """Who draws rows of a policy: its model, or the copy in the plan's precision."""
    return partial(go_on, model=None if plan.precision is None else low_precision(policy.model, plan.precision))


def _step(episode: Episode, said: Said) -> tuple[Shown, ...] | None:
    shown = episode.step(said)
    return (shown,) if isinstance(shown, Shown) else None if shown is None else tuple(shown)


def _again(environment: Environment, talk: Talk, turn: int) -> Episode:
    """An episode that has been told the first turns of a conversation. Raises RuntimeError if it answers otherwise."""
    row = talk.row
    episode = _begun(environment, row.prompt, _seed(row.key))
    if _opened(row.prompt, _opening(episode)).text != (row.asked or row.prompt).text:
        raise RuntimeError("it does not begin as before, so that no branch can begin behind what it showed")
    for said, shown in zip(talk.said[:turn], talk.shown[:turn], strict=True):
        answer = _step(episode, said)
        if answer is None or [m.text for m in answer] != [m.text for m in shown]:
            raise RuntimeError("it does not answer as before, so that no branch can begin behind what it showed")
    return episode


def _seed(key: Key) -> int:
    """What an environment draws by: the same for all rows of a prompt."""
    return replace(key, index=0).number("environment")


def _outcome(episode: Episode) -> dict[str, float]:
    return {name: float(value) for name, value in episode.outcome().items()}


def _opened(prompt: Prompt, opening: str) -> Prompt:
    """The prompt with what the environment begins with behind it."""
    messages = prompt.messages
    if opening and messages:
        messages = (*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + opening})
    return replace(prompt, text=prompt.text + opening, messages=messages)
