"""The page of papers: made from its table, and what it names is there."""

import re
from pathlib import Path

import pytest

import golden
from flowrl import names
from flowrl.recipe import papers
from flowrl.recipe.presets import PRESETS, texts

ROOT = Path(__file__).parents[3]
ROWS = [row for rows in papers.families().values() for row in rows]
TESTS = "".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path.name != "test_papers.py"
)


def test_the_page_is_what_its_table_gives():
    made = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert made == papers.page(), "make it anew: python -m flowrl.recipe.papers docs/papers.md"


def test_every_preset_has_a_row_whose_papers_are_those_of_its_text():
    assert {name for row in ROWS for name in row.presets} == set(PRESETS)
    told = texts()
    for row in ROWS:
        for preset in row.presets if len(row.papers) == 1 else ():
            sources = [told[preset], *(names.recipes()[name].read_text() for name in papers.recipes_of(row))]
            assert any(row.papers[0] in text for text in sources), row.method


def test_every_published_recipe_is_in_a_row():
    listed = {name for row in ROWS for name in papers.recipes_of(row)}
    assert listed >= set(names.recipes()) - set(papers.results())
    flow = next(row for row in ROWS if row.method == "Flow-DPO")
    assert papers.recipes_of(flow) == [
        "flow_dpo_sd3",
        "flow_dpo_wan",
        "tiny_dpo",
        "tiny_dpo_offline",
    ]  # not Diffusion-DPO's
    assert set(papers.results()) >= {"tiny_draft", "tiny_lm_grpo"} and "nft_sd3" not in papers.results()


def test_what_is_not_here_is_said_and_has_nothing_here():
    missing = [row for row in ROWS if row.missing]
    assert missing and not any(row.presets or row.keys or row.how or row.golden for row in missing)
    table, _, rest = papers.page().partition("## Without a recipe, and not here")
    for row in missing:
        assert f"- {row.method}" in rest and f"| {row.method} |" not in table
    without = next(row for row in ROWS if row.method == "Dr. GRPO")
    assert "; Dr. GRPO;" in rest and not papers.recipes_of(without)
    assert papers.recipes_of(next(row for row in ROWS if row.method == "MPO")) == ["internvl3_5", "skywork_r1v2"]


def test_a_row_is_refused_with_a_field_that_it_does_not_have():
    with pytest.raises(TypeError, match="arxiv"):
        papers.Paper(method="x", papers=[], arxiv="1")


def test_tests_know_the_kinds_that_the_page_names():
    told = {kind for row in ROWS for kind in row.golden}
    assert len(told) > 60 and not [kind for kind in sorted(told) if kind not in TESTS]
    if golden.ROOT.is_dir() and not golden.OTHER:
        text = "".join(path.read_text(encoding="utf-8") for path in golden.ROOT.rglob("*.json"))
        known = set(re.findall(r'"(?:scheme|method)": *"([^"]+)"', text))
        assert not told - known
