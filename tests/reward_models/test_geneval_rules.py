"""GenEval's rules: published numbers behind compatible, and none of the published holes by default."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden
from reward_models.parts.vision import geneval_rules as rules
from reward_models.parts.vision.geneval_rules import COLOURS, RELATIONS, Clause, Detection, Task


def box(x: float, y: float, colour: str | None = None, side: float = 20.0) -> Detection:
    return Detection((x, y, x + side, y + side), 0.9, colour)


def row(kinds: int, colour: str | None = None) -> list[Detection]:
    return [box(25 * i, 0, colour) for i in range(kinds)]


def read(objects: dict) -> rules.Objects:
    return {
        kind: [Detection(tuple(b[:4]), b[4], b[5] if len(b) > 5 else None) for b in boxes]  # pyright: ignore
        for kind, boxes in objects.items()
    }


@pytest.mark.parametrize("case", golden.cases("direct/rewards_geneval.json"))
def test_the_published_rules_give_the_published_numbers(case):
    asked = [(read(one["objects"]), rules.task(one["metadata"], "prompt")) for one in case["inputs"]["cases"]]
    assert case["params"]["position_threshold"] == rules.POSITION_THRESHOLD
    for (objects, task), want in zip(asked, case["outputs"]["results"], strict=True):
        assert rules.official(objects, task) == want["correct"]
        assert rules.strict_compatible(objects, task) == want["strict_correct"]
        assert rules.partial_compatible(objects, task) == pytest.approx(want["score"], abs=1e-7)


LEFT = Task((Clause("dog", 1), Clause("car", 1, relation="left of")))
TWO_CATS = Task((Clause("cat", 2),), (Clause("cat", 3),))


def test_a_wrong_place_earns_nothing():
    objects = {"dog": [box(0, 0)], "car": [box(100, 0)]}
    assert rules.partial(objects, LEFT) == pytest.approx(2 / 3)
    assert rules.partial_compatible(objects, LEFT) == 0.75  # the trailing 1
    assert rules.strict(objects, LEFT) == rules.official(objects, LEFT) == 0


@pytest.mark.parametrize(("found", "score"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0), (16, 0.0)])
def test_too_many_objects_cost_as_much_as_too_few_and_never_more_than_all(found: int, score: float):
    objects, task = {"cat": row(found)}, Task((Clause("cat", 2),))
    assert rules.partial(objects, task) == score
    assert rules.partial_compatible(objects, task) == 1 - abs(2 - found) / 2
    assert rules.strict(objects, task) == (found == 2)
    assert rules.official(objects, task) == (found >= 2)


def test_what_is_excluded_counts():
    task = Task((Clause("dog", 1),), (Clause("cat", 1),))
    with_cat = {"dog": [box(0, 0)], "cat": [box(50, 0)]}
    assert (rules.partial(with_cat, task), rules.strict(with_cat, task), rules.official(with_cat, task)) == (0, 0, 0)
    assert rules.strict_compatible(with_cat, task) == 1  # published: blind to exclude
    without = {"dog": [box(0, 0)]}
    assert (rules.partial(without, task), rules.strict(without, task), rules.official(without, task)) == (1, 1, 1)


def test_a_count_that_is_asked_for_and_excluded_falls_with_each_object_too_many():
    scores = [rules.partial({"cat": row(n)}, TWO_CATS) for n in range(6)]
    assert scores == pytest.approx([0, 0.5, 1, 0.5 * 2 / 3, 0, 0])


def test_an_empty_picture_earns_nothing_from_having_nothing_that_is_excluded():
    assert rules.partial({}, TWO_CATS) == 0


def test_each_thing_asked_for_is_one_term_whatever_was_found():
    task = Task((Clause("dog", 1), Clause("cup", 2, colour="red", relation="above")))
    dog, above = box(0, 200), [box(0, 0, "red"), box(30, 0, "blue")]
    assert rules.partial({"dog": [dog]}, task) == 1 / 4
    assert rules.partial({"dog": [dog], "cup": above}, task) == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    red = [replace(cup, colour="red") for cup in above]
    assert rules.partial({"dog": [dog], "cup": red}, task) == 1
    # published: a clause of wrong colour is not asked for its place, one of wrong count loses a term
    assert rules.partial_compatible({"dog": [dog], "cup": above}, task) == pytest.approx((1 + 1 + 0.5) / 3)
    assert rules.partial_compatible({"dog": [dog]}, task) == pytest.approx((1 + 0 + 0) / 3)


def test_a_place_needs_a_target_that_is_right_itself():
    task = Task((Clause("cup", 1, colour="red"), Clause("car", 1, relation="left of")))
    objects = {"cup": [box(100, 0, "blue")], "car": [box(0, 0)]}
    assert rules.partial(objects, task) == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert rules.partial_compatible(objects, task) == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert rules.official(objects, task) == 0
    assert rules.official({**objects, "cup": [box(100, 0, "red")]}, task) == 1


def test_official_reads_colour_and_place_off_the_surest_objects():
    task = Task((Clause("cup", 1, colour="red"),))
    assert rules.official({"cup": [box(0, 0, "red"), box(50, 0, "blue")]}, task) == 1
    assert rules.official({"cup": [box(50, 0, "blue"), box(0, 0, "red")]}, task) == 0


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (100, 0, {"right of"}),
        (-100, 0, {"left of"}),
        (0, 100, {"below"}),
        (0, -100, {"above"}),
        (100, 100, {"right of", "below"}),
        (-100, -100, {"left of", "above"}),
        (100, 20, {"right of"}),
        (3.9, 0, set()),  # within 0.1 * (20 + 20)
        (8.5, 0, {"right of"}),  # (8.5 - 4) / 8.5 > 0.5
        (7.5, 0, set()),  # (7.5 - 4) / 7.5 < 0.5
        (0, 0, set()),
    ],
)
def test_relations_by_hand(x: float, y: float, found: set[str]):
    assert rules.relations(box(x, y), box(0, 0)) == found


kinds = st.sampled_from(["cat", "dog", "cup"])
coordinates = st.integers(0, 60).map(float)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    include: list[Clause] = []
    for kind in draw(st.lists(kinds, min_size=1, max_size=3, unique=True)):
        relation = draw(st.none() | st.sampled_from(RELATIONS)) if include else None
        target = draw(st.integers(0, len(include) - 1)) if include else 0
        colour = draw(st.none() | st.sampled_from(COLOURS[:2]))
        include.append(Clause(kind, draw(st.integers(1, 3)), colour, relation, target))
    exclude = draw(st.lists(st.builds(Clause, kinds, st.integers(1, 4)), max_size=2))
    return Task(tuple(include), tuple(exclude))


detections = st.builds(
    lambda x, y, w, h, colour: Detection((x, y, x + w + 1, y + h + 1), 0.9, colour),
    *[coordinates] * 4,
    st.sampled_from(COLOURS[:2]),
)
found_objects = st.dictionaries(kinds, st.lists(detections, max_size=5))


@given(found_objects, tasks())
def test_scores_lie_between_nothing_and_all_and_agree_on_all(objects, task: Task):
    partial, strict, official = (f(objects, task) for f in (rules.partial, rules.strict, rules.official))
    assert 0 <= partial <= 1 and strict in (0, 1) and official in (0, 1)
    assert (partial == 1) == (strict == 1)
    assert strict <= official
    assert strict <= rules.strict_compatible(objects, task)
    assert rules.partial_compatible(objects, task) <= 1


@given(found_objects, tasks(), detections)
def test_one_more_of_what_is_too_many_already_never_pays(objects, task: Task, extra: Detection):
    for clause in (*task.include, *(replace(c, count=c.count - 1) for c in task.exclude)):
        present = objects.get(clause.kind, [])
        counts = [c.count for c in task.include if c.kind == clause.kind]
        if len(present) >= max([clause.count, *counts]):
            more = {**objects, clause.kind: [*present, extra]}
            assert rules.partial(more, task) <= rules.partial(objects, task)


@given(found_objects, tasks(), st.randoms())
def test_order_within_a_class_is_nothing_to_the_exact_rules(objects, task: Task, random):
    shuffled = {kind: random.sample(found, len(found)) for kind, found in objects.items()}
    for rule in (rules.partial, rules.strict, rules.strict_compatible):
        assert rule(shuffled, task) == rule(objects, task)


@given(detections, detections)
def test_relations_are_mirror_images(a: Detection, b: Detection):
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {opposite[name] for name in rules.relations(a, b)} == rules.relations(b, a)


@given(detections, detections, st.floats(0.5, 4))
def test_relations_do_not_depend_on_scale(a: Detection, b: Detection, scale: float):
    large = [replace(d, box=tuple(scale * side for side in d.box)) for d in (a, b)]
    offsets = [(a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2 for i in (0, 1)]
    extents = [a.box[i + 2] - a.box[i] + b.box[i + 2] - b.box[i] for i in (0, 1)]
    shares = [max(abs(o) - 0.1 * e, 0) / (math.hypot(*offsets) or 1) for o, e in zip(offsets, extents, strict=True)]
    if all(abs(share - 0.5) > 1e-9 for share in shares):  # on the edge itself rounding decides
        assert rules.relations(*large) == rules.relations(a, b)


def test_a_line_of_the_benchmark_is_read():
    line = {
        "tag": "counting",
        "include": [
            {"class": "cup", "count": 2, "color": "red"},
            {"class": "tv", "count": 1, "position": ["above", 0]},
        ],
        "exclude": [{"class": "cup", "count": 3}],
    }
    task = rules.task(line, "two red cups, and a tv above")
    cups, tv = Clause("cup", 2, colour="red"), Clause("tv", 1, relation="above", target=0)
    assert task == Task((cups, tv), (Clause("cup", 3),), counting=True)
    assert task.kinds() == {"cup", "tv"} and task.coloured() == {"cup"}
    assert not rules.task({**line, "tag": "colors"}, "").counting


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "no 'include'"),
        ({"include": []}, "no object"),
        ({"include": ["cat"]}, "has no GenEval task"),
        ({"include": [{"class": "cat"}]}, "no 'count'"),
        ({"include": [{"class": "cat", "count": 0}]}, "count 0"),
        ({"include": [{"class": "cat", "count": True}]}, "count True"),
        ({"include": [{"class": "cat", "count": 1, "color": "grey"}]}, "color 'grey'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}, "near"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "earlier clause"),
        ({"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", -1]}]}, "-1"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above"]}]}, "has no GenEval task"),
        ({"include": [{"class": "cat", "count": 1}], "exclude": [{"class": "dog"}]}, "no 'count'"),
    ],
)
def test_a_prompt_without_a_proper_task_is_refused_in_one_line(meta: dict, said: str):
    with pytest.raises(ValueError) as caught:
        rules.task(meta, "a cat")
    assert said in str(caught.value) and "'a cat'" in str(caught.value) and "\n" not in str(caught.value)
