"""Branching trees and branches off a trunk: what each plan lays out, shares and gives credit for."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from samplers.decisions import replay_forwards
from samplers.plan import ROOT, Tree
from samplers.tables import Coarse
from samplers.trees import Branching, PerStep, credit_weights, lines, peers, picture

ALL = tuple(range(20))


def forwards(tree: Tree) -> int:
    return sum(len(front.units) for front in tree.fronts)


@st.composite
def branchings(draw: st.DrawFn) -> Tree:
    num_steps = draw(st.integers(1, 9))
    steps = st.integers(0, num_steps - 1)
    stochastic = sorted(draw(st.sets(steps, min_size=1)))
    splits = sorted(draw(st.sets(st.sampled_from(stochastic), min_size=1, max_size=3)))
    widths = tuple(draw(st.integers(2, 3)) for _ in splits)
    trained = sorted(draw(st.sets(st.sampled_from(stochastic), min_size=1)))
    more = {"share_noise": draw(st.booleans()), "credit": draw(st.sampled_from(["uniform", "path_probability"]))}
    more |= {"solver": draw(st.sampled_from(["euler", "dpmpp_2m"]))}
    plan = Branching(num_steps, tuple(splits), widths, tuple(stochastic), tuple(trained), **more)
    return plan.tree(plan.leaves * draw(st.integers(1, 3)))


@st.composite
def off_trunks(draw: st.DrawFn) -> Tree:
    num_steps = draw(st.integers(5, 12))
    needed: dict[tuple[int, ...], int] = {(1,): 0, (2,): 2, (1, 2): 3, (2, 1): 3}  # steps behind the last draw
    strides = draw(st.sampled_from(list(needed)))
    last = num_steps - 1 - needed[strides]
    steps = tuple(sorted(draw(st.sets(st.integers(0, last), min_size=1))))
    anchors = draw(st.integers(1, 3))
    plan = PerStep(num_steps, steps, anchors, strides, draw(st.booleans()))
    return plan.tree(anchors * draw(st.integers(1, 4)))


TREES = st.one_of(branchings(), off_trunks())


@given(TREES)
def test_every_leaf_is_one_path_through_all_levels(tree: Tree) -> None:
    assert len(set(tree.leaves)) == len(tree.leaves)
    parents = {s.parent for s in tree.segments}
    assert set(tree.leaves) == set(range(len(tree.segments))) - parents  # nothing stops on the way
    for leaf in tree.leaves:
        path = [tree.segments[i] for i in tree.path(leaf)]
        assert path[0].parent == ROOT and path[0].begin == 0
        assert [s.end for s in path[:-1]] == [s.begin for s in path[1:]]
        assert path[-1].end == tree.tables[path[-1].table].num_steps(tree.num_steps)


@given(TREES)
def test_every_step_of_every_segment_runs_once(tree: Tree) -> None:
    ran = Counter((i, front.step) for front in tree.fronts for unit in front.units for i in unit)
    assert set(ran.values()) == {1}
    assert set(ran) == {(i, step) for i, s in enumerate(tree.segments) for step in range(s.begin, s.end)}


@given(TREES)
def test_no_two_rows_of_the_denoiser_start_from_one_state(tree: Tree) -> None:
    """Segments that leave one state are one unit, and no two states on the way are the same walk by accident."""

    def history(i: int, step: int) -> tuple:
        drawn = [(s.member, k) for s in (tree.segments[j] for j in tree.path(i)) for k in s.stochastic if k < step]
        walked = [(s.table, k) for s in (tree.segments[j] for j in tree.path(i)) for k in range(s.begin, s.end)]
        levels = [(table, k) for table, k in walked if k < step]
        return tree.segments[i].start, tuple(drawn), tuple(levels)

    states = [history(unit[0], front.step) + (front.step,) for front in tree.fronts for unit in front.units]
    assert len(set(states)) == len(states)


@given(TREES, st.data())
def test_credit_of_a_row_is_a_mean_over_its_leaves(tree: Tree, data: st.DataObject) -> None:
    number = len(tree.rows)
    logp = torch.zeros(2, number)
    logp[0] = torch.tensor(data.draw(st.lists(st.floats(-900, 900), min_size=number, max_size=number)))
    weights = credit_weights(tree, logp)
    views = sorted({tree.segments[i].view for i in tree.leaves})
    assert weights.shape == (
        2 if tree.credit == "path_probability" else 1,
        len(views),
        len(tree.rows),
        len(tree.leaves),
    )
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert (weights >= 0).all()
    below = torch.tensor([[row in tree.path(leaf) for leaf in tree.leaves] for row in tree.rows])
    of_view = torch.tensor([[tree.segments[leaf].view == view for leaf in tree.leaves] for view in views])
    reached = below & of_view[:, None]
    assert not weights[:, ~reached].any()
    equal = reached / reached.sum(-1, keepdim=True)
    torch.testing.assert_close(weights[-1], equal)  # of equal log-probs, or whatever they are where uniform


@given(branchings())
def test_peers_of_a_branching_tree_are_those_that_parted_at_one_step(tree: Tree) -> None:
    of: dict[int, set[int]] = {}
    for q, row in zip(peers(tree).tolist(), tree.rows, strict=True):
        of.setdefault(q, set()).add(row)
    begins = [{tree.segments[row].begin for row in rows} for rows in of.values()]
    assert all(len(begin) == 1 for begin in begins)
    for q, rows in of.items():
        if q:  # a split: all that part there are its peers
            (begin,) = {tree.segments[row].begin for row in rows}
            parted = {i for i, s in enumerate(tree.segments) if s.peers == q}
            assert rows == parted and all(tree.segments[i].begin == begin for i in parted)


def test_branchgrpo_of_twenty_steps() -> None:
    tree = Branching(20, (0, 3, 6, 9), (2, 2, 2, 2), ALL, ALL).tree(16)
    assert (forwards(tree), len(tree.leaves), len(tree.rows)) == (203, 16, 30)
    assert Counter(peers(tree).tolist()) == {1: 2, 2: 4, 3: 8, 4: 16}
    assert lines(tree) == [" ".join(f"{n}●" for n in [1, 2, 2, 2, 4, 4, 4, 8, 8, 8, *[16] * 10])]
    # a step's siblings start from one state: their replay is one row
    assert replay_forwards(tree, 1, 1, None) == 203


def test_tempflow_of_ten_steps() -> None:
    tree = PerStep(10, tuple(range(9))).tree(6)
    assert (forwards(tree), len(tree.leaves), len(tree.rows)) == (279, 54, 54)
    assert Counter(peers(tree).tolist()) == dict.fromkeys(range(9), 6)
    assert replay_forwards(tree, 1, 1, None) == 9  # not 54


def test_anchors_have_trunks_of_their_own() -> None:
    together, apart = (PerStep(10, tuple(range(9)), 4, per_anchor=own).tree(24) for own in (False, True))
    assert forwards(together) == forwards(apart) == 4 * 279
    assert {s.start for s in together.segments} == {0, 1, 2, 3}
    assert Counter(peers(together).tolist()) == dict.fromkeys(range(9), 24)
    assert Counter(peers(apart).tolist()) == dict.fromkeys(range(36), 6)
    for q in range(36):  # one anchor and one step
        rows = [together.segments[i] for i, p in zip(apart.rows, peers(apart).tolist(), strict=True) if p == q]
        assert len({(s.start, s.begin) for s in rows}) == 1


def test_g2rpo_shares_all_that_its_strides_have_in_common() -> None:
    plan = PerStep(16, tuple(range(8)), strides=(1, 2))
    tree = plan.tree(12)
    assert len(tree.leaves) == 2 * 12 * 8 and len(tree.rows) == 96
    # After its draw at k a child walks level k + 1 once and level k + 2 once, whatever the stride; then N - k - 3 steps
    # of the own table, and of the coarse one half of the levels left, rounded up, less that shared one.
    tails = [1 + (16 - k - 2) + math.ceil((16 - k - 2) / 2) - 1 for k in range(8)]
    assert forwards(tree) == 8 + 12 * sum(tails)
    assert replay_forwards(tree, 1, 1, None) == 8
    assert set(tree.tables[1:]) == {Coarse(k + 2, 2) for k in range(8)}
    views = [tree.segments[i].view for i in tree.leaves]
    assert views.count(0) == views.count(1) == 96
    assert all((tree.segments[i].table == 0) == (tree.segments[i].view == 0) for i in tree.leaves)


def test_branch_mix_follows_the_ode_outside_its_window() -> None:
    plan = Branching(16, (3, 5), (2, 2), (3, 4, 5, 6), (3, 4, 5, 6))
    tree = plan.tree(4)
    assert {step for s in tree.segments for step in s.stochastic} == {3, 4, 5, 6} == set(tree.trained)
    assert forwards(tree) == 4 + 2 + 2 + 4 * 10  # a trunk to step 3, its siblings' first step included
    assert picture(tree) == "···●●●●·········"
    tail = Branching(16, (3, 5), (2, 2), (3, 4, 5, 6), (3, 4, 5, 6), tail=Coarse(7, 3), solver="dpmpp_2m").tree(4)
    assert forwards(tail) == 4 + 2 + 2 + 4 * 1 + 4 * 3 and [tail.segments[i].table for i in tail.leaves] == [1] * 4


def test_trees_of_one_start_are_one_trunk_until_noise_is_drawn() -> None:
    shared, own = (
        Branching(8, (4,), (2,), (2, 3, 4, 5), (2, 3, 4, 5), share_noise=share).tree(6) for share in (True, False)
    )
    assert forwards(shared) == 2 + 1 + 3 + 3 + 3 * 6  # steps 0 and 1 once, the state of step 2 once, then three trunks
    assert forwards(own) == 3 * 4 + 3 + 3 * 6
    assert {s.start for s in own.segments} == {0, 1, 2} and {s.start for s in shared.segments} == {0}
    # Where nothing is drawn before the first split, three trees are one that parts into three times as many.
    wide = Branching(8, (4,), (6,), (4, 5), (4, 5)).tree(6)
    assert forwards(Branching(8, (4,), (2,), (4, 5), (4, 5)).tree(6)) == forwards(wide) == 4 + 1 + 6 * 3


def test_siblings_part_with_their_own_noise_and_what_follows_has_the_usual() -> None:
    tree = Branching(6, (1, 3), (2, 2), ALL[:6], ALL[:6], correlation=0.5, split_noise=2.0).tree(4)
    assert [(s.scale, s.correlation) for s in tree.segments] == [(1.0, 0.0)] + [(2.0, 0.5)] * 6


def test_a_pruned_step_is_drawn_and_not_trained() -> None:
    trained = tuple(step for step in ALL if step not in (14, 15, 16, 17))
    tree = Branching(20, (0, 3, 6, 9), (2, 2, 2, 2), ALL, trained).tree(16)
    assert tree.trained == trained and {k for s in tree.segments for k in s.stochastic} == set(ALL)
    assert (len(tree.rows), forwards(tree)) == (30, 203)
    # a depth that is pruned whole has no rows; its leaves' rewards still reach those above it
    upper = Branching(20, (0, 3, 6, 9), (2, 2, 2, 2), ALL, (0, 1, 2)).tree(16)
    assert len(upper.rows) == 2 and len(upper.leaves) == 16
    assert torch.equal(credit_weights(upper)[0, 0], torch.eye(2).repeat_interleave(8, 1) / 8)


def test_path_probability_is_a_product_down_the_tree() -> None:
    tree = Branching(6, (0, 2), (2, 2), ALL[:4], ALL[:4], credit="path_probability").tree(4)
    logp = torch.tensor([[0.3, -0.2, 1.0, 0.0, -1.0, 0.5], [-400.0, 400.0, 0.0, 900.0, 0.0, 0.0]])
    found = credit_weights(tree, logp)
    for p in range(2):
        left, right = (logp[p, i : i + 2].double().softmax(0).float() for i in (2, 4))
        want = torch.zeros(6, 4)
        want[0, :2], want[1, 2:], want[2:] = left, right, torch.eye(4)
        torch.testing.assert_close(found[p, 0], want)
    with pytest.raises(ValueError, match="edge_logp"):
        credit_weights(tree)


def test_path_probability_counts_leaves_not_weights() -> None:
    """Below a depth that is not trained all leaves count alike, also where the first prompt gives some no weight."""
    plan = Branching(6, (0, 1, 2), (2, 2, 2), ALL[:3], (0, 2), credit="path_probability")
    tree = plan.tree(8)
    assert len(tree.rows) == 10
    logp = torch.zeros(2, 10)
    logp[0, next(i for i, row in enumerate(tree.rows) if tree.segments[row].begin == 2)] = -2000.0
    weights = credit_weights(tree, logp)
    torch.testing.assert_close(weights[1, 0, 0], torch.tensor([0.25] * 4 + [0.0] * 4))
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.0, 0.5, 0.25, 0.25] + [0.0] * 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Branching(8, (2, 2), (2, 2), ALL[:8], (1,)), "must rise"),
        (lambda: Branching(8, (3, 2), (2, 2), ALL[:8], (1,)), "must rise"),
        (lambda: Branching(8, (9,), (2,), ALL[:8], (1,)), "must rise"),
        (lambda: Branching(8, (5,), (2,), (2, 3), (2,)), r"splits=\(5,\).*stochastic=\(2, 3\)"),
        (lambda: Branching(8, (), (), (2, 3), (2,)), "each split a width"),
        (lambda: Branching(8, (2,), (1,), (2, 3), (2,)), "2 or more"),
        (lambda: Branching(8, (2,), (2, 2), (2, 3), (2,)), "each split a width"),
        (lambda: Branching(8, (2,), (2,), (2, 3), ()), r"trained=\(\)"),
        (lambda: Branching(8, (2,), (2,), (2, 3), (4,)), r"trained=\(4,\)"),
        (lambda: Branching(8, (2,), (3,), (2, 3), (2,)).tree(4), "group=4.*3 leaves"),
        (lambda: PerStep(8, ()), "without repeats"),
        (lambda: PerStep(8, (1, 1)), "without repeats"),
        (lambda: PerStep(8, (8,)), "7 or less"),
        (lambda: PerStep(8, (6,), strides=(2,)), "5 or less"),
        (lambda: PerStep(8, (5,), strides=(1, 2)), "4 or less"),
        (lambda: PerStep(8, (4,), strides=(1, 2, 3)), "3 or less"),
        (lambda: PerStep(8, (1,), strides=(1, 1)), "without repeats"),
        (lambda: PerStep(8, (1,), strides=()), "1 or more"),
        (lambda: PerStep(8, (1,), anchors=0), "anchors=0"),
        (lambda: PerStep(8, (1,), anchors=3).tree(4), "group=4.*anchors=3"),
    ],
)
def test_errors_name_the_value_and_the_remedy(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=30)
@given(st.integers(6, 14), st.sets(st.integers(1, 4), min_size=2, max_size=3))
def test_strides_that_are_accepted_differ(num_steps: int, strides: set[int]) -> None:
    chosen = tuple(sorted(strides))
    for step in range(num_steps):
        left = num_steps - step - 2
        # as the levels that a stride leaves of those behind the draw
        kept = {tuple(sorted({*range(0, max(left, 0), stride), left})) for stride in chosen}
        if left >= 1 and len(kept) == len(chosen):
            PerStep(num_steps, (step,), strides=chosen)
        else:
            with pytest.raises(ValueError, match="or less"):
                PerStep(num_steps, (step,), strides=chosen)


@given(TREES, st.one_of(st.none(), st.integers(1, 5)))
def test_every_leaf_is_finished_by_one_pass(tree: Tree, max_rows: int | None) -> None:
    assert sorted(leaf for part in tree.passes(max_rows) for leaf in part.leaves) == sorted(tree.leaves)
