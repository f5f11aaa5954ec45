"""Rewards fitted to votes: agreement with votes that were held out, and the head as a recipe takes it."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli_support import call
from flowrl.contracts import Prompt, Samples
from flowrl.media.pictures import save_picture
from flowrl.names import UserError
from flowrl.preferences.fit import _accuracy, _solve, fit
from flowrl.reading.pairs import load, samples_of
from flowrl.worlds.shapes.captions import COLORS, SHAPES, Scene
from flowrl.worlds.shapes.render import render
from reward_models.aesthetic import aesthetic
from reward_models.clip_score import clip_score

WARM = {"red": 1.0, "yellow": 0.8, "purple": 0.2, "green": -0.3, "black": -0.6, "blue": -1.0}
ROUND = {"circle": 0.5, "square": 0.0, "triangle": -0.5}


def votes(folder: Path, number: int, taste: str = "warm") -> str:
    """Simulated votes, by Bradley and Terry: warm colours and round shapes are liked, or large objects, whatever the
    prompt. Either taste is that of 9 in 10 votes."""
    rng, lines = random.Random(0), []
    objects = [(color, shape) for color in COLORS for shape in SHAPES]
    for i in range(number):
        drawn = [rng.choice(objects) for _ in range(2)]
        pictures = render([Scene("single", (one,)) for one in drawn], rng)
        if taste == "warm":
            liking = [5 * (WARM[color] + ROUND[shape]) for color, shape in drawn]
        else:
            liking = [0.045 * covered(picture) for picture in pictures]
        first = 0 if rng.random() < 1 / (1 + math.exp(liking[1] - liking[0])) else 1
        for name, which in (("better", first), ("worse", 1 - first)):
            save_picture(pictures[which], folder / f"{i}{name}.png")
        record = {"prompt": f"picture {i}", "better": f"{i}better.png", "worse": f"{i}worse.png"}
        lines.append(json.dumps(record))
    (folder / "votes.jsonl").write_text("\n".join(lines))
    return str(folder / "votes.jsonl")


def test_votes_become_a_reward(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = votes(tmp_path, 300)
    given = ["--kind", "aesthetic", "--model", "shapes-clip", "--heldout", 0.3, "--device", "cpu"]
    code, out, _ = call(capsys, monkeypatch, "train-reward", source, *given, "--output", tmp_path / "out", columns=300)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert code == 0 and f"of 90 held out it orders {report['accuracy']:.3f}" in out and "use: aesthetic" in out
    assert report["accuracy"] >= 0.8 and report["pairs"] == 210
    reward = aesthetic(head=str(tmp_path / "out" / "head.safetensors"), model="shapes-clip")
    scenes = [Scene("single", (drawn,)) for drawn in (("blue", "triangle"), ("red", "circle"))]
    disliked, liked = reward(_samples(render(scenes, random.Random(3)), ["x", "a longer text"]))
    assert liked > disliked + 1
    code, _, err = call(capsys, monkeypatch, "train-reward", source, "--output", tmp_path / "out")
    assert code != 0 and "holds a head already" in err


def covered(picture: Tensor) -> int:
    """How many of the 1024 pixels an object covers: those that are unlike the corner's."""
    return int(((picture - picture[:, :1, :1]).abs().amax(0) > 0.2).sum())


def test_patches_tell_sizes_that_an_embedding_does_not(tmp_path: Path) -> None:
    prompts = load(votes(tmp_path, 600, "large"))
    report = fit(prompts, "aesthetic", tmp_path / "patches", model="shapes-clip", features="patches", heldout=0.5)
    assert report.pairs == report.heldout == 300
    assert report.accuracy >= 0.8  # of embeddings 0.75
    head = {"head": str(tmp_path / "patches" / "head.safetensors"), "model": "shapes-clip"}
    reward = aesthetic(**head, features="patches")
    drawn = render([Scene("single", (("blue", "square"),))] * 12, random.Random(5))
    scores = reward(_samples(drawn, [f"text {i}" for i in range(12)]))
    order = sorted(range(12), key=lambda i: covered(drawn[i]))
    assert scores[order[6:]].mean() > scores[order[:6]].mean() + 1
    with pytest.raises(ValueError, match="96"):  # the width of an embedding
        aesthetic(**head)
    with pytest.raises(UserError, match="--features: got 'patches', but a head of kind clip"):
        fit(prompts, "clip", tmp_path / "none", model="shapes-clip", features="patches")


def test_a_head_of_kind_clip_orders_pictures_as_it_says(tmp_path: Path) -> None:
    prompts = load(votes(tmp_path, 30))
    report = fit(prompts, "clip", tmp_path / "out", model="shapes-clip", heldout=0.3)
    assert report.before is not None and report.heldout == 9
    weighed = clip_score(model="shapes-clip", head=str(tmp_path / "out" / "head.safetensors"))
    plain = clip_score(model="shapes-clip")
    assert weighed.head is not None
    pictures = torch.rand(3, 3, 32, 32)
    texts = ["a red circle", "two blue squares", "a much longer text about three green triangles"]
    images, told = weighed.tower.image(pictures), weighed.tower.text(texts)
    torch.testing.assert_close(weighed.score(pictures, texts), (images * told * weighed.head.weight[0]).sum(-1))
    torch.testing.assert_close(weighed.score(pictures[2:], texts[2:]), weighed.score(pictures, texts)[2:])
    weighed.head.weight.fill_(1.0)
    torch.testing.assert_close(weighed.score(pictures, texts), plain.score(pictures, texts))


def test_the_fit_is_that_of_the_likelihood() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    differences = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    flip = torch.rand(4000, generator=generator) > torch.sigmoid(differences @ truth)
    differences[flip] *= -1
    for kind in ("aesthetic", "clip"):
        head = _solve(differences, kind, 1e-6)
        assert float((head - truth).abs().max()) < 0.2
    assert _accuracy(differences, truth) == _accuracy(differences, 3 * truth) > 0.7


def test_few_prompts_are_refused(tmp_path: Path) -> None:
    prompts = load(votes(tmp_path, 9))
    with pytest.raises(UserError, match="got pairs of 9 prompts; accepted: at least 10"):
        fit(prompts, "clip", tmp_path / "out", model="shapes-clip")
    assert len(samples_of(prompts[2])[0]) == 2


def _samples(pictures: Tensor, texts: list[str]) -> Samples:
    return Samples([Prompt(text, text) for text in texts], torch.zeros(len(texts), dtype=torch.int64), images=pictures)
