"""What README, CONTRIBUTING and docs say and a program can check: commands, recipes, code, links, numbers, tables."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

import families
from cli_support import call
from flowrl import names
from flowrl.cli import app
from flowrl.parts import KINDS
from flowrl.planning.sizes.rewards import weight_arguments, weights_of
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load, load_unchecked
from flowrl.recipe.schema import Recipe
from flowrl.serve import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
README, REWARDS, RECIPES = TEXT["README.md"], TEXT["rewards.md"], TEXT["recipes.md"]
OF_WORLDS = {
    "shapes",
    "shapes_strict",
    "shapes_residual",
}  # read the meta of a world's captions, which an ordinary file lacks
OVERRIDE = re.compile(r"[a-z_]+(\.\w+)+=.+")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `flowrl ...` line of a bash block: its page and its words, without `flowrl`."""
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["flowrl"]:
                    yield page, words[1:]


COMMANDS = list({" ".join(words): (page, words) for page, words in commands()}.values())
FRAGMENTS = [(page, text) for page in PAGES for text in blocks(page, "yaml")]
MODULES = {
    found[1]: text
    for page in PAGES
    for text in blocks(page, "python")
    if (found := re.match(r"# (my_\w+)\.py\n", text)) is not None
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder that is the current one: the modules, the recipe and the prompts that the pages name."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    (tmp_path / "my_recipe.yaml").write_text(blocks("README.md", "yaml")[0])
    (tmp_path / "prompts").mkdir()
    for file in ("prompts/train.txt", "prompts/test.txt", "prompts/heldout.txt"):
        (tmp_path / file).write_text("".join(f"a red circle number {i}\n" for i in range(40)))
    for file in ("train.jsonl", "test.jsonl"):
        (tmp_path / file).write_text("".join(f'{{"prompt": "{i}+1", "answer": "{i + 1}"}}\n' for i in range(40)))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_commands_are_understood(page: str, words: list[str]):
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: flowrl has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


SHIPPED_MODELS = ("quickstart", "tiny_flow_grpo", "tiny_lm_grpo")
RECIPE_COMMANDS = [(p, w) for p, w in COMMANDS if w[0] in ("run", "check", "scan", "compare") and "/" not in w[1][:5]]


@pytest.mark.parametrize(("page", "words"), RECIPE_COMMANDS, ids=[" ".join(w)[:60] for _, w in RECIPE_COMMANDS])
def test_recipes_of_commands_are_dry_run(
    page: str, words: list[str], here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    given = [word for word in words[2:] if OVERRIDE.fullmatch(word) and not word.startswith("resume=")]
    if words[0] != "run":
        load(
            words[1], [] if words[0] == "scan" else [word for word in given if words[words.index(word) - 1][:2] != "--"]
        )
        return
    if words[1] not in SHIPPED_MODELS:  # counting the activations of a large model takes long and has tests of its own
        monkeypatch.setattr("flowrl.planning.sizes.text.describe_sizes", lambda recipe, prompts: "")
    code, out, error = call(capsys, monkeypatch, "run", words[1], *given, "--dry-run")
    assert code == 0 and "row-forwards" in out or "tokens" in out, error


@pytest.mark.parametrize(("page", "text"), FRAGMENTS, ids=[f"{page}-{text[:30]!r}" for page, text in FRAGMENTS])
def test_pieces_of_recipes_are_recipes(page: str, text: str, here: Path):
    values = yaml.safe_load(text)
    file = here / "piece.yaml"
    if "serve" in values:
        file.write_text(text)
        assert config.load(str(file)).rewards
        return
    base = "tiny_lm_grpo" if page in ("language.md", "environments.md", "tools.md", "engines.md") else "tiny_flow_grpo"
    base = {} if "model" in values else yaml.safe_load((ROOT / "recipes" / f"{base}.yaml").read_text())
    file.write_text(yaml.safe_dump(base | values))
    recipe = load_unchecked(file)
    for name in recipe.rewards.values():
        names.find(name.use, names.rewards())
    try:
        load(str(file))
    except RecipeError as error:  # what this machine lacks is no fault of the page
        assert re.search(r"(which|it) is not installed", str(error)), error


def test_values_in_the_text_are_recipe_values():
    told = {code for text in TEXT.values() for code in re.findall(r"`([^`\n]+)`", text) if OVERRIDE.fullmatch(code)}
    assert len(told) > 5
    for override in told:
        for recipe in ("quickstart", "tiny_flow_grpo", "tiny_lm_grpo"):
            try:
                load_unchecked(names.recipes()[recipe], [override])
                break
            except RecipeError as error:
                problem = error
        else:
            raise AssertionError(f"{override}: {problem}")


def test_keys_in_the_text_are_keys_of_a_recipe():
    """`train.micro_batch`: every dotted name that begins with a section of a recipe."""
    sections = {name: part.annotation for name, part in Recipe.model_fields.items()}
    codes = {code for text in TEXT.values() for code in re.findall(r"`([a-z_]+\.[a-z_]+)`", text)}
    told = {code for code in codes if hasattr(sections.get(code.split(".")[0]), "model_fields")}
    assert len(told) > 20
    unknown = {code for code in told if code.split(".")[1] not in sections[code.split(".")[0]].model_fields}
    assert not unknown


def test_python_blocks_are_python_and_the_step_is_that_of_dancegrpo(here: Path):
    import torch

    from samplers.transitions import dance_sde

    for page in PAGES:
        for text in blocks(page, "python"):
            ast.parse(text)
    import my_parts

    x, v = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, shipped = my_parts.my_step(x, v, 0.8, 0.6, noise=0.4), dance_sde(x, v, 0.8, 0.6, noise=0.4)
    torch.testing.assert_close(ours.mean, shipped.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.std, torch.as_tensor(shipped.std, dtype=ours.std.dtype), rtol=1e-6, atol=0)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = PAGES[page].parent / file if file else PAGES[page]
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_page_is_reached_from_the_readme():
    assert {name for name in PAGES if name not in README} <= {"README.md"}
    assert len(README.splitlines()) <= 150


def test_rewards_asked_about_a_users_file_need_no_more_than_its_prompts():
    asked = [words[words.index("--reward") + 1] for _, words in COMMANDS if words[0] == "eval" and "--reward" in words]
    assert asked and set(asked) <= set(names.rewards()) - OF_WORLDS


def test_recipes_are_all_listed_and_those_that_learn_are_told():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", RECIPES.split("\n## Recipes that ship\n")[1], re.MULTILINE)
    assert {name for name, _ in rows} == set(names.recipes())
    learn = {name for name, path in names.recipes().items() if re.search(r"^# Result ", path.read_text(), re.MULTILINE)}
    assert {name for name, where in rows if where.startswith("yes")} == learn


@pytest.mark.parametrize("page", ["README.md", "samplers.md"])
def test_pipelines_are_counted_as_configurations(page: str):
    told = re.search(r"for (\d+) configurations of (\d+) pipeline classes", " ".join(TEXT[page].split()))
    kinds = {type(families.pipeline(name)).__name__ for name in families.NAMES}
    assert told is not None and len(families.NAMES) - 5 <= int(told[1]) <= len(families.NAMES)
    assert len(kinds) - 5 <= int(told[2]) <= len(kinds)


def test_the_table_of_parts_tells_how_each_is_taken():
    rows = dict(re.findall(r"^\| (\w+) \| (?:`\((.*), \.\.\.\)`)? ?\| .*\|$", TEXT["trust.md"], re.MULTILINE))
    assert {name: rows.get(name) for name in KINDS} == {name: ", ".join(kind.leading) for name, kind in KINDS.items()}


def test_the_table_of_rewards_names_their_default_weights():
    for use in ("clip_score", "pick_score", "hpsv3", "image_reward", "video_reward", "dino_similarity", "vlm_judge"):
        row = next(line for line in REWARDS.splitlines() if line.startswith(f"| `{use}`"))
        assert weight_arguments(use)["model"].split(" ")[0] in row, use
    told = {name for line in REWARDS.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {use for use in names.rewards() if weights_of(use, {}) or weight_arguments(use)} <= told


def test_nothing_waits_for_what_has_arrived():
    files = [*names.recipes().values(), *PAGES.values()]
    waiting = re.compile(r"come with later|until (?:then|they are|those)|not yet|will come|for now\b|which needs none")
    assert [f.name for f in files if waiting.search(f.read_text(encoding="utf-8"))] == []


def test_the_picture_is_of_the_run_that_the_readme_tells():
    """188 and 240 of 320 are the accuracies of seed 0 in the recipe's header."""
    header = names.recipes()["quickstart"].read_text()
    before, after = re.search(r"accuracy ([\d.]+) -> ([\d.]+)", header).groups()
    told = [int(number) for number in re.search(r"(\d+) of all 320 before, (\d+) after", README).groups()]
    assert [abs(n / 320 - float(accuracy)) < 6e-4 for n, accuracy in zip(told, (before, after), strict=True)] == [
        True
    ] * 2
    assert (ROOT / "docs" / "quickstart.png").stat().st_size < 200_000
