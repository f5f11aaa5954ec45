"""What a comparison of planted runs writes: page, plots, CSV, Markdown, terminal."""

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from cli_support import call
from compare_support import planted
from flowrl.compare import markdown, page, tables
from flowrl.compare.collect import folder_outcomes
from flowrl.compare.overview import make_overview
from flowrl.compare.samples import make_sheet
from flowrl.names import UserError

COURSES = {2: (0.70, 0.72, 0.74), 3: (0.50, 0.53, 0.54)}  # window size -> held-out at the end, by seed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of three seeds, the second twice as fast, and a run that was stopped."""
    root = tmp_path_factory.mktemp("runs")
    for size, ends in COURSES.items():
        for seed, end in enumerate(ends):
            changes = [f"sampler.window.size={size}"]
            planted(root / f"{size}-{seed}", seed, {0: 0.4, 4: end}, changes=changes, each=4.0 / size, calls=10 * size)
    stopped = planted(root / "2-3", 3, {0: 0.4, 4: 0.9}, changes=["sampler.window.size=2"])
    (stopped / "summary.json").unlink()
    return root


def told(runs: Path):
    drift = {
        p: {"kl": 1e-4, "distance": 0.01 * i, "diversity_base": 0.3, "diversity": 0.2}
        for i, p in enumerate(runs.iterdir())
    }
    return make_overview("Sizes <compared>", folder_outcomes([runs]), drift, ["A note."])


@pytest.fixture
def out(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Path:
    code, printed, _ = call(
        capsys, monkeypatch, "compare", runs, "--no-drift", "--output", tmp_path, "--markdown", tmp_path / "doc.md"
    )
    assert code == 1  # one run is not compared
    (tmp_path / "printed").write_text(printed)
    return tmp_path


def test_the_terminal_says_who_is_ahead_and_who_is_left_out(out: Path):
    printed = (out / "printed").read_text()
    assert "shapes at 5.3 s of training: size=2 has the highest mean and is ahead of size=3." in printed  # 4 * 4 / 3
    assert "strict at 112 row-forwards: No pair of the 2 variants can be told apart with 3 seeds." in printed
    assert "not compared: size=2, seed 3: stopped after iteration 4" in printed


def test_the_page_stands_alone_and_escapes(runs: Path, tmp_path: Path):
    of = told(runs)
    text = page.render(of, make_sheet(of.outcomes), tmp_path)
    assert "Sizes &lt;compared&gt;" in text and "<compared>" not in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#|\.\.)|url\(|@import|https?://(?!www\.w3\.org)""", text)
    assert text.count("<figure") == 4 and text.count("ahead of") > 2 and "A note." in text
    assert text.count("data:image/png") == 2 * 3  # two prompts: before, and each variant
    assert "stopped after iteration 4" in text and '<path class="area"' in text


def test_the_csv_files_have_every_evaluation_and_every_variant(out: Path):
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "seed", "iteration", "seconds", "calls", "shapes", "strict"]
    assert len(rows) == 6 * 2 and {r["variant"] for r in rows} == {"size=2", "size=3"}
    last = [float(rows[1][name]) for name in ("iteration", "seconds", "calls", "shapes")]
    assert last == pytest.approx([4, 8, 112, 0.70])
    with (out / "summary.csv").open() as file:
        summary = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(summary["size=2"]["shapes@calls"]) == pytest.approx(0.72)
    assert float(summary["size=2"]["shapes@calls/error"]) == pytest.approx(0.02 / 3**0.5)
    assert float(summary["size=3"]["shapes@calls/at"]) == 112
    # two thirds of the way at the end of the faster one
    assert float(summary["size=2"]["shapes@seconds"]) == pytest.approx(0.4 + 0.32 * 2 / 3)
    assert (summary["size=2"]["calls_per_iteration"], summary["size=2"]["kl"]) == ("28.0", "")


def test_the_plots_are_pictures(out: Path):
    for name in ("compare.png", "samples.png", "doc-curves.png", "doc-samples.png"):
        with Image.open(out / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_what_is_written_by_hand_survives_a_renewal(out: Path, runs: Path):
    file = out / "doc.md"
    text = file.read_text()
    assert "| size=2 | 3 |" in text and "![" in text and "doc-curves.png" in text
    marks = re.findall("<!-- flowrl compare: (?!end)(.*) -->", text)
    assert marks == ["setting", "verdict", "rewards", "cost", "drift", "samples", "runs"]
    without = re.sub("<!-- flowrl compare: cost -->.*?<!-- flowrl compare: end -->", "", text, flags=re.DOTALL)
    file.write_text(without.replace("## Who is ahead\n", "## Who is ahead\n\nRead by me: \\1 little.\n"))
    of = told(runs)
    markdown.write(of, make_sheet(of.outcomes), file, "flowrl compare again")
    renewed = file.read_text()
    assert "Read by me: \\1 little." in renewed and "flowrl compare again" in renewed
    assert "flowrl compare: cost" not in renewed and renewed.count("flowrl compare: end") == len(marks) - 1
    assert "| KL from base |" in renewed and "Not measured." not in renewed


def test_a_file_of_somebody_else_is_not_written_over(runs: Path, tmp_path: Path):
    (tmp_path / "mine.md").write_text("# Mine\n")
    with pytest.raises(UserError, match="was not made by flowrl compare"):
        markdown.write(told(runs), None, tmp_path / "mine.md", "")
    assert (tmp_path / "mine.md").read_text() == "# Mine\n"


def test_tables_show_means_with_errors_over_seeds(runs: Path):
    heads, rows = tables.heldout_table(told(runs))
    assert heads == ["variant", "seeds", "shapes, 5.3 s", "shapes, 112 rows", "strict, 5.3 s", "strict, 112 rows"]
    assert rows[0][:2] == ["size=2", "3"] and rows[0][3] == "0.7200 ±\N{NO-BREAK SPACE}0.0115"
    _, costs = tables.cost_table(told(runs))
    assert [row[1:3] for row in costs] == [["4 ±\N{NO-BREAK SPACE}0", "2"], ["4 ±\N{NO-BREAK SPACE}0", "1.33"]]
    single = make_overview("one", folder_outcomes([runs / "2-0"]), {})
    assert tables.heldout_table(single)[1][0][3] == "0.700"  # one seed has no error


def test_a_comparison_without_a_finished_run_says_so(runs: Path, tmp_path: Path):
    of = make_overview("none", folder_outcomes([runs / "2-3"]), {})
    text = page.render(of, make_sheet(of.outcomes), tmp_path)
    assert "No run has finished yet." in text and "stopped after iteration 4" in text
