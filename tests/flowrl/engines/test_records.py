"""Calls of agents become rows: each drawn token once, what stood between as given."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.engines.records import Record, rows_of


def record(prompt: list[int], ids: list[int]) -> Record:
    return Record(prompt, ids, [-float(i) for i in ids])


def told(records: list[Record]) -> list[tuple[list[int], list[tuple[int, float | None]]]]:
    """(prompt, (id, log-prob or None) behind it) of each row."""
    return [
        (row.prompt, [(i, None if math.isnan(lp) else lp) for i, lp in zip(row.ids, row.logp, strict=True)])
        for row in rows_of(records)
    ]


def test_a_prompt_that_begins_with_what_is_held_goes_on():
    calls = [record([1, 2], [5, 6]), record([1, 2, 5, 6, 7], [8]), record([1, 2, 5, 6, 7, 8], [9])]
    assert told(calls) == [([1, 2], [(5, -5.0), (6, -6.0), (7, None), (8, -8.0), (9, -9.0)])]


def test_a_history_that_was_written_anew_begins_a_row():
    calls = [record([1, 2], [5, 6]), record([1, 2, 5], [8]), record([1, 2, 5, 8, 3], [4]), record([1, 2, 5, 6, 0], [7])]
    assert told(calls) == [
        ([1, 2], [(5, -5.0), (6, -6.0), (0, None), (7, -7.0)]),
        ([1, 2, 5], [(8, -8.0), (3, None), (4, -4.0)]),
    ]


def test_of_two_answers_to_one_prompt_each_is_a_row_and_the_longer_is_gone_on_with():
    calls = [record([1], [5]), record([1], [5]), record([1, 5, 2], [6]), record([1, 5, 2, 6, 3], [7])]
    assert told(calls) == [([1], [(5, -5.0), (2, None), (6, -6.0), (3, None), (7, -7.0)]), ([1], [(5, -5.0)])]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.lists(st.integers(0, 2), min_size=1, max_size=2)))
)
def test_every_drawn_token_stands_in_one_row_behind_the_prompt_that_it_was_asked_with(calls: list):
    records = [Record(prompt, ids, [-1000.0 - n] * len(ids)) for n, (prompt, ids) in enumerate(calls)]
    rows = rows_of(records)
    for n, one in enumerate(records):
        places = [(row, k) for row in rows for k, lp in enumerate(row.logp) if lp == -1000.0 - n]
        row, first = places[0]
        assert len(places) == len(one.ids) and all(found is row for found, _ in places)
        assert [*row.prompt, *row.ids[:first]] == one.prompt and row.ids[first : first + len(one.ids)] == one.ids
