"""Rewards run under their names: splits change nothing, errors never become numbers, NaN passes through."""

from types import SimpleNamespace

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.scoring import Loaded, RewardError, Scorer, load


def samples(n=5):
    images = torch.linspace(0, 1, n).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone()
    return Samples([Prompt(str(i), str(i)) for i in range(n)], torch.arange(n), images=images)


def brightness(samples):
    return samples.images.mean((1, 2, 3))


def spec(use, **args):
    return SimpleNamespace(use=use, weight=1.0, args=args, required=True)


@pytest.mark.parametrize("batch", [None, 1, 2, 5, 7])
def test_the_split_changes_no_score(batch):
    scores = Scorer({"b": Loaded(brightness), "n": Loaded(lambda s: -brightness(s), 0.0)}, batch=batch)(samples())
    assert list(scores) == ["b", "n"]
    torch.testing.assert_close(scores["b"], torch.linspace(0, 1, 5), atol=1e-6, rtol=0)
    assert torch.equal(scores["n"], -scores["b"]) and scores["b"].dtype == torch.float32


def test_unsplit_samples_are_handed_over_as_they_are():
    seen = []
    given = samples()
    Scorer({"x": Loaded(lambda s: seen.append(s) or brightness(s))}, batch=5)(given)
    assert seen[0] is given


def test_weights_and_progress():
    done = []
    scorer = Scorer({"a": Loaded(brightness, 2.0), "b": Loaded(brightness, 0.0)}, batch=2)
    scorer(samples(), progress=done.append)
    assert scorer.weights == {"a": 2.0, "b": 0.0} and done == ["a", "b"]


def test_nan_passes_and_wider_floats_are_narrowed():
    def some(s):
        return torch.where(torch.arange(len(s)) == 1, torch.nan, 1.0).double()

    score = Scorer({"x": Loaded(some)})(samples(3))["x"]
    assert score.dtype == torch.float32 and score.isnan().tolist() == [False, True, False]


def test_scores_carry_no_gradient():
    weight = torch.ones((), requires_grad=True)
    score = Scorer({"x": Loaded(lambda s: brightness(s) * weight)})(samples())["x"]
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
        Scorer({"mine": Loaded(lambda s: value(len(s)))})(samples())


def broken(samples):
    raise KeyError("no such thing")


def test_an_exception_names_its_reward_and_keeps_its_cause():
    with pytest.raises(RewardError, match="reward 'mine' failed on 5 samples: KeyError") as caught:
        Scorer({"fine": Loaded(brightness), "mine": Loaded(broken)})(samples())
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_optional_reward_that_fails_marks_its_samples_and_no_others():
    def fails_on_two(s):
        return broken(s) if "2" in [p.id for p in s.prompts] else brightness(s)

    scorer = Scorer({"o": Loaded(fails_on_two, required=False), "b": Loaded(brightness)}, batch=2)
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
    with pytest.raises(RewardError, match="reward 'bad' .* cannot be set up: ValueError: scale below 0"):
        load({"bad": spec("mine_rewards.Level", scale=-1)})
