"""The OCR reward: the rule against published numbers, the reader on text that is drawn here."""

import logging
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from golden import cases, check
from ocr_support import WORDS, asked, placed, written
from reward_models.ocr import agreement, ocr, targets
from reward_models.parts.judge.reading import TextReader, reading_order


@pytest.fixture(scope="module")
def reward() -> ocr:
    return ocr()


@pytest.mark.parametrize("case", cases("direct/rewards_ocr.json"))
def test_the_published_rule_is_kept_behind_compatible(case):
    pairs = zip(case["inputs"]["prompt"], case["inputs"]["recognised"], strict=True)
    found = [agreement(targets(Prompt("", text))[:1], lines, compatible=True) for text, lines in pairs]
    check({"reward": found, "reward_whitespace_variant": found}, case)


def test_other_text_costs_unless_compatible():
    assert agreement(["go"], ["Let it go now"], compatible=True) == 1.0
    assert agreement(["go"], ["Let it go now"]) == 0.0
    assert agreement(["OPEN"], ["OPEN", "a"]) == 0.75  # one letter too many of four
    assert agreement(["OPEN"], ["open"] * 9) == 0.0
    assert agreement(["Zebra"], ["zeb"]) == pytest.approx(0.6)
    assert agreement(["stop"], []) == 0.0


def edits(a: str, b: str) -> int:
    """Levenshtein's distance by its recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_agreement_is_the_edit_distance():
    chance = random.Random(0)
    for _ in range(200):
        wanted, read = ("".join(chance.choices("abc", k=chance.randint(1, 9))) for _ in range(2))
        assert agreement([wanted], [read]) == pytest.approx(1 - min(edits(wanted, read), len(wanted)) / len(wanted))


def test_forms_of_a_character_are_the_same_and_texts_stand_in_any_order():
    assert agreement(['Don\'t go - "now"!'], ["DON’T GO – “NOW”！"]) == 1.0
    assert agreement(["it's"], ["it’s"], compatible=True) == 0.75
    assert agreement(["left", "right"], ["right", "left"]) == 1.0
    assert agreement(["ab", "cd", "ef", "gh", "ij"], ["ijab", "cdef", "gh"]) == pytest.approx(1 - 4 / 10)
    with pytest.raises(ValueError, match="target is empty"):
        agreement([" "], ["x"])


@pytest.mark.parametrize(
    ("text", "meta", "found"),
    [
        ('a sign "Hello World" here', {}, ["Hello World"]),
        ("a sign “Hello” and „Welt“, «bon» 「看」", {}, ["Hello", "Welt", "bon", "看"]),
        ('"one" and "two"', {}, ["one", "two"]),
        ('a sign "Hello"', {"text": "Bye"}, ["Bye"]),
        ("a sign", {"text": ["Up", "Down"]}, ["Up", "Down"]),
        ("the dog's bowl \"", {}, []),
        ('nothing "" or " "', {}, []),
        ("nothing", {"text": ""}, []),
    ],
)
def test_targets(text, meta, found):
    assert targets(Prompt("", text, meta=meta)) == found


def test_a_prompt_without_target_is_named_or_left_unscored(reward):
    images = torch.stack([written("OPEN"), written("SHUT")])
    prompts = [Prompt("0", "a cat"), Prompt("1", 'a sign "SHUT"')]
    given = Samples(prompts, torch.arange(2), images=images)
    with pytest.raises(ValueError, match="'a cat' does not say what to write"):
        reward(given)
    scores = ocr(missing="nan")(given)
    assert scores[0].isnan() and scores[1] == 1
    wrong = Samples([Prompt("0", "a cat", meta={"text": 7})], torch.arange(1), images=images[:1])
    with pytest.raises(ValueError, match="text=7 in its meta; accepted is a text or a list"):
        reward(wrong)
    keyed = Samples([Prompt("0", "a cat", meta={"sign": "open"})], torch.arange(1), images=images[:1])
    assert ocr(key="sign")(keyed).tolist() == [1.0]


def test_words_of_twelve_pixels_and_more_are_read(reward):
    chance = random.Random(1)
    jobs = [(word, size) for size in (12, 16, 28) for word in chance.sample(WORDS, 14)]
    scores = reward(asked([word for word, _ in jobs], [placed(word, size, chance) for word, size in jobs]))
    assert scores.dtype == torch.float32
    wrong = [(*job, score) for job, score in zip(jobs, scores.tolist(), strict=True) if score != 1]
    assert len(wrong) <= 0.05 * len(jobs), wrong


@pytest.mark.parametrize(("side", "size"), [(32, 12), (64, 12), (512, 12), (1024, 20)])
def test_small_and_large_pictures_are_read(reward, side, size):
    words = ["Go", "42", "Up", "Zoo"]
    chance = random.Random(side)
    assert reward(asked(words, [placed(word, size, chance, side) for word in words])).tolist() == [1.0] * 4


def test_several_lines_and_wrong_text(reward):
    images = [written("Grand", "Opening"), written("Grand", "Opening"), written("Grand"), written()]
    scores = reward(asked(["Grand Opening", "Opening Grand", "Grand Opening", "Grand"], images))
    assert scores[0] == 1 and scores[1] < 1 and scores[2] == pytest.approx(5 / 12) and scores[3] == 0


def test_stuffing_a_picture_with_text_earns_nothing(reward):
    full = written("OPEN SHOP", "BUY NOW", "SALE 50")
    assert reward(asked(["OPEN"], [full])).item() == 0
    assert ocr(compatible=True)(asked(["OPEN"], [full])).item() == 1
    both = Samples([Prompt("0", 'signs "OPEN" and "SHUT"')], torch.arange(1), images=full[None])
    assert ocr(compatible=True)(both).item() == 1  # the first quoted text alone


def test_large_words_of_a_line_are_read_from_the_left():
    picture = written("nose", size=90, side=700, at=(20, 200)) + written("Tall", size=90, side=700, at=(420, 200)) - 1
    assert ocr()(asked(["nose Tall"], [picture.clamp(0, 1)])).item() == 1
    low, high = [(0, 30), (40, 30), (40, 60), (0, 60)], [(50, 5), (90, 5), (90, 60), (50, 60)]
    below = [(9, 70), (20, 95)]
    assert reading_order([below, high, low]) == [2, 1, 0]
    assert reading_order([]) == []


def test_batches_order_and_threads_change_nothing(reward):
    chance = random.Random(5)
    words = chance.sample(WORDS, 6)
    images = [placed(word, 13, chance, 128) * 0.5 + 0.5 * torch.rand(3, 128, 128) for word in words]
    given = asked(words, images)
    whole = reward(given)
    assert 0 < whole.mean() < 1  # some are hard to read
    assert torch.equal(torch.cat([reward(given[[i]]) for i in range(6)]), whole)
    turned = [3, 0, 5, 1, 4, 2]
    assert torch.equal(reward(given[turned]), whole[turned])
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, whole) for found in pool.map(reward, [given] * 4))
    assert torch.equal(ocr(workers=3)(given), whole)


def test_a_video_has_the_mean_of_its_frames(reward):
    frames = torch.stack([written(text, size=14, side=64) for text in ("OPEN", "OPE", "", "OPEN", "OPEN")])
    given = Samples([Prompt("0", 'a sign "OPEN"')], torch.arange(1), video=frames[None])
    assert reward(given).item() == pytest.approx((1 + 0.75 + 0 + 1 + 1) / 5)
    assert ocr(frames=3)(given).item() == pytest.approx(2 / 3)  # the first, the middle, the last
    assert ocr(frames=1)(given).item() == 0  # the middle


def test_pictures_that_are_not_finite_have_no_score(reward):
    given = asked(["OPEN", "OPEN"], [written("OPEN"), written("OPEN")])
    given.images[0, 1, 3, 3] = torch.nan
    scores = reward(given)
    assert scores[0].isnan() and scores[1] == 1


def test_an_empty_batch_has_no_scores(reward):
    empty = reward(Samples([], torch.zeros(0), images=torch.zeros(0, 3, 64, 64)))
    assert empty.shape == (0,) and empty.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"missing": "zero"}, "missing='zero'"),
        ({"frames": 0}, "frames=0"),
        ({"side": 8}, "side=8"),
        ({"confidence": 2}, "confidence=2"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said) as caught:
        ocr(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime", "rapidfuzz"])
def test_a_missing_package_names_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'ocr: the package \'{package}\'.*pip install "flowrl-toolkit\[vision\]"'):
        ocr()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"texts": ["x"]}, "scores images and video; this model gives texts"),
        ({"images": torch.zeros(1, 1, 32, 32)}, r"shape \[1, 1, 32, 32\]"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.full((1, 3, 32, 32), 255.0)}, "255"),
    ],
)
def test_other_inputs_are_refused(reward, given, said):
    with pytest.raises(ValueError, match=said):
        reward(Samples([Prompt("0", 'a sign "x"')], torch.zeros(1), **given))


def test_nothing_is_downloaded_and_nothing_said():
    import rapidocr

    shipped = {path.name for path in (Path(rapidocr.__file__).parent / "models").glob("*.onnx")}
    assert any("det" in name for name in shipped) and any("rec" in name for name in shipped)
    TextReader("ocr").lines([])
    assert ocr()(asked(["x"], [torch.rand(3, 40, 40)])).item() == 0
    assert not logging.getLogger("RapidOCR").isEnabledFor(logging.ERROR)  # it tells of every picture without text


@pytest.mark.slow
def test_a_picture_is_read_in_forty_milliseconds_on_one_core(reward):
    """Of 256 x 256, with one word. The best of several: other work on the machine only adds to the time."""
    given = asked(["Welcome"], [written("Welcome", size=20)])
    times = []
    for _ in range(12):
        start = time.process_time()
        assert reward(given).item() == 1
        times.append(time.process_time() - start)
    assert min(times) < 0.040
