"""What README and docs/rewards.md say and a program can check."""

import re
import shlex
from pathlib import Path

import families
from flowrl import names
from flowrl.planning.sizes.rewards import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REWARDS = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
SPOKEN = {5: "five", 6: "six", 7: "seven", 8: "eight"}
OF_WORLDS = {
    "shapes",
    "shapes_strict",
    "shapes_residual",
}  # read the meta of a world's captions, which an ordinary file lacks


def test_rewards_asked_about_a_users_file_need_no_more_than_its_prompts():
    lines = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("flowrl eval ")]
    asked = [words[words.index("--reward") + 1] for words in lines if "--prompts" in words]
    assert asked and set(asked) <= set(names.rewards()) - OF_WORLDS


def test_recipes_are_all_listed_and_counted():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", README.split("\n## Recipes\n")[1].split("\n## ")[0], re.MULTILINE)
    assert {name for name, _ in rows} == set(names.recipes())
    learn = {name for name, path in names.recipes().items() if re.search(r"^# Result ", path.read_text(), re.MULTILINE)}
    assert {name for name, where in rows if where.startswith("yes")} == learn
    assert f"All but the {SPOKEN[len(learn)]} that learn here" in README


def test_pipelines_are_counted_as_configurations():
    told = re.search(r"for (\d+) configurations of (\d+) pipeline classes", " ".join(README.split()))
    kinds = {type(families.pipeline(name)).__name__ for name in families.NAMES}
    assert told is not None and len(families.NAMES) - 5 <= int(told[1]) <= len(families.NAMES)
    assert len(kinds) - 5 <= int(told[2]) <= len(kinds)


def test_the_table_of_rewards_names_their_default_weights():
    for use in ("clip_score", "pick_score", "hpsv3", "image_reward", "video_reward", "dino_similarity", "vlm_judge"):
        row = next(line for line in REWARDS.splitlines() if line.startswith(f"| `{use}`"))
        assert DEFAULTS[use]["model"].split(" ")[0] in row, use
    told = {name for line in REWARDS.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert set(DEFAULTS) <= told


def test_nothing_waits_for_what_has_arrived():
    files = [*names.recipes().values(), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    waiting = re.compile(r"come with later|until (?:then|they are|those)|not yet|will come|for now\b|which needs none")
    assert [f.name for f in files if waiting.search(f.read_text(encoding="utf-8"))] == []
