"""Every shipped recipe of a denoising model, as it is, on a tiny pipeline with a small budget.

A case may change: the model, with the sizes, prompts and chat template that it takes; how many prompts, samples, kept
rows and updates an iteration has, and how they are cut; how many steps, where the window is a share of them; precision,
device, evaluations and checkpoints; and whence the weights of its rewards come. Adapters, rewards, advantage, objective
and the rest of the sampler (step, noise, table, window, tree, tail) are the recipe's own, which a test compares.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import families
import published_rewards
from cli_support import quiet
from flowrl import names
from flowrl.build import build_policy
from flowrl.contracts import Rollout
from flowrl.kinds import kind_of
from flowrl.names import UserError
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.dry_run import describe
from flowrl.planning.sizes.rewards import weights_of
from flowrl.reading.inputs import planned_prompts, read_prompts
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs.start import run
from samplers.decisions import decisions

ITERATIONS = 3
BUDGET = [f"train.iterations={ITERATIONS}", "train.micro_batch=null", "train.rollout_batch=null"]
BUDGET += ["train.gradient_checkpointing=false", "dtype.model=float32", "device=cpu", "offload=false"]
BUDGET += ["eval.every=null", "eval.at_start=false", "eval.at_end=false", "checkpoint.every=null"]
SHAPES = ["pipeline.height=32", "pipeline.width=32", "pipeline.max_sequence_length=16"]
SHAPES += ["prompts={train: shapes/train, heldout: null}"]
OWN = "prompts={train: prompts/train.txt, heldout: null}"  # the published prompts do not ship
OWN_VIDEO, OWN_I2V = OWN.replace("train.txt", "video_train.txt"), OWN.replace("train.txt", "i2v_train.jsonl")
IMAGE = ["pipeline.height=16", "pipeline.width=16"]
VIDEO = [*IMAGE, "pipeline.num_frames=5", "pipeline.max_sequence_length=48"]
TEMPLATE = r'"<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"'


def samples(prompts: int, group: int) -> list[str]:
    return [f"train.prompts={prompts}", f"train.group={group}", "train.updates=1"]


@dataclass(frozen=True)
class Case:
    """family: of tests/families, or shapes-flux. per_latent: rows that the denoiser runs for one, 2 under guidance."""

    family: str
    changes: list[str] = field(default_factory=list)
    per_latent: int = 1


FEW = samples(2, 4)
CASES = {
    "tiny_flow_grpo": Case("shapes-flux", FEW),
    "tiny_clip": Case("shapes-flux", FEW),
    "tiny_aesthetic": Case("shapes-flux", FEW),
    "tiny_vlm": Case("shapes-flux", FEW),
    "tiny_multi": Case("shapes-flux", FEW),
    "flow_grpo_flux": Case("shapes-flux", FEW),
    "flow_cps_flux": Case("shapes-flux", FEW),
    "flux_24gb": Case("shapes-flux", [*FEW, "block_offload=false"]),  # which needs blocks that are recomputed
    "flux_32gb": Case("shapes-flux", FEW),
    "flux_80gb": Case("shapes-flux", FEW),
    "mixgrpo_flux": Case("shapes-flux", FEW),
    "mixgrpo_flash_flux": Case("shapes-flux", FEW),
    "dancegrpo_flux": Case("shapes-flux", FEW),
    "branchgrpo_flux": Case("shapes-flux", samples(1, 16)),
    "branchgrpo_mix_flux": Case("shapes-flux", samples(1, 16)),
    "tempflow_flux": Case("shapes-flux", samples(1, 8)),
    "g2rpo_flux": Case("shapes-flux", ["train.prompts=1", "train.group=2"]),  # an update a step, as published
    "flow_grpo_sd3": Case("sd3", [*IMAGE, *FEW], 2),
    "sd35_24gb": Case("sd3", [*IMAGE, *FEW], 2),
    "flow_grpo_fast_sd3": Case("sd3", [*IMAGE, *FEW]),
    "grpo_guard_sd3": Case("sd3", [*IMAGE, *FEW], 2),
    "tempflow_sd3": Case("sd3", [*IMAGE, *samples(1, 8)], 2),
    "flow_grpo_qwen_image": Case("qwen_image", [*IMAGE, "pipeline.max_sequence_length=48", *FEW], 2),
    "qwen_image_80gb": Case("qwen_image", [*IMAGE, "pipeline.max_sequence_length=48", *FEW], 2),
    "ddpo_sdxl": Case("sdxl", [*IMAGE, "pipeline.width=32", *FEW, "sampler.steps=6"], 2),  # of 16 x 16, sizes tie
    "flow_grpo_wan": Case("wan_unipc", [*VIDEO, OWN_VIDEO, *FEW, "sampler.steps=5"], 2),
    "wan13_24gb": Case("wan_unipc", [*VIDEO, OWN_VIDEO, *FEW, "sampler.steps=5"], 2),
    "wan14_8x80gb": Case("wan_unipc", [*VIDEO, OWN_VIDEO, *FEW, "parallel.ranks=null"], 2),
    "dancegrpo_wan": Case("wan_unipc", [*VIDEO, "pipeline.num_frames=1", *FEW, "sampler.steps=6"], 2),
    "flow_grpo_wan_i2v": Case("wan_i2v", [*VIDEO, OWN_I2V, *FEW, "train.micro_batch=4", "train.rollout_batch=4"], 2),
    "dancegrpo_hunyuanvideo": Case(
        "hunyuan_video",
        [*VIDEO, OWN_VIDEO, f"pipeline.prompt_template={{template: {TEMPLATE}, crop_start: 4}}", *FEW, "train.keep=2"],
    ),
}
# of the method of another case, from which they differ in what a case changes: batches, precision, where weights lie
OF_ANOTHER = {"flux_32gb", "flux_80gb", "sd35_24gb", "wan13_24gb", "qwen_image_80gb"}
ELSEWHERE = {"tiny_debate", "maporl"}  # test_role_runs.py
ELSEWHERE |= {"tiny_calculator"}  # test_talk_runs.py
ELSEWHERE |= {"smollm2_grpo"}  # test_gguf.py
ELSEWHERE |= {"tiny_lm_grpo", "grpo_qwen"}  # test_language_run.py
ELSEWHERE |= {"tiny_vlm_grpo", "tiny_tools", "tiny_tools_cost", "tiny_papo", "tiny_noisy"}  # test_look_runs.py
ELSEWHERE |= {"quickstart", "tiny_dpo", "flow_rwr_wan", "nft_sd3", "nft_flux", "awm_sd3"}  # test_noised_runs.py
ELSEWHERE |= {"flow_dpo_sd3", "flow_dpo_wan", "dgpo_sd3", "crd_sd3"}  # the same
ELSEWHERE |= {"tiny_draft", "tiny_refl", "tiny_srpo", "srpo_flux", "draft_sdxl", "refl_sd3"}  # test_pulled_runs.py
ELSEWHERE |= {"tiny_distill", "tiny_few_step", "tiny_guidance_distill", "opd_sd35"}  # test_distilled_runs.py
ELSEWHERE |= {"tiny_lm_distill"}  # the same
ELSEWHERE |= {"tiny_dpo_offline", "diffusion_dpo_sdxl", "rpo_sd15", "pair_grpo"}  # test_given_runs.py
ELSEWHERE |= {"pnapo_flux"}  # test_pnapo_runs.py
ELSEWHERE |= {"r1_vl", "video_r1", "ui_r1", "gui_r1", "infigui_r1", "medvlm_r1", "chestx_reasoner", "r1_aqa", "r1_omni"}
ELSEWHERE |= {"metaspatial", "embodied_r", "praxis_vlm", "qwen3_vl", "hunyuan_ocr", "skywork_r1v2", "internvl3_5"}
ELSEWHERE |= {
    "glm_45v",
    "papo_grpo",
    "papo_dapo",
    "noisy_rollout_geo3k",
    "vlm3b_24gb",
    "opa_dpo",
}  # test_seeing_recipes.py
ELSEWHERE |= {"deepeyes", "deepeyes_v2", "mini_o3", "vrag_rl"}  # test_tool_recipes.py


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What recipes may call each family: tiny random pipelines are a user's own folders."""
    root = tmp_path_factory.mktemp("models")
    found = {"shapes-flux": "shapes-flux"}
    for family in {case.family for case in CASES.values()} - set(found):
        families.get(family).build().save_pretrained(root / family)
        found[family] = str(root / family)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return published_rewards.checkpoints(tmp_path_factory.mktemp("rewards"))


def small(name: str, models: dict[str, str], made: dict[str, dict[str, Any]], folder: Path) -> Recipe:
    case = CASES[name]
    of_model = SHAPES if case.family == "shapes-flux" else [OWN]
    changes = [*BUDGET, *of_model, *published_rewards.overrides(load(name), made), *case.changes]
    return load(name, [f"model={models[case.family]}", f"output={folder}", *changes])


def same_rewards(recipe: Recipe, shipped: Recipe, made: dict[str, dict[str, Any]]) -> bool:
    """Whether they differ in what names their weights alone, or are file sizes in place of those that would tie."""
    if {spec.use for spec in shipped.rewards.values()} & published_rewards.TIED:
        return [spec.use for spec in recipe.rewards.values()] == ["jpeg_compressibility"]

    def rest(recipe: Recipe) -> dict[str, Any]:
        found = {}
        for name, spec in recipe.rewards.items():
            args = {key: value for key, value in spec.args.items() if key not in made.get(spec.use, {})}
            found[name] = spec.model_copy(update={"args": args})
        return found

    return rest(recipe) == rest(shipped)


class Watched:
    """A policy, its rollouts, and the rows that its denoiser runs in each of them and in the training behind it."""

    def __init__(self, recipe: Recipe):
        self.policy = build_policy(recipe)
        self.rollouts: list[Rollout] = []
        self.rows: list[list[int]] = []
        self.seen = 0
        for module in self.policy.modules.values():
            module.register_forward_pre_hook(self._see, with_kwargs=True)
        self._own, self.policy.rollout = self.policy.rollout, self._rollout  # pyright: ignore[reportAttributeAccessIssue]

    def _see(self, _: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.seen += len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def _rollout(self, prompts: Any, **how: Any) -> Rollout:
        self.policy.prepare(prompts[0], how["plan"])  # the probe is no part of an iteration
        self.close()
        self.seen = 0
        self.rollouts.append(self._own(prompts, **how))
        self.rows.append([self.seen])
        self.seen = 0
        return self.rollouts[-1]

    def close(self) -> None:
        """Ends the training behind the last rollout."""
        if self.rows and len(self.rows[-1]) == 1:
            self.rows[-1].append(self.seen)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watched]]:
    found: list[Watched] = []

    def build(recipe: Recipe) -> Any:
        found.append(Watched(recipe))
        return found[-1].policy

    monkeypatch.setattr("flowrl.runs.start.build_policy", build)
    yield found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in OF_ANOTHER else ()) for n in sorted(CASES)]
)
def test_a_recipe_runs_and_costs_what_it_says(
    name: str,
    models: dict[str, str],
    made: dict[str, dict[str, Any]],
    watched: list[Watched],
    tmp_path: Path,
) -> None:
    recipe, shipped, case = small(name, models, made, tmp_path / "run"), load(name), CASES[name]
    for part in ("lora", "full", "advantage", "objective"):
        assert getattr(recipe, part) == getattr(shipped, part)
    assert same_rewards(recipe, shipped, made)
    assert recipe.sampler.model_copy(update={"steps": shipped.sampler.steps}) == shipped.sampler
    assert recipe.sampler.steps == shipped.sampler.steps or recipe.sampler.window.kind in ("all", "fraction")

    run(recipe, quiet())
    train = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m["kind"] for m in train] == ["train"] * ITERATIONS
    for metrics in train:
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == metrics["empty_updates"] == 0
        kept = 1.0 if recipe.train.keep is None else recipe.train.keep / recipe.train.group
        assert metrics["active_rows"] == kept
        assert metrics["replay_gap_max"] <= (0 if kept == 1 else 1e-6)  # rounding may differ where fewer are replayed
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert ("kl" in train[0]) == (recipe.objective.kl > 0)
    if recipe.objective.kl > 0:
        assert train[0]["kl"] == 0 and train[1]["kl"] > 0

    (policy,) = watched
    policy.close()
    for i, (rollout, rows) in enumerate(zip(policy.rollouts, policy.rows, strict=True)):
        tree, costs = plan_for(recipe, i).tree(recipe.train.group), arithmetic(recipe, i)
        assert rollout.replay.tree == tree and rollout.rollout_logp.shape == (costs.rows, len(tree.trained))
        assert torch.isfinite(rollout.rollout_logp[rollout.mask]).all()
        trained = costs.train_forwards + costs.reference_forwards + costs.whole_row_forwards
        if recipe.train.keep is not None:  # fewer than the most that there may be: those of the rows that are kept
            kept = sum(min(recipe.train.keep, len(step.units)) for step in decisions(tree).values())
            assert (trained := recipe.train.prompts * kept) < costs.train_forwards
        assert [n / case.per_latent for n in rows] == [costs.rollout_forwards, trained], f"iteration {i}"


def test_every_shipped_recipe_is_run_somewhere() -> None:
    assert set(CASES) | ELSEWHERE == set(names.recipes())


@pytest.mark.parametrize("name", sorted(names.recipes()))
def test_the_prompts_of_a_recipe_are_there(name: str) -> None:
    """Of those that ship, as many as an iteration draws; the others are not here, and a run says how to get them."""
    recipe = load(name)
    train, heldout, lines = planned_prompts(recipe)
    assert train is None or len(train) >= recipe.train.prompts
    assert heldout != [] or recipe.prompts.heldout is None
    if lines:
        got_by = r"git clone https://github.com/|huggingface-cli download |flowrl pairs "
        with pytest.raises(UserError, match=rf"not here, and not shipped; get it by `({got_by})"):
            read_prompts(recipe)
    assert bool(lines) == (recipe.prompts.source is not None) == (train is None) == (name not in SHIPS)
    if train and heldout:
        assert {(p.text, p.media) for p in train}.isdisjoint((p.text, p.media) for p in heldout)


def test_the_prompts_that_headers_offer_are_there() -> None:
    for kind, more in OFFERED.items():
        recipe = load(kind, [f"prompts={{train: {more[0]}, heldout: {more[1]}}}", *more[2:]])
        train, heldout = read_prompts(recipe)
        assert len(train) >= recipe.train.prompts and {p.text for p in train}.isdisjoint(p.text for p in heldout)


SHIPS = {"tiny_flow_grpo", "tiny_clip", "tiny_aesthetic", "tiny_vlm", "tiny_multi", "tiny_lm_grpo", "quickstart"}
SHIPS |= {"tiny_calculator", "tiny_debate", "tiny_lm_distill", "smollm2_grpo"}
SHIPS |= {"tiny_draft", "tiny_refl", "tiny_srpo", "tiny_dpo"}
SHIPS |= {"tiny_distill", "tiny_few_step", "tiny_guidance_distill"}
SHIPS |= {"tiny_vlm_grpo", "tiny_tools", "tiny_tools_cost", "tiny_papo", "tiny_noisy"}
OFFERED = {
    "flow_grpo_flux": ("prompts/train.txt", "prompts/heldout.txt"),
    "dancegrpo_hunyuanvideo": ("prompts/video_train.txt", "prompts/video_heldout.txt"),
    "flow_grpo_wan_i2v": ("prompts/i2v_train.jsonl", "prompts/i2v_heldout.jsonl", "train.prompts=6"),
    "grpo_qwen": ("prompts/word_problems_train.jsonl", "prompts/word_problems_heldout.jsonl", "train.prompts=32"),
}


def test_no_published_recipe_trains_a_statistic() -> None:
    """What is trained has weights of its own, named and counted; an answer's rule is a language model's."""
    for name in set(names.recipes()) - SHIPS - {"opd_sd35", "tiny_dpo_offline"}:  # one trains none
        if kind_of(load(name)).texts:
            continue
        recipe = load(name, ["train.iterations=2"])
        trained = {key: spec for key, spec in recipe.rewards.items() if spec.weight}
        assert trained
        text = describe(recipe)
        for key, spec in trained.items():
            weights = weights_of(spec.use, spec.args)
            assert weights is not None and weights.size, f"{name}: {spec.use} has no weights"
            told = rf"{key} +{spec.use}, weight {spec.weight:g}: [\d.]+ [GM]iB, {re.escape(weights.source)}"
            assert re.search(told, text)
        header = names.recipes()[name].read_text().split("\nmodel:")[0]
        assert not re.search(r"come with later|until th|needs? weights|which needs none|not yet", header), name


PUBLISHED = {  # recipe -> reward: weight, by the authors' scripts and configurations
    "mixgrpo_flux": {"hpsv2": 1, "clip_score": 1, "image_reward": 1, "pick_score": 1},
    "mixgrpo_flash_flux": {"hpsv2": 1, "clip_score": 1, "image_reward": 1, "pick_score": 1},
    "g2rpo_flux": {"hpsv2": 1, "clip_score": 1},
    "dancegrpo_hunyuanvideo": {"video_reward": 1},
    "tempflow_flux": {"hpsv3": 1},
    **{name: {"geneval": 1} for name in ("flow_grpo_fast_sd3", "nft_sd3", "awm_sd3")},
    "ddpo_sdxl": {"aesthetic": 1},
    "grpo_qwen": {"math_answer": 1},
    **{
        name: {"hpsv2": 1}
        for name in ("branchgrpo_flux", "branchgrpo_mix_flux", "dancegrpo_flux", "dancegrpo_wan", "srpo_flux")
    },
    **{name: {"ocr": 1} for name in ("flow_grpo_sd3", "grpo_guard_sd3", "flow_grpo_wan", "dgpo_sd3", "crd_sd3")},
    **{name: {"ocr": 1} for name in ("sd35_24gb", "wan13_24gb")},
    **{name: {"pick_score": 1} for name in ("flux_24gb", "flux_32gb", "flux_80gb", "qwen_image_80gb")},
    **{
        name: {"pick_score": 1}
        for name in (
            "flow_grpo_flux",
            "flow_cps_flux",
            "flow_grpo_qwen_image",
            "nft_flux",
            "tempflow_sd3",
            "flow_dpo_sd3",
        )
    },
    "flow_grpo_wan_i2v": {"pick_score": 1},
    "wan14_8x80gb": {"clip_score": 1, "pick_score": 0.5},
    "draft_sdxl": {"pick_score": 1},
    "refl_sd3": {"hpsv2": 1},
    "pnapo_flux": {"hpsv2": 1},
    "flow_dpo_wan": {"video_reward": 1},
    "flow_rwr_wan": {"video_reward": 0.3333},  # the mean of its three aspects
    "pair_grpo": {"vlm_judge": 1},
    "rpo_sd15": {"subject_harmonic": 1},
    "opd_sd35": {},
    "diffusion_dpo_sdxl": {"pick_score": 1},
    "tiny_dpo_offline": {"shapes": 1},
}


def test_rewards_and_sizes_are_the_published_ones() -> None:
    trained = {
        name: {spec.use: spec.weight for spec in load(name).rewards.values() if spec.weight}
        for name in set(names.recipes()) - SHIPS
        if name in PUBLISHED or not kind_of(load(name)).texts  # those of texts: test_seeing_recipes.py
    }
    assert trained == PUBLISHED
    lora = load("dancegrpo_flux")  # 8 GPUs of two prompts, 24 samples a GPU in two updates
    assert (lora.train.prompts, lora.train.updates, lora.train.iterations) == (16, 2, 301)
    assert "Published on 8 GPUs, two prompts a GPU" in names.recipes()["dancegrpo_flux"].read_text()
    assert "Published on 16 GPUs" in names.recipes()["grpo_guard_sd3"].read_text()
    branch = names.recipes()["branchgrpo_flux"].read_text()
    assert "prune_stop=8" in branch and "about 36 updates" in branch and "prune_stop=9" not in branch
    assert load("flow_grpo_wan_i2v").train.prompts == 48 and load("grpo_qwen").train.prompts == 1024
    for name in ("branchgrpo_flux", "dancegrpo_flux", "dancegrpo_hunyuanvideo", "dancegrpo_wan", "mixgrpo_flux"):
        assert "int(1000 s) / 1000" in names.recipes()[name].read_text()


# Row-forwards of one prompt in the first iteration, as the publications count them or their tables give them.
COSTS = {
    "branchgrpo_flux": (203, 187),  # 1 + 3 (2 + 4 + 8) + 10 x 16; all of them but those of the last step
    "branchgrpo_mix_flux": (1 + 2 + 4 + 8 + 16 * 16, 1 + 2 + 4 + 8),
    "tempflow_sd3": (4 * 279, 4 * 9),  # 9 + 6 (9 + ... + 1) for each of four trunks; 6 children share a state
    "tempflow_flux": (4 * 279, 4 * 9),
    "mixgrpo_flux": (1 + 12 * 24, 4 * (1 + 3 * 3)),  # training: four micro-batches of 3
    "mixgrpo_flash_flux": (1 + 12 * 10, 4 * (1 + 3 * 3)),  # 11 calls a sample, the first of which is shared
    # 8 states of the trunk; of each child the step behind its draw, and two tails, which begin in one state
    "g2rpo_flux": (8 + sum(12 * (1 + (14 - k) + (15 - k) // 2 - 1) for k in range(8)), 8),
}


@pytest.mark.parametrize("name", sorted(COSTS))
def test_costs_are_those_of_the_publications(name: str) -> None:
    recipe = load(name)
    costs, prompts = arithmetic(recipe), recipe.train.prompts
    assert (costs.rollout_forwards, costs.train_forwards) == tuple(n * prompts for n in COSTS[name])
