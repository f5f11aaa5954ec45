"""Win rate within a group, from pairs that a judge behind an OpenAI-compatible server compares (Pref-GRPO, 2508.20751).

Point scores of a good group lie close together, and dividing by their deviation blows up their noise; who beats whom
keeps its spread. mode judge: any vision-language model. mode think: UnifiedReward-Think, which argues in <think> before
it answers in <answer>. The reward is the mean share of wins, 0..1, or `score: rank`, the rank of that rate over G.

Published mistakes that it avoids: each pair is judged in both orders, for judges favour a place (Pref-GRPO asks once,
i before j); an unreadable answer leaves its pair out, where Pref-GRPO calls it a draw; a sample of which no pair came
back is NaN. `compatible: true` repeats Pref-GRPO: one order, draws, three decimals. It needs whole groups, so that a
group of one (held-out prompts drawn once) has no score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flowrl.contracts import Samples
from flowrl.untyped import JSON
from reward_models.parts.judge import judging, pairs, unified
from reward_models.parts.judge.asking import ServerJudge, image_part, messages, scatter
from reward_models.parts.judge.openai_client import Answer

PROMPTS = {"judge": unified.PAIR, "think": unified.THINK}


@dataclass(kw_only=True, eq=False)
class pairwise_judge(ServerJudge):
    """The share of comparisons within its group that each sample wins, float32 [B] in [0, 1]."""

    groupwise = True  # whoever cuts a batch must leave groups whole

    model: str = "CodeGoat24/UnifiedReward-Think-qwen3vl-8b"
    mode: str = "think"
    prompt: str | None = None
    score: str = "win_rate"
    opponents: int | None = None
    seed: int = 0
    compatible: bool = False
    frames: int | None = 4
    max_side: int | None = 512
    max_tokens: int = 2048
    timeout: float = 120.0
    limit: float = 1800.0

    def __post_init__(self) -> None:
        name, opponents = type(self).__name__, self.opponents
        choices = (("mode", self.mode, tuple(PROMPTS)), ("score", self.score, ("win_rate", "rank")))
        for key, value, accepted in choices:
            if value not in accepted:
                raise ValueError(f"{name}: {key}={value!r}; accepted are {', '.join(accepted)}")
        if opponents is not None and (not isinstance(opponents, int) or opponents < 1):
            raise ValueError(f"{name}: opponents={opponents!r}; accepted is 1 or more, or null for the whole group")
        prompt = PROMPTS[self.mode] if self.prompt is None else self.prompt
        self._template = judging.check_template(name, "prompt", prompt)
        super().__post_init__()

    def __call__(self, samples: Samples) -> Tensor:
        """The share of wins (or its rank) of each sample in its group, float32 [B]; NaN if no pair was answered."""
        views = [None if view is None else self.urls(view) for view in self.views(samples)]
        teams = [[i for i in team if views[i] is not None] for team in pairs.groups(samples.group)]
        met = [self._pairs_of(team, views, samples.prompts[team[0]].text) if team else [] for team in teams]
        bodies, video = [], samples.video is not None
        for i, j in (pair for team in met for pair in team):
            caption = samples.prompts[i].text
            bodies += [self._body(caption, views[a] or [], views[b] or [], video) for a, b in self._orders(i, j)]
        shares = iter(self.ask(bodies, self._preference))
        scores, at = [], []
        for team, played in zip(teams, met, strict=True):
            place = {i: k for k, i in enumerate(team)}
            wins = [(place[i], place[j], self._share(shares)) for i, j in played]
            scores, at = scores + self._scores(len(team), wins), at + team
        return scatter(scores, at, len(samples))

    def _pairs_of(
        self, team: Sequence[int], views: Sequence[Sequence[str] | None], caption: str
    ) -> list[tuple[int, int]]:
        if self.compatible and self.opponents is None:
            return [(i, j) for k, i in enumerate(team) for j in team[k + 1 :]]
        names = [pairs.fingerprint(views[i] or []) for i in team]
        return [(team[i], team[j]) for i, j in pairs.draw_pairs(names, self.opponents, (self.seed, caption))]

    def _orders(self, i: int, j: int) -> list[tuple[int, int]]:
        return [(i, j)] if self.compatible else [(i, j), (j, i)]

    def _body(self, caption: str, first: Sequence[str], second: Sequence[str], video: bool) -> dict[str, JSON]:
        one, two = ([image_part(url) for url in urls] for urls in (first, second))
        prompt = self._template.replace("Image", "Video") if video else self._template
        text = judging.fill_template(prompt, caption)
        if self.mode == "think" and not video:  # as it was trained: two pictures, then the task
            return {"messages": messages(self.system, *one, *two, text)}
        what = "Video" if video else "Image"
        return {"messages": messages(self.system, f"{what} 1:", *one, f"{what} 2:", *two, text)}

    def _preference(self, answer: Answer) -> float | str:
        if self.compatible:
            return judging.preference(answer.text or "", compatible=True)
        if answer.cut:
            return "the answer was cut off: raise max_tokens"
        return judging.preference(answer.text or "")

    def _share(self, shares) -> float:
        """The share that the first of a pair won: the mean of both orders, NaN if either was not answered."""
        if self.compatible:
            return next(shares)
        before, after = next(shares), next(shares)
        return (before + 1 - after) / 2

    def _scores(self, number: int, wins: Sequence[tuple[int, int, float]]) -> list[float]:
        rates = judging.win_rates(number, wins)
        if self.compatible:
            rates = [rate if math.isnan(rate) else round(rate, 3) for rate in rates]
        return judging.ranks(rates, compatible=self.compatible) if self.score == "rank" else rates
