"""Runs beside changed pictures: bit for bit after a stop, by curves, with contrasts; refused before weights load."""

import json
from pathlib import Path

import pytest
import torch

import vision_support as vision
from cli_support import call
from flowrl.contracts import Prompt, Samples
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.keys.views import Contrast
from flowrl.recipe.load import build, dump, load, parse
from flowrl.scoring.gates import counted_rewards
from resume_support import train

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.micro_batch=3", "train.iterations=3"]
SMALL += [
    "train.schedule=constant",
    "eval.at_start=false",
    "eval.every=null",
    "eval.prompts=2",
    "checkpoint.every=1",
    "device=cpu",
    "lora.rank=2",
]
SMALL += ["generation.max_new_tokens=6", "rewards={size: {use: test_view_runs.counted, contrast: {right: 0.5}}}"]
SMALL += ["objective.perception={view: masked, coef: 0.5, entropy: 0.01}", "eval.at_end=false"]
VIEWS = (
    "{noisy: {kind: diffuse, step: {0: 800, 2: 100}, draws: 2, each: true}, masked: {kind: mask_patches, patch: 7}, "
)
VIEWS += "blank: {kind: drop, beside: 2}}"


def counted(samples: Samples) -> torch.Tensor:
    """A reward that never ties: letters, less the further they are from a."""
    return torch.tensor([sum(1 / (1 + abs(ord(c) - 97)) for c in text) + 0.01 * len(text) for text in samples.texts])


def asks(base_url: str, prompt: Prompt) -> float:
    """An agent."""
    return float(len(base_url + prompt.text))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("views")
    vision.folder(path / "model", "qwen2_5_vl")
    rows = []
    for i, text in enumerate(["What is this?", "Is <image> larger than <image>?", "How many?"]):
        names = [f"{i}{j}.png" for j in range([1, 2, 1][i])]
        for j, name in enumerate(names):
            vision.picture(path / name, size=(56 + 28 * i, 56), seed=i + j)
        rows.append(json.dumps({"prompt": text, "images": names}))
    (path / "prompts.jsonl").write_text("\n".join(rows))
    file = path / "prompts.jsonl"
    return path, [*SMALL, f"model={path / 'model'}", f"prompts.train={file}", f"prompts.heldout={file}"]


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drop = ("time", "seconds", "per_second", "memory")
    kept = [{k: v for k, v in row.items() if not any(word in k for word in drop)} for row in rows]
    return [row for row in kept if row["kind"] == "train"]


def test_a_run_beside_views_that_is_stopped_ends_alike(world: tuple[Path, list[str]]):
    path, given = world
    given = [*given, f"views={VIEWS}"]
    train("tiny_lm_grpo", given, path / "run")
    own = metrics(path / "run")
    assert [row["curve/views.noisy.step"] for row in own] == [800, 450, 100]
    assert all(row["replay_gap_max"] < 5e-5 and row["grad_norm"] > 0 and row["perception"] > 1e-3 for row in own)
    assert own[0]["views/noisy/gap"] > own[2]["views/noisy/gap"] > 0 and all("views/blank/size" in row for row in own)
    train("tiny_lm_grpo", [*given, "train.iterations=1"], path / "cut")
    train("tiny_lm_grpo", given, path / "cut", resume=True)
    name = "lora/adapter_model.safetensors"
    assert (path / "run" / name).read_bytes() == (path / "cut" / name).read_bytes() and own == metrics(path / "cut")
    written = parse(path / "run" / "recipe.yaml")
    again = build(written)
    assert again.views["noisy"].draws == 2 and again.curves["views.noisy.step"].at(1, 0) == 450
    assert dump(again.at(2)).count("step: 100") == 1


MASKED = "views={masked: {kind: mask_patches, patch: 7}}"
NOISY = "views={noisy: {kind: diffuse, draws: 2}, masked: {kind: mask_patches, patch: 7}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [MASKED, "generation.partial=3"],
        [MASKED, "generation.tree={kind: tree_grpo, trees: 2, expand: 1}", "advantage.credit=trees"],
        [MASKED, "train.budget={kind: equal_treatment, limit: 6}"],
        [NOISY, "rollout.batch_invariant=true"],
        [NOISY, "rollout.dtype=bfloat16"],
    ],
    ids=["partial", "tree", "budget", "alone", "copy"],
)
def test_views_go_with_other_ways_to_draw(overrides: list[str], world: tuple[Path, list[str]], tmp_path: Path):
    train("tiny_lm_grpo", [*_uncontrasted(world[1]), *overrides], tmp_path / "run")
    own = metrics(tmp_path / "run")
    assert len(own) == 3 and all(row["grad_norm"] > 0 and row["perception"] > 1e-3 for row in own)
    if overrides[0] == NOISY:
        assert all(row["views/noisy/gap"] > 1e-3 for row in own)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.perception=null", "views={m: {kind: drop}}"], "views.m: nothing is drawn or looked at under it"),
        (["views={masked: {kind: drop, patch: 7}}"], "views.masked.patch: got 7, but kind 'drop' reads only draws"),
        (["views={masked: {kind: drop, draws: 4}}"], "views.masked.draws: got 4, accepted: below train.group = 4"),
        (["views={other: {kind: drop}}"], "objective.perception.view: got 'masked', accepted: a name in views"),
        (["views={masked: {kind: drop, scored: drawn}}"], "views.masked.scored: got 'drawn', but nothing is drawn"),
        (
            ["views={masked: {kind: drop, draws: 1}, n: {kind: drop, draws: 1}}"],
            "views.n.draws: given beside that of views.masked",
        ),
        (["views={masked: {kind: drop}, b: {kind: drop, beside: 1}}"], "no reward is compared with the samples"),
        (["views={masked: {kind: drop, share: 2.0}}"], "views.masked.share: got 2.0, accepted: a number from 0 to 1"),
        (["views={masked: {kind: blur}}"], "views.masked.kind: got 'blur'"),
        (["views={9: {kind: drop}}"], "views"),
        (
            ["views={masked: {kind: drop, draws: 1}}", "environment={agent: test_view_runs.asks}"],
            "views.masked: given beside environment.agent, but an agent writes its own prompts",
        ),
        (
            ["views={masked: {kind: drop, draws: 1}}", "train.budget={kind: equal_treatment, limit: 8}"],
            "views.masked: given beside train.budget, but the further samples",
        ),
        (
            ["views={masked: {kind: drop}}", "train.store={size: 8, draw: 2}"],
            "views.masked: given beside train.store, but stored samples are kept without the changed pictures",
        ),
        (
            ["views={masked: {kind: drop, draws: 1}}", "generation.tree={kind: treepo}"],
            "views.masked: given beside generation.tree, but rows of a tree share their first tokens",
        ),
    ],
)
def test_views_that_cannot_be_are_refused(overrides: list[str], message: str, world: tuple[Path, list[str]]):
    plain = [one for one in world[1] if not one.startswith("rewards=")]
    plain += ["rewards={size: {use: test_view_runs.counted}}"]
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        load("tiny_lm_grpo", [*plain, *overrides])


def test_prompts_that_show_nothing_and_models_that_read_none_are_refused_before_loading(
    world: tuple[Path, list[str]], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    path, given = world
    plain = [one for one in given if not one.startswith(("rewards=", "objective.perception"))]
    plain += ["rewards={size: {use: test_view_runs.counted, contrast: {}}}"]
    (path / "mixed.jsonl").write_text((path / "prompts.jsonl").read_text() + '\n{"prompt": "12+345"}')
    (path / "model" / "model.safetensors").rename(path / "away")  # whatever is said is said before
    try:
        for overrides, said in (
            (["views={v: {kind: shuffle_frames, beside: 2}}"], "views.v: no training prompt shows a video that"),
            (
                ["views={v: {kind: drop, beside: 2}}", f"prompts.train={path / 'mixed.jsonl'}"],
                "views.v: training prompt 4 of 4 does not show a picture or a video; set views.v.required=false",
            ),
            (["views={v: {kind: drop, beside: 2}}", "model=arithmetic-qwen2"], "'arithmetic-qwen2' reads text alone"),
        ):
            code, _, err = call(capsys, monkeypatch, "run", "tiny_lm_grpo", *plain, *overrides)
            assert code == 2 and said in err, err
        passed = ["views={v: {kind: drop, beside: 2, required: false}}", f"prompts.train={path / 'mixed.jsonl'}"]
        code, out, err = call(capsys, monkeypatch, "run", "tiny_lm_grpo", *plain, *passed, "--dry-run")
        assert code == 0 and "view v (drop): 2 further samples of a prompt, scored and not trained" in out, err
    finally:
        (path / "away").rename(path / "model" / "model.safetensors")


def test_the_plan_counts_samples_beside_and_looks_once_more(world: tuple[Path, list[str]]):
    from flowrl.planning.costs import arithmetic

    plain = [one for one in world[1] if not one.startswith("objective.perception")]
    before, after = (
        arithmetic(load("tiny_lm_grpo", more)) for more in (_uncontrasted(plain), [*world[1], f"views={VIEWS}"])
    )
    longest, prompts, group = 6, 2, 4
    assert after.rollout_forwards - before.rollout_forwards == prompts * (2 + 2) * longest
    assert after.corrected_forwards - before.corrected_forwards == prompts * group * longest


def _uncontrasted(given: list[str]) -> list[str]:
    return [one.replace(", contrast: {right: 0.5}", "") for one in given]


def test_a_group_earns_its_bonus_from_what_was_drawn_beside_it():
    group = torch.tensor([4, 4, 4, 1, 1, 1, 7, 7])
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, float("nan")])
    beside = torch.tensor([0.8, 0.8, 0.8, 0.5, 0.5, 0.5, float("nan"), float("nan")])
    samples = Samples([Prompt("p", "")] * 8, group, texts=[""] * 8, contrast={"right": beside})
    specs = {"right": RewardSpec(use="exact_match", contrast=Contrast()), "form": RewardSpec(use="answer_format")}
    given = {"right": scores, "form": torch.ones(8)}
    counted_of = counted_rewards(specs, given, samples.prompts, group, samples)
    expected = torch.tensor([1.3, 0.0, 1.3, 1.0, 0.0, 0.0, 1.0, float("nan")])  # 2/3 >= 0.64, 1/3 < 0.4, nothing beside
    torch.testing.assert_close(counted_of.rewards["right"], expected, equal_nan=True)
    assert torch.equal(counted_of.rewards["form"], torch.ones(8)) and torch.equal(
        samples[[6, 0]].contrast["right"][1:], beside[:1]
    )
    whole = counted_rewards(specs, given, samples.prompts, group)  # as an evaluation counts
    torch.testing.assert_close(whole.rewards["right"], scores, equal_nan=True)
