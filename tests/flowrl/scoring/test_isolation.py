"""No reward reaches what is trained on or what another sees, and none is asked about what is no picture."""

import copy
import random
import threading
from dataclasses import replace

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.media.pictures import LARGEST_SIDE, picture_fault
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.scorer import RewardError, Scorer, load
from flowrl.worlds.shapes.captions import split
from flowrl.worlds.shapes.render import render
from scoring_support import runner

FIELDS = ("group", "images", "video", "audio", "lengths", "truncated")


def samples(n=6):
    prompts = [Prompt(str(i), str(i), meta={"kind": ["a"]}, call={"size": [1]}) for i in range(n // 2)]
    images = torch.linspace(0.1, 0.9, n).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone()
    numbers = torch.arange(n)
    return Samples(
        [prompt for prompt in prompts for _ in range(2)],
        numbers // 2,
        images=images,
        video=images[:, None].repeat(1, 2, 1, 1, 1),
        audio=torch.zeros(n, 1, 8),
        lengths=numbers.clone(),
        truncated=numbers > 3,
    )


def brightness(s):
    return s.images.mean((1, 2, 3)) + s.group + s.lengths + torch.tensor([len(p.meta["kind"]) for p in s.prompts])


def spoil(s):
    for name in FIELDS:
        getattr(s, name).numpy()[...] = 0  # which no version counter of torch notices
    for prompt in s.prompts:
        prompt.meta["kind"].append("b")
        prompt.call.clear()
        object.__setattr__(prompt, "text", "another")
    s.prompts.clear()


def spoiler(s):
    number = len(s)
    spoil(s)
    return torch.zeros(number)


def same(one, other):
    return one.prompts == other.prompts and all(torch.equal(getattr(one, n), getattr(other, n)) for n in FIELDS)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("how", [{}, {"time_limit": 60.0}, {"overlap": True}])
def test_what_a_reward_writes_reaches_nobody(batch, how):
    given = samples()
    before, wanted = copy.deepcopy(given), brightness(given)
    rewards = {"first": runner(brightness), "bad": runner(spoiler, **how), "last": runner(brightness)}
    scorer = Scorer(rewards, batch=batch)
    if "overlap" in how:
        scorer.take(given)
    scores = scorer(given)
    assert torch.equal(scores["first"], wanted) and torch.equal(scores["last"], wanted)
    assert same(given, before)


@pytest.mark.parametrize("limit", [None, 0.05])
def test_nor_does_what_it_writes_later(limit):
    """From its own call, which is late, or from a thread that it has left behind."""
    given, release, threads = samples(), threading.Event(), []
    before = copy.deepcopy(given)

    def wait_and_spoil(s):
        release.wait(60)
        spoil(s)

    def bad(s):
        threads.append(threading.Thread(target=wait_and_spoil, args=(s,)))
        threads[-1].start()
        if limit is not None:
            threads[-1].join()
        return torch.zeros(len(s))

    scorer = Scorer({"bad": runner(bad, required=False, time_limit=limit), "good": runner(brightness)})
    if limit is None:
        scorer(given)
    else:
        with pytest.warns(UserWarning, match="no answer within time_limit"):
            assert scorer(given)["bad"].isnan().all()
    release.set()
    for thread in threads:
        thread.join()
    assert threads and same(given, before)


def test_a_reward_may_use_the_memory_of_its_scores_again():
    given, memory = samples(), torch.zeros(2)

    def thrifty(s):
        memory.copy_(s.images.mean((1, 2, 3)))
        return memory

    scorer = Scorer({"x": runner(thrifty, overlap=True)})
    for i in range(0, 6, 2):
        scorer.take(given[[i, i + 1]])
    assert torch.equal(scorer(given)["x"], given.images.mean((1, 2, 3)))


def test_a_prompt_that_stands_there_several_times_is_one_object():
    seen = []
    Scorer({"x": runner(lambda s: seen.extend(s.prompts) or brightness(s))})(samples())
    assert [a is b for a, b in zip(seen, seen[1:], strict=False)] == [True, False, True, False, True]


FAULTS = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "1e30": 1e30, "above": 1.01, "below": -0.01}


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", ["images", "video"])
def test_no_reward_is_asked_about_what_is_no_picture(kind, value):
    given, seen = samples(), []
    getattr(given, kind)[3, ..., 1, 2] = value

    def watched(s):
        seen.extend(s.lengths.tolist())
        return torch.zeros(len(s))

    with pytest.warns(UserWarning, match="1 of 6 samples are not scored: pictures with values"):
        scores = Scorer({"one": runner(watched, failure_limit=1.0), "two": runner(watched, batch=4, required=False)})(
            given
        )
    assert all(score.isnan().tolist() == [i == 3 for i in range(6)] for score in scores.values())
    assert seen == 2 * [0, 1, 2, 4, 5]


def test_rounding_is_no_fault_and_what_is_lost_ends_a_run_with_its_reason():
    given = samples()
    given.images[0, 0, 0, 0], given.images[1, 0, 0, 0] = 1 + 5e-4, -5e-4
    assert picture_fault(given.images) is None and not Scorer({"x": runner(brightness)})(given)["x"].isnan().any()
    given.images.fill_(torch.nan)
    with (
        pytest.warns(UserWarning, match="6 of 6 samples"),
        pytest.raises(RewardError, match="'x' could not score any of 6 samples: 6 of 6 .* not finite"),
    ):
        Scorer({"x": runner(brightness)})(given)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 4, 8, 8), r"shape \(2, 4, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"shape \(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 0, 8), "shape"),
        (torch.zeros(2, 3, 8), "shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 1, 1, 1).expand(2, 3, 2, LARGEST_SIDE + 1), "pixels a side"),
    ],
)
def test_what_is_wrong_with_all_alike_is_refused_in_a_line(images, words):
    given = Samples([Prompt("0", "0")] * 2, torch.zeros(2, dtype=torch.int64), images=images)
    with pytest.raises(RewardError, match=f"no reward can score what the model gives: pictures of .*{words}"):
        Scorer({"x": runner(lambda s: torch.zeros(len(s)))})(given)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (torch.zeros(6).to_sparse(), "a sparse or nested tensor"),
        (torch.full((6,), 1e300, dtype=torch.float64), "a score of 1e.300, too large for float32"),
        (torch.zeros(6, device="meta"), "a tensor without values"),
    ],
    ids=["sparse", "1e300", "meta"],
)
def test_a_score_of_another_kind_is_refused_in_a_line(score, words):
    with pytest.raises(RewardError, match=f"reward 'x' returned {words}.*accepted: float32"):
        Scorer({"x": runner(lambda s: score)})(samples())


PLAIN = ["brightness", "contrast", "saturation", "sharpness", "jpeg_compressibility", "jpeg_incompressibility"]


@pytest.mark.parametrize("value", FAULTS.values(), ids=FAULTS)
def test_no_reward_that_ships_gives_a_number_for_what_is_no_picture(value):
    """All that need no weights, as a run calls them, and their other scores are what they are without it."""
    scenes = random.Random(0).sample(split()[0]["relation"], 4)
    prompts = [Prompt(scene.caption, scene.caption, meta=scene.meta()) for scene in scenes]
    good = Samples(prompts, torch.arange(4), images=render(scenes, random.Random(1)))
    rewards = load({n: RewardSpec(use=n, failure_limit=1.0) for n in [*PLAIN, "shapes", "shapes_strict"]})
    wanted, spoilt = Scorer(rewards)(good), replace(good, images=good.images.clone())
    spoilt.images[2, 0, 3, 3] = value
    with pytest.warns(UserWarning, match="1 of 4 samples are not scored"):
        found = Scorer(rewards)(spoilt)
    for name, score in found.items():
        assert score.isnan().tolist() == [False, False, True, False], name
        assert torch.equal(score[[0, 1, 3]], wanted[name][[0, 1, 3]]), name
