"""Rewards run under their names: splits change nothing, errors never become numbers, NaN passes through."""

import threading
from collections import Counter

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.names import UserError
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.cache import ScoreCache
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import RewardError, Scorer, load
from scoring_support import runner


def samples(n=5):
    images = torch.linspace(0, 1, n).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone()
    return Samples([Prompt(str(i), str(i)) for i in range(n)], torch.arange(n), images=images)


def brightness(samples):
    return samples.images.mean((1, 2, 3))


def spec(use, **args):
    return RewardSpec(use=use, args=args)


@pytest.mark.parametrize("batch", [None, 1, 2, 5, 7])
def test_the_split_changes_no_score(batch):
    scores = Scorer({"b": runner(brightness), "n": runner(lambda s: -brightness(s), 0.0)}, batch=batch)(samples())
    assert list(scores) == ["b", "n"]
    torch.testing.assert_close(scores["b"], torch.linspace(0, 1, 5), atol=1e-6, rtol=0)
    assert torch.equal(scores["n"], -scores["b"]) and scores["b"].dtype == torch.float32


def test_weights_and_progress():
    done = []
    scorer = Scorer({"a": runner(brightness, 2.0), "b": runner(brightness, 0.0)}, batch=2)
    scorer(samples(), progress=done.append)
    assert scorer.weights == {"a": 2.0, "b": 0.0} and done == ["a", "b"]


def test_nan_passes_and_wider_floats_are_narrowed():
    def some(s):
        return torch.where(torch.arange(len(s)) == 1, torch.nan, 1.0).double()

    score = Scorer({"x": runner(some)})(samples(3))["x"]
    assert score.dtype == torch.float32 and score.isnan().tolist() == [False, True, False]


def test_scores_carry_no_gradient():
    weight = torch.ones((), requires_grad=True)
    score = Scorer({"x": runner(lambda s: brightness(s) * weight)})(samples())["x"]
    assert not score.requires_grad


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda n: [1.0] * n, "a list"),
        (lambda n: torch.zeros(n, 1), r"shape \[5, 1\]"),
        (lambda n: torch.zeros(n + 1), r"shape \[6\]"),
        (lambda n: torch.zeros(()), r"shape \[\]"),
        (lambda n: torch.zeros(n, dtype=torch.int64), "int64"),
        (lambda n: torch.full((n,), torch.inf), "an infinite score"),
    ],
)
def test_what_is_no_score_is_refused_under_the_rewards_name(value, words):
    with pytest.raises(RewardError, match=f"reward 'mine' returned .*{words}"):
        Scorer({"mine": runner(lambda s: value(len(s)))})(samples())


def broken(samples):
    raise KeyError("no such thing")


def test_an_exception_names_its_reward_and_keeps_its_cause():
    scorer = Scorer({"fine": runner(brightness), "mine": runner(broken)})
    with pytest.raises(RewardError, match="'mine' could not score any of 5 samples: KeyError") as caught:
        scorer(samples())
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_optional_reward_that_fails_marks_its_samples_and_no_others():
    def fails_on_two(s):
        return broken(s) if "2" in [p.id for p in s.prompts] else brightness(s)

    scorer = Scorer({"o": runner(fails_on_two, required=False), "b": runner(brightness)}, batch=2)
    with pytest.warns(UserWarning, match="optional reward 'o' failed"):
        scores = scorer(samples())
    assert scores["o"].isnan().tolist() == [False, False, True, True, False]
    assert not scores["b"].isnan().any() and scorer.failures == {"o": 2, "b": 0}


def test_an_empty_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch=0"):
        Scorer({}, batch=0)


def test_rewards_load_by_short_name_and_by_path(tmp_path, monkeypatch):
    (tmp_path / "mine_rewards.py").write_text(
        "import torch\n"
        "def level(samples, scale=1.0):\n    return samples.images.mean((1, 2, 3)) * scale\n"
        "class Level:\n"
        "    def __init__(self, scale):\n"
        "        if scale < 0: raise ValueError('scale below 0')\n"
        "        self.scale = scale\n"
        "    def __call__(self, samples):\n        return samples.images.mean((1, 2, 3)) * self.scale\n"
    )
    monkeypatch.chdir(tmp_path)
    specs = {
        "function": spec("mine_rewards.level", scale=2.0),
        "class": spec("mine_rewards:Level", scale=2.0),
        "short": spec("jpeg_compressibility", quality=90),
    }
    scores = Scorer(load(specs))(samples())
    assert torch.equal(scores["function"], scores["class"])
    assert (scores["short"] < 0).all()
    with pytest.raises(RewardError, match="reward 'bad' .* cannot be set up: scale below 0"):
        load({"bad": spec("mine_rewards.Level", scale=-1)})


def sometimes(missing):
    """A reward without a score for samples whose id is in `missing`."""
    return lambda s: torch.tensor([torch.nan if int(p.id) in missing else 1.0 for p in s.prompts])


def test_a_required_reward_may_miss_a_few_samples_and_not_many():
    scorer = Scorer({"x": runner(sometimes({1, 2}), failure_limit=0.1)})
    for _ in range(5):  # two of each five: ten of a hundred are allowed
        assert scorer(samples())["x"].isnan().sum() == 2
    with pytest.raises(
        RewardError, match=r"12 of the latest 30 samples, more than failure_limit 0\.1 .*NaN.*required=false"
    ):
        scorer(samples())
    lenient = Scorer({"x": runner(sometimes({1, 2}), required=False)})
    assert all(lenient(samples())["x"].isnan().sum() == 2 for _ in range(10))


def test_a_reward_that_counts_reasons_is_quoted():
    class Judge:
        failures = Counter({"timeout": 3, "HTTP 500": 2})

        def __call__(self, s):
            return torch.full((len(s),), torch.nan)

    with pytest.raises(
        RewardError, match=r"any of 5 samples: it gave no number \(NaN\): timeout \(3\), HTTP 500 \(2\);"
    ):
        Scorer({"j": runner(Judge())})(samples())


def test_the_record_of_failures_survives_a_resume():
    first, second = (Scorer({"x": runner(sometimes({1, 2}))}) for _ in range(2))
    for _ in range(5):
        first(samples())
    second.load_state_dict(first.state_dict())
    with pytest.raises(RewardError, match="12 of the latest 30"):
        second(samples())


def test_each_reward_has_its_own_batch_and_sees_what_it_is_asked_about():
    seen = {"all": [], "two": [], "some": []}

    def watched(name):
        return lambda s: seen[name].append([p.id for p in s.prompts]) or brightness(s)

    given = samples()
    for i, prompt in enumerate(given.prompts):
        prompt.meta["kind"] = "even" if i % 2 == 0 else "odd"
    rewards = {
        "all": runner(watched("all")),
        "two": runner(watched("two"), batch=2),
        "some": runner(watched("some"), batch=2, when={"kind": "even"}),
    }
    scores = Scorer(rewards)(given)
    assert seen == {"all": [list("01234")], "two": [["0", "1"], ["2", "3"], ["4"]], "some": [["0", "2"], ["4"]]}
    assert scores["some"].isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(scores["two"], scores["all"]) and scores["some"][2] == scores["all"][2]


def test_what_a_reward_is_not_asked_about_is_no_failure():
    given = samples()
    scorer = Scorer({"x": runner(brightness, when={"kind": ["none"]})})
    assert scorer(given)["x"].isnan().all() and scorer.failures == {"x": 0}


def test_groups_stay_whole_for_a_reward_that_compares():
    class Rank:
        groupwise = True

        def __call__(self, s):
            seen.append(s.group.tolist())
            return torch.tensor([float((s.group == g).sum()) for g in s.group])

    seen, group = [], torch.tensor([0, 0, 0, 1, 1, 2])
    given = Samples([Prompt(str(i), str(i)) for i in range(6)], group, images=torch.zeros(6, 3, 2, 2))
    score = Scorer({"r": runner(Rank(), batch=3)})(given)["r"]
    assert score.tolist() == [3, 3, 3, 2, 2, 1] and seen == [[0, 0, 0], [1, 1, 2]]


def test_a_reward_that_compares_is_left_out_where_each_sample_is_alone():
    class Rank:
        groupwise = True

        def __call__(self, s):
            raise AssertionError("nothing to compare")

    scorer = Scorer({"rank": runner(Rank()), "b": runner(brightness)})
    assert list(scorer(samples())) == ["b"]
    found = counted_rewards(scorer.specs, scorer(samples()), samples().prompts)
    assert torch.equal(found.total, brightness(samples()))
    assert counted_rewards({"rank": scorer.specs["rank"]}, {}, samples().prompts).total is None


def test_a_late_answer_is_no_score():
    release = threading.Event()

    def stuck(s):
        release.wait(30)
        return brightness(s)

    scorer = Scorer({"slow": runner(stuck, required=False, time_limit=0.05), "b": runner(brightness)}, batch=3)
    with pytest.warns(UserWarning, match="no answer within time_limit: 0.05 s"):
        scores = scorer(samples())
    assert scores["slow"].isnan().all() and not scores["b"].isnan().any() and scorer.failures["slow"] == 5
    release.set()
    scorer.rewards["slow"].call(samples())  # the event is set: nothing waits any more
    patient = Scorer({"slow": runner(stuck, time_limit=30.0)}, batch=3)
    assert torch.equal(patient(samples())["slow"], scores["b"])


def test_overlapping_rewards_score_while_the_rest_is_drawn():
    begun, given = threading.Event(), samples()

    def noticed(s):
        begun.set()
        return brightness(s)

    scorer = Scorer({"early": runner(noticed, overlap=True), "late": runner(lambda s: -brightness(s))}, batch=2)
    parts = [given[[0, 1, 2]], given[[3, 4]]]
    scorer.take(parts[0])
    assert begun.wait(30)  # nobody has asked for a score yet
    scorer.take(parts[1])
    done: list[str] = []
    scores = scorer(given, progress=done.append)
    assert torch.equal(scores["early"], brightness(given)) and torch.equal(scores["late"], -brightness(given))
    assert sorted(done) == ["early", "late"]
    scorer.take(parts[0])  # of other samples than those that are scored then
    assert torch.equal(scorer(given)["early"], brightness(given))


def test_rewards_with_weights_move_to_their_device_and_back():
    class Heavy:
        places: list[str] = []

        def to(self, device):
            self.places.append(str(device))

        def __call__(self, s):
            self.places.append(f"called on {s.images.device}")
            return brightness(s)

    Scorer({"h": runner(Heavy(), offload=True)}, device="cpu")(samples())
    assert Heavy.places == ["cpu", "called on cpu", "cpu"]
    Heavy.places.clear()
    Scorer({"h": runner(Heavy(), device="meta")}, device="cpu")(samples(0))
    assert Heavy.places == ["meta"]


def test_scores_that_are_known_are_not_asked_for_again(tmp_path):
    (tmp_path / "weights").write_bytes(b"1")
    calls = []

    def slow(s, weights="weights"):
        calls.append(len(s))
        return torch.where(torch.arange(len(s)) == 0, torch.nan, brightness(s)) if len(calls) == 1 else brightness(s)

    def cached(file="scores.db"):
        cache = ScoreCache("mine", {"weights": str(tmp_path / "weights")}, tmp_path / file)
        return Scorer({"x": runner(slow, cache=cache)})

    given, scorer = samples(), cached()
    assert scorer(given)["x"].isnan().tolist() == [True] + 4 * [False]
    assert torch.equal(scorer(given)["x"], brightness(given)) and calls == [5, 1]  # what had no score is asked again
    assert torch.equal(scorer(given[[4, 0, 4]])["x"], brightness(given)[[4, 0, 4]]) and calls == [5, 1]
    assert torch.equal(cached()(given)["x"], brightness(given)) and calls == [5, 1]  # another run
    other = Samples([Prompt("0", "other")] * 5, given.group, images=given.images)
    scorer(other)
    assert calls == [5, 1, 5]
    (tmp_path / "weights").write_bytes(b"22")
    cached()(given)
    assert calls == [5, 1, 5, 5]  # another checkpoint
    (tmp_path / "media.png").write_bytes(b"1")
    shown = Samples([Prompt("0", "0", media=(str(tmp_path / "media.png"),))] * 5, given.group, images=given.images)
    again = cached("other.db")
    for content in (b"1", b"22"):  # another reference picture of the same name
        (tmp_path / "media.png").write_bytes(content)
        again(shown)
    assert calls == [5, 1, 5, 5, 5, 5]
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(UserError, match="is not a score cache"):
        cached("text")


def test_a_reward_that_compares_takes_no_cache(tmp_path, monkeypatch):
    (tmp_path / "pairs_of_mine.py").write_text(
        "class Pairs:\n    groupwise = True\n    def __call__(self, samples): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="remove rewards.p.cache"):
        load({"p": RewardSpec(use="pairs_of_mine.Pairs", cache=True)})


class _Likes:
    """Brightness times a factor, differentiable; `asked` are the texts of each call."""

    differentiable = True

    def __init__(self, factor):
        self.factor, self.asked = factor, []

    def score(self, images, texts):
        self.asked.append(list(texts))
        return self.factor * images.square().mean((1, 2, 3))

    def __call__(self, samples):
        return self.score(samples.images, [p.text for p in samples.prompts])


def test_the_weighted_reward_with_its_gradient():
    a, b, witness = _Likes(1.0), _Likes(10.0), _Likes(100.0)
    only = {"kind": "third"}
    scorer = Scorer({"a": runner(a, 2.0), "b": runner(b, 0.5, when=only), "witness": runner(witness, 0.0)})
    given = samples(4)
    prompts = [Prompt(p.id, p.text, meta={"kind": "third"} if i == 2 else {}) for i, p in enumerate(given.prompts)]
    pixels = given.images.clone().requires_grad_()
    found = scorer.with_gradient(Samples(prompts, given.group, images=pixels), ["x", "y", "z", "w"])
    factor = torch.tensor([2.0, 2.0, 7.0, 2.0])
    torch.testing.assert_close(found, factor * given.images.square().mean((1, 2, 3)))
    (3 * found[2] + found[3].square()).backward()
    wanted = torch.autograd.grad(3 * 7 * pixels[2].square().mean() + (2 * pixels[3].square().mean()).square(), pixels)[
        0
    ]
    torch.testing.assert_close(pixels.grad, wanted)
    assert a.asked == [["x", "y", "z", "w"]] and witness.asked == []
    scorer.with_gradient(given)
    assert a.asked[1] == ["0", "1", "2", "3"]
