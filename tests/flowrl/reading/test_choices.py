"""Prompts passed over by what a run remembers of them, and the memory itself."""

import json
import math
from collections import Counter

import pytest

import golden
from flowrl.contracts import Prompt
from flowrl.reading import choices
from flowrl.reading.choices import adapted_bases, skip_chances
from flowrl.reading.cursor import Cursor
from flowrl.reading.prompt_memory import Record, Turn
from flowrl.reading.prompts import PromptError


@pytest.mark.parametrize(
    "case", golden.cases("objectives/llm_sampler_filter.json", where=lambda c: golden.kind(c) == "greso.skip")
)
def test_skipping_as_published(case) -> None:
    params = {key: case["params"][key] for key in ("p_easy", "p_hard", "min_keep")}
    params |= {"easy": case["params"]["easy_threshold"], "hard": case["params"]["hard_threshold"]}
    got = []
    for trace, draws in zip(case["inputs"]["reward_trace"].values(), case["inputs"]["uniform_draws"], strict=True):
        chances = skip_chances(trace, **params)
        got.append([draw < chance for draw, chance in zip(draws, chances, strict=True)])
        drawn, reason = choices.skip(Turn(Prompt("p", "p"), Record(trace, [0.0] * len(trace))), **params)
        assert drawn == pytest.approx(1 - max(chances)) and (reason == "") == (max(chances) == 0)
    golden.check({"skip_easy_hard": golden.tensor(got)}, case)


def numbered(n: int, **meta) -> list[Prompt]:
    return [Prompt(str(i), "p" * (i + 1), meta={k: v(i) for k, v in meta.items()}) for i in range(n)]


def turn(*means: float, iteration: int = 0, rank: float = 0.0, **meta) -> Turn:
    return Turn(Prompt("p", "p", meta=meta), Record(list(means), [0.1] * len(means)), iteration, rank)


def test_a_record_tells_how_long_its_group_has_been_silent() -> None:
    record = Record([0.0, 1.0, 1.0], [0.5, 0.0, 0.0])
    assert (record.epochs, record.silent, record.mean) == (3, 2, pytest.approx(2 / 3))
    assert Record().silent == 0 and math.isnan(Record().mean)


def test_the_chances_of_each_choice() -> None:
    assert choices.drop_solved(turn(0.5, 1.0)) == (0.0, "solved")
    assert choices.drop_solved(turn(1.0, 0.9))[0] == choices.drop_solved(turn())[0] == 1
    assert choices.pass_rate(turn(1.0, 0.9)) == (0.0, "easy") and choices.pass_rate(turn(0.8, 1.0))[0] == 1
    assert choices.pass_rate(turn(1.0, rate=0.2), key="rate", low=0.3) == (0.0, "hard")
    assert choices.pass_rate(turn(1.0), epochs=2)[0] == 1
    assert choices.prioritized(turn(0.5, 1.0)) == (0.25, "solved") and choices.prioritized(turn(1.0))[0] == 0.05
    assert choices.tiers(turn(0.5), shares=(1.0, 2.0, 0.5)) == (1.0, "tier_1")
    assert choices.tiers(turn(0.95), shares=(1.0, 2.0, 0.5)) == (0.25, "tier_2")
    assert choices.curriculum(turn(rank=0.61, iteration=50), start=0.2) == (0.0, "later")
    assert choices.curriculum(turn(rank=0.59, iteration=50), start=0.2)[0] == 1


def test_the_bases_of_a_skip_follow_its_targets() -> None:
    given = {"easy": 0.9, "hard": 0.1, "p_easy": 0.5, "p_hard": 0.05, "target_easy": 0.25, "target_hard": 0.5}
    assert adapted_bases(given, [1.0, 1.0, 0.5, 0.0]) == {"p_easy": 0.49, "p_hard": 0.06}
    assert adapted_bases(given, [1.0, 0.0, 0.0, 0.0]) == {"p_easy": 0.51, "p_hard": 0.05}  # not below its bound
    assert adapted_bases(given | {"target_easy": None, "target_hard": None}, [1.0]) == {}


def test_solved_prompts_come_no_more_and_others_as_often() -> None:
    cursor, drawn = Cursor(numbered(12), seed=3, choose=choices.drop_solved), Counter()
    for _ in range(30):
        took = [p.id for p in cursor.take(4)]
        assert len(set(took)) == 4
        drawn.update(took)
        metrics = cursor.observe({name: (1.0 if int(name) < 5 else 0.5, 0.0) for name in took})
    assert all(drawn[str(i)] == 1 for i in range(5))
    assert min(drawn[str(i)] for i in range(5, 12)) >= 12  # of 115 / 7
    assert metrics["prompts/seen"] == 1 and metrics["prompts/passed_over/solved"] > 0


def test_those_passed_over_fill_up_a_draw_that_would_stay_empty() -> None:
    cursor = Cursor(numbered(5), seed=0, choose=choices.drop_solved)
    for _ in range(4):
        took = [p.id for p in cursor.take(3)]
        metrics = cursor.observe({name: (1.0, 0.0) for name in took})
        assert len(set(took)) == 3
    assert metrics["prompts/brought_back"] == 3


def test_a_chance_is_how_often_a_turn_leads_to_a_draw() -> None:
    cursor = Cursor(numbered(40), seed=1, choose=choices.prioritized)
    cursor.observe({str(i): (0.75 if i % 2 else 0.0, 0.1) for i in range(40)})
    drawn = Counter(int(p.id) % 2 for _ in range(100) for p in cursor.take(4))
    assert 0.19 < drawn[1] / drawn[0] < 0.31


def test_the_easiest_come_first_by_length_or_by_a_number() -> None:
    for by, first in (("length", range(5)), ("hardness", range(15, 20))):
        how = {"by": by, "start": 0.25, "until": 10}
        cursor = Cursor(numbered(20, hardness=lambda i: -i), seed=2, choose=choices.curriculum, arguments=how)
        assert {int(p.id) for p in cursor.take(5)} == set(first)
        for _ in range(10):
            cursor.observe({})
        assert len({int(p.id) for _ in range(8) for p in cursor.take(5)}) == 20
    with pytest.raises(PromptError, match="'other' is no number in the meta of 'p'; accepted: length, hardness"):
        Cursor(numbered(3, hardness=float), seed=0, choose=choices.curriculum, arguments={"by": "other"})


@pytest.mark.parametrize("name", list(choices.CHOICES)[1:])
def test_a_resumed_choice_goes_on_with_the_same_prompts(name: str) -> None:
    how = {"choose": choices.CHOICES[name], "arguments": {"target_easy": 0.1} if name == "skip" else {}}

    def drawn(cursor: Cursor, number: int) -> list:
        took = []
        for _ in range(number):
            ids = [p.id for p in cursor.take(3)]
            took.append((ids, cursor.observe({i: (int(i) % 4 / 3, 0.0 if int(i) % 4 in (0, 3) else 0.3) for i in ids})))
        return took

    whole = drawn(Cursor(numbered(20), seed=5, **how), 20)
    for cut in (1, 6, 13):
        first, second = Cursor(numbered(20), seed=5, **how), Cursor(numbered(20), seed=5, **how)
        drawn(first, cut)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert drawn(second, 20 - cut) == whole[cut:]
