"""The page of a run: it says what the files say, claims no more, and stands whatever a run has left behind."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_support import call
from flowrl.names import UserError
from flowrl.report.page import render, write
from flowrl.report.read import read_run
from report_support import evaluation, held_row, jsonl, make, train_row

LOW = {"fit": [0.0, 0.1, 0.2, 0.3, 0.0, 0.1], "taste": [1.0, 0.9, 1.0, 0.9, 1.0, 0.9]}
HIGH = {"fit": [0.5, 0.7, 0.6, 0.9, 0.5, 0.0], "taste": [1.0, 0.9, 1.0, 0.9, 1.0, 0.9]}


class Page(HTMLParser):
    """The text, tags and attributes of a page; fails on tags that do not match."""

    VOID = {"meta", "img", "br", "path"}

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " " * (tag in ("br", "td", "th", "dd", "b", "span", "p"))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write(folder).read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_files(tmp_path):
    page = page_of(make(tmp_path / "r", LOW, HIGH))
    assert "best checkpoint is chosen on these same prompts" in page.words()
    words = page.words()
    old, new = (np.array(s["fit"]) for s in (LOW, HIGH))
    error = [x.std(ddof=1) / 6**0.5 for x in (old, new, new - old)]
    before, after = f"{old.mean():.3f} ± {error[0]:.3f}", f"{new.mean():.3f} ± {error[1]:.3f}"
    change = f"+{(new - old).mean():.3f} ± {error[2]:.3f}"
    assert f"Held-out fit rose from {before} to {after} on 6 prompts, a change of {change}." in words
    assert "8 iterations in 50 s." in words
    kind = np.array([HIGH["fit"][i] for i in (1, 3, 5)])  # kind b
    assert f"b 3 0.167 ± 0.067 {kind.mean():.3f} ± {kind.std(ddof=1) / 3**0.5:.3f}" in words
    assert "The trained reward rose on 5 of all 6 held-out prompts, stayed equal on 0 and fell on 1" in words
    charts = [json.loads(s) for s in re.findall(r'<script type="application/json">(.*?)</script>', _source(tmp_path))]
    fit = charts[0]["curves"]
    assert fit[0]["y"] == [0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57, 0.58] and fit[0]["x"] == list(range(1, 9))
    assert fit[1]["x"] == [0, 4, 8] and fit[1]["e"] == pytest.approx([error[0], error[0], error[1]], rel=1e-4)


def _source(tmp_path: Path) -> str:
    return (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_a_change_inside_the_error_bars_is_called_that(tmp_path):
    noisy = {"fit": [0.4, 0.0, 0.3, 0.1, 0.4, 0.0], "taste": LOW["taste"]}
    assert "inside the error bars, so no change is shown" in page_of(make(tmp_path / "r", LOW, noisy)).words()
    assert "Held-out fit fell" in page_of(make(tmp_path / "f", HIGH, {**LOW, "fit": [0.0] * 6})).words()


def test_a_witness_that_falls_is_a_warning(tmp_path):
    hacked = {**HIGH, "taste": [0.2, 0.1, 0.3, 0.1, 0.2, 0.2]}
    words = page_of(make(tmp_path / "r", LOW, hacked)).words()
    assert "the witness falls: taste" in words and "witness, not trained" in words
    assert "the witness falls" not in page_of(make(tmp_path / "s", LOW, HIGH)).words()


def test_without_an_evaluation_at_the_start_nothing_is_called_before(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    (folder / "heldout" / "00000.json").unlink()
    words = page_of(folder).words()
    assert "on 6 prompts between iterations 4 and 8, a change of" in words
    assert "Iteration 4 Iteration 8 Change" in words and "Before" not in words and "First and last evaluation" in words


def test_several_trained_rewards_are_summed_by_their_weights(tmp_path):
    rewards = {"fit": {"use": "a", "weight": 2.0}, "taste": {"use": "b", "weight": -1.0}}
    data = read_run(make(tmp_path / "r", LOW, HIGH, rewards=rewards))
    total = [2 * a - b for a, b in zip(LOW["fit"], LOW["taste"], strict=True)]
    words = Page(render(data)).words()
    assert f"The held-out weighted sum of the trained rewards rose from −{-np.mean(total):.3f}" in words


def test_pairs_go_from_the_largest_gain_to_the_largest_loss(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    page = page_of(folder)
    text = page.text
    for i, (old, new) in enumerate(zip(LOW["fit"], HIGH["fit"], strict=True)):
        assert f"prompt {i} fit {old:.2f} → {new:.2f} taste" in page.words()
    gains = np.array(HIGH["fit"]) - np.array(LOW["fit"])
    order = [text.index(f"prompt {i}") for i in range(6)]
    assert [int(i) for i in np.argsort(order)] == [int(i) for i in np.argsort(-gains, kind="stable")]
    images = page.every("img")
    assert len(images) == 6 * 2 + 6 * 3  # pairs, and the strip of three evaluations
    assert all(i["alt"] and str(i["src"]).startswith("data:image/png;base64,") for i in images)
    assert images[0]["class"] == "pixels" and images[0]["width"] == "32"


def test_it_stands_alone(tmp_path):
    page = page_of(make(tmp_path / "r", LOW, HIGH))
    names = ("src", "href", "xlink:href", "srcset", "action", "data")
    links = [str(a[n]) for _, a in page.tags for n in names if n in a]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert not page.every("link") and not page.every("iframe")
    source = _source(tmp_path)
    assert "http" not in source.replace("http-equiv", "") and "@import" not in source and "url(" not in source


EVIL = "<script>alert(1)</script> \"><img src=x onerror=alert(2)> </title> {{ 7*7 }} & '"


def test_hostile_text_stays_text(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH, model=EVIL, rewards={EVIL: {"use": "a"}, "fit": {"use": "b"}})
    prompts = [{"id": f"{EVIL}{i}", "text": EVIL, "kind": f"{EVIL}{i % 2}"} for i in range(6)]
    for i in (0, 4):
        evaluation(folder, i, {**LOW, EVIL: LOW["fit"]}, prompts=prompts)
    evaluation(folder, 8, {**HIGH, EVIL: HIGH["fit"]}, texts=[EVIL] * 6, prompts=prompts)
    jsonl(
        folder / "metrics.jsonl", [train_row(i, **{f"reward/{EVIL}/mean": 0.5, f"samples/{EVIL}": 1.0}) for i in (1, 2)]
    )
    alarm = {"iteration": 1, **dict.fromkeys(("name", "what", "cause", "remedy", "action", "since"), EVIL)}
    jsonl(folder / "alarms.jsonl", [alarm])
    start = {"time": EVIL, "from_iteration": 1, "changed": {EVIL: EVIL}}
    (folder / "run.json").write_text(json.dumps({"command": EVIL, "versions": {EVIL: EVIL}, "starts": [start, start]}))
    page = page_of(folder)
    scripts = [a for a in page.every("script") if a.get("type") != "application/json"]
    assert len(scripts) == 1  # the page's own
    assert not [a for tag, a in page.tags if any(name.startswith("on") for name in a)]
    assert not [a for a in page.every("img") if a["src"] == "x"]
    assert EVIL in page.text and "49" not in page.words().replace("0.49", "")


def test_a_picture_outside_the_run_is_not_taken(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = folder / "heldout" / "00008.json"
    values = json.loads(path.read_text())
    values["pictures"] = ["../secret.png", *values["pictures"][1:]]
    path.write_text(json.dumps(values))
    (folder / values["pictures"][1]).write_bytes(b"\x89PNG half")
    page = page_of(folder)
    assert page.words().count("no picture") == 4  # two pairs, two strips


@pytest.mark.parametrize(
    "missing",
    [
        ("summary.json",),
        ("summary.json", "heldout", "metrics.jsonl"),
        ("heldout",),
        ("metrics.jsonl",),
        ("recipe.yaml",),
        ("summary.json", "recipe.yaml", "heldout"),
    ],
)
def test_whatever_is_missing(tmp_path, missing):
    folder = make(tmp_path / "r", LOW, HIGH)
    for name in missing:
        (folder / name).rename(tmp_path / name)
    words = page_of(folder).words()
    if "heldout" not in missing:
        assert "Held-out fit rose from 0.117" in words
        assert ("between iterations 0 and 8, a" in words) == ("summary.json" in missing)
    elif "metrics.jsonl" not in missing:
        assert "Held-out fit rose from 0.117 ± 0.048 to 0.533 ± 0.123" in words  # two means, from metrics.jsonl
    else:
        assert "Nothing has been measured yet." in words
    if "summary.json" in missing and "recipe.yaml" not in missing:
        done = "metrics.jsonl" not in missing
        assert ("All 8 iterations are done" if done else "Not finished: iteration 0 of 8") in words


def test_a_run_under_way_says_so(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    (folder / "summary.json").unlink()
    (folder / "heldout" / "00008.json").unlink()
    jsonl(folder / "metrics.jsonl", [held_row(0, LOW), *[train_row(i) for i in range(1, 6)], held_row(4, LOW)])
    words = page_of(folder).words()
    assert "Not finished: iteration 5 of 8 after 28 s; the last evaluation is that of iteration 4." in words
    assert "inside the error bars" in words


def test_no_evaluation_claims_nothing_about_other_prompts(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    for path in (folder / "heldout").glob("*.json"):
        path.unlink()
    jsonl(folder / "metrics.jsonl", [train_row(i) for i in range(1, 9)])
    words = page_of(folder).words()
    assert "0.510 in the first iteration and 0.580 in the last; this says nothing about other prompts" in words


def test_one_evaluation_compares_nothing(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    for i in (4, 8):
        (folder / "heldout" / f"{i:05d}.json").unlink()
    jsonl(folder / "metrics.jsonl", [held_row(0, LOW), train_row(1)])
    words = page_of(folder).words()
    assert "Held-out fit is 0.117 ± 0.048 in the only evaluation so far" in words and "Samples of the first" in words


def test_a_killed_run_and_damaged_files(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "kind": "tra')
    (folder / "alarms.jsonl").write_text('[1]\nno json\n{"iteration": 3, "name": "clip", "what": "stuck at 1"}\n')
    (folder / "run.json").write_text("{")
    (folder / "heldout" / "00009.json").write_text("half")
    (folder / "heldout" / "00010.json").write_text('{"iteration": 10, "prompts": [3], "scores": {"fit": "x"}}')
    page = page_of(folder)
    words = page.words()
    assert "metrics.jsonl: the last line was damaged and left out" in words
    assert "alarms.jsonl: 2 lines were damaged" in words and "run.json is not valid JSON" in words
    assert "00009.json is not valid JSON" in words
    assert "stuck at 1" in words and read_run(folder).last == 8
    assert [a for a in page.every("path") if a["class"] == "event alarm"]


def test_an_evaluation_that_a_resume_cut_off_does_not_count(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    (folder / "summary.json").unlink()
    jsonl(folder / "metrics.jsonl", [held_row(0, LOW), *[train_row(i) for i in range(1, 6)], held_row(4, LOW)])
    assert [e.iteration for e in read_run(folder).evaluations] == [0, 4]
    assert "inside the error bars" in page_of(folder).words()


def test_a_page_is_made_without_torch():
    code = "import sys, flowrl.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_language_run_shows_texts(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    for i, scores in ((0, LOW), (4, LOW), (8, HIGH)):
        evaluation(folder, i, scores, texts=[f"answer {k} at {i}" for k in range(6)])
    page = page_of(folder)
    assert not page.every("img")
    words = page.words()
    for k in range(6):
        assert f"answer {k} at 0 answer {k} at 8 fit" in words  # a row: before, after, scores
    assert "answer 3 at 4" in words  # the strip


def test_alarms_and_resumes_stand_in_table_and_charts(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    alarm = {"iteration": 6, "since": 2, "name": "no spread", "what": "all groups tied", "cause": "reward is constant"}
    jsonl(folder / "alarms.jsonl", [alarm | {"remedy": "raise sampler.noise", "action": "warned"}])
    starts = [{"time": "2026-01-01T10:00:00+00:00", "from_iteration": i, "changed": {}} for i in (0, 4)]
    starts[1]["changed"] = {"train.lr": "0.001"}
    versions = {
        "flowrl": "9.9",
        "versions": {"torch": "2.0"},
        "machine": {"gpus": ["A", "A"]},
        "command": "flowrl run my.yaml",
    }
    (folder / "run.json").write_text(json.dumps({**versions, "starts": starts}))
    page = page_of(folder)
    words = page.words()
    assert "6 since 2 no spread all groups tied warned reward is constant raise sampler.noise" in words
    assert "from iteration 4, 2026-01-01T10:00:00+00:00; changed: train.lr = 0.001" in words
    assert "Started 2026-01-01 10:00" in words and "1 alarm." in words
    assert "flowrl run · r my Held-out" in words and "torch 2.0" in words and "gpus 2 × A" in words
    events = [(a["class"], a["d"]) for a in page.every("path") if str(a["class"]).startswith("event")]
    assert ("event alarm", "M750.0 0V400") in events and ("event resume", "M500.0 0V400") in events


def test_a_thousand_iterations_stay_small(tmp_path):
    """24 noisy 512 x 512 pictures at each of 50 evaluations: the worst that pictures can be to a codec."""
    folder = make(tmp_path / "r", LOW, HIGH)
    rng = np.random.default_rng(0)
    jsonl(
        folder / "metrics.jsonl", [train_row(i, **{f"samples/{k}": i * 1.1 for k in "abcdef"}) for i in range(1, 1001)]
    )
    scores = {name: (values * 4)[:24] for name, values in LOW.items()}
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    pictures = [f"heldout/{k:03d}.png" for k in range(24)]
    for k, name in enumerate(pictures):
        Image.fromarray(np.roll(noise, 31 * k, axis=1)).save(folder / name, compress_level=0)
    for i in range(0, 1001, 20):
        prompts = [{"id": str(k), "text": f"prompt {k}", "kind": None} for k in range(24)]
        values = {"iteration": i, "prompts": prompts, "scores": scores, "pictures": pictures, "texts": []}
        (folder / "heldout" / f"{i:05d}.json").write_text(json.dumps(values))
    path = write(folder)
    assert path.stat().st_size < 10_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.every("img")) == 24 * 2 + 12 * 9
    assert max(int(str(a["width"])) for a in page.every("img")) >= 200  # large enough to see something
    assert max(len(str(a["d"])) for a in page.every("path")) < 10_000


def test_pictures_shrink_until_they_fit(tmp_path, monkeypatch):
    folder = make(tmp_path / "r", LOW, HIGH)
    noise = np.random.default_rng(0).integers(0, 256, (200, 100, 3), dtype=np.uint8)
    for path in (folder / "heldout").glob("*.png"):
        Image.fromarray(noise).save(path)
    sizes = {}
    for budget in (10_000_000, 150_000):
        monkeypatch.setattr("flowrl.report.evaluations.BUDGET", budget)
        images = page_of(folder).every("img")
        assert sum(len(str(a["src"])) for a in images) <= budget
        sizes[budget] = max((int(str(a["width"])), int(str(a["height"]))) for a in images)
    assert sizes[10_000_000] == (100, 200) and sizes[150_000] < (100, 200)


def test_every_metric_of_a_run_has_a_chart_and_a_meaning(tmp_path):
    folder = make(tmp_path / "r", LOW, HIGH)
    jsonl(folder / "metrics.jsonl", [train_row(i, unheard_of=i, **{"samples/hue": 0.1}) for i in (1, 2)])
    page = page_of(folder)
    labels = " ".join(str(a["aria-label"]) for a in page.every("svg"))
    for shown in ("unheard_of", "hue: train", "Mean ratio", "Gradient norm", "Learning rate", "score alike"):
        assert shown in labels
    hints = [a.get("title") for a in page.every("h3")]
    assert "statistics of the samples themselves, whatever the reward says" in hints


def test_time_is_divided_among_the_phases(tmp_path):
    words = page_of(make(tmp_path / "r", LOW, HIGH)).words()  # 8 x (2 + 0.5 + 1.5) + 3 x 4 of 50 s
    for part in (
        "rollout 32 % 16 s",
        "scoring 8 % 4.0 s",
        "training 24 % 12 s",
        "evaluation 24 % 12 s",
        "rest 12 % 6.0 s",
    ):
        assert part in words


@pytest.mark.parametrize("what", ["absent", "empty"])
def test_the_command_refuses_what_is_no_run_in_one_line(what, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "x"
    if what == "empty":
        folder.mkdir()
    with pytest.raises(UserError, match="no such folder" if what == "absent" else "no recipe.yaml"):
        write(folder)
    code, _, error = call(capsys, monkeypatch, "report", folder)
    assert code == 2 and error.count("\n") == 1 and str(folder) in error


def test_the_command_writes_where_it_is_told(tmp_path, capsys, monkeypatch):
    folder = make(tmp_path / "r", LOW, HIGH)
    for arguments, path in (
        ([], folder / "report.html"),
        (["--output", str(tmp_path / "o.html")], tmp_path / "o.html"),
    ):
        code, out, _ = call(capsys, monkeypatch, "report", folder, *arguments)
        assert code == 0 and path.is_file() and str(path) in out
    code, _, error = call(capsys, monkeypatch, "report", folder, "--output", tmp_path / "no" / "o.html")
    assert code == 2 and "cannot be written" in error


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
DEEP = "[" * 100_000


@pytest.mark.parametrize("recipe", [BOMB, DEEP, "a: " + DEEP], ids=["aliases", "brackets", "value"])
def test_a_recipe_made_to_hang_is_named_and_left_out(recipe, tmp_path):
    folder = make(tmp_path / "run", LOW, HIGH)
    (folder / "recipe.yaml").write_text(recipe)
    data = read_run(folder)
    assert data.recipe == {} and any("recipe.yaml" in note for note in data.notes)


def test_so_are_lines_and_objects_of_a_hundred_thousand_brackets(tmp_path):
    folder = make(tmp_path / "run", LOW, HIGH)
    (folder / "summary.json").write_text(DEEP)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(DEEP + "\n")
    data = read_run(folder)
    assert data.summary == {} and data.train and len(data.notes) == 2
