"""Sizes from configs alone: published parameter counts, and estimate against measurement on tiny pipelines."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import families
from flowrl.build import build_policy
from flowrl.checking.proofs.bench import Bench
from flowrl.contracts import Prompt, View
from flowrl.core.backward import fill_reference
from flowrl.known.models import PIPELINES
from flowrl.known.places import config_place
from flowrl.learners import build_learner
from flowrl.planning.sizes.activations import measure_activations
from flowrl.planning.sizes.components import components, num_parameters
from flowrl.planning.sizes.inputs import record
from flowrl.planning.sizes.memory import Sizes, sizes
from flowrl.planning.sizes.saved import SavedStorages, count_saved, storage_of
from flowrl.planning.sizes.text import describe_sizes
from flowrl.planning.sizes.units import count_text, size_text
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.load import load

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
SHORT = [
    "sampler.steps=4",
    "sampler.window={kind: all}",
    "train.prompts=2",
    "train.group=4",
    "sampler.share_noise=false",
]
SIZE = "height: 16, width: 16"

# hub id -> component -> published billions of parameters
PUBLISHED = {
    "black-forest-labs/FLUX.1-dev": {
        "transformer": 11.90,
        "text_encoder_2": 4.76,
        "text_encoder": 0.123,
        "vae": 0.0838,
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "transformer": 2.24,
        "text_encoder": 0.124,
        "text_encoder_2": 0.695,
        "text_encoder_3": 4.76,
        "vae": 0.0838,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": 2.567,
        "text_encoder": 0.123,
        "text_encoder_2": 0.695,
        "vae": 0.0837,
    },
    "Qwen/Qwen-Image": {"transformer": 20.43, "text_encoder": 8.29, "vae": 0.127},
    "Qwen/Qwen-Image-Edit": {"transformer": 20.43, "text_encoder": 8.29},
    "black-forest-labs/FLUX.1-Kontext-dev": {"transformer": 11.90},
    "black-forest-labs/FLUX.2-dev": {"transformer": 32.2, "text_encoder": 24.01},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3.88, "text_encoder": 4.02},
    "black-forest-labs/FLUX.2-klein-9B": {"transformer": 9.08, "text_encoder": 8.19},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 8.06},
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"unet": 0.860, "text_encoder": 0.123},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 6.15, "text_encoder": 4.02},
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": {"transformer": 16.40, "image_encoder": 0.631},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {"transformer": 14.29, "transformer_2": 14.29},
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": {"transformer": 14.29, "transformer_2": 14.29},
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {"transformer": 5.00, "vae": 0.705},
    "hunyuanvideo-community/HunyuanVideo": {"transformer": 12.82, "text_encoder": 7.51},
    "Lightricks/LTX-2": {"transformer": 18.88, "text_encoder": 12.19},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"transformer": 1.42, "text_encoder": 5.68, "vae": 0.127},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"transformer": 14.29, "text_encoder": 5.68, "vae": 0.127},
}
EARLY = ("black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3.5-medium", "Qwen/Qwen-Image")
EARLY += ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",)
# name -> (family or embedded model, overrides)
TINY = {
    "shapes": ("shapes-flux", []),
    "shapes, groups share": ("shapes-flux", ["sampler.share_noise=true"]),
    "shapes, full": ("shapes-flux", ["lora=null", "full=true"]),
    "flux": ("flux", [f"pipeline={{{SIZE}, max_sequence_length: 32}}"]),
    "sd3, guided": ("sd3", [f"pipeline={{{SIZE}, guidance_scale: 4.5}}"]),
    "sd3": ("sd3", [f"pipeline={{{SIZE}, guidance_scale: 1.0}}"]),
    "qwen": ("qwen_image", ["pipeline={height: 512, width: 512}"]),  # its table of positions is counted for each row
    "qwen, guided": (
        "qwen_image",
        ["pipeline={height: 512, width: 512, true_cfg_scale: 3.0, negative_prompt: a dull red circle without colour}"],
    ),
    "wan": ("wan_unipc", ["pipeline={height: 16, width: 16, num_frames: 5, guidance_scale: 1.0}"]),
    "wan, guided": ("wan_unipc", ["pipeline={height: 16, width: 16, num_frames: 5}"]),
    "wan, half": ("wan_unipc", ["pipeline={height: 16, width: 16, num_frames: 5}", "dtype.model=bfloat16"]),
    "sd3, half": ("sd3", [f"pipeline={{{SIZE}}}", "dtype.model=bfloat16"]),
    "z_image": ("z_image", [f"pipeline={{{SIZE}}}"]),
    "ltx2": ("ltx2", ["pipeline={height: 64, width: 64, num_frames: 9}"]),
}

LONG = ("ltx2", "qwen", "qwen, guided")


@pytest.mark.parametrize(
    "model", [name if name in EARLY else pytest.param(name, marks=pytest.mark.slow) for name in sorted(PUBLISHED)]
)
def test_known_models_have_the_published_numbers_of_parameters(model: str):
    found = components(model)
    assert found is not None and set(found) == set(PIPELINES[model].parts)
    for name, billions in PUBLISHED[model].items():
        number, digits = num_parameters(found[name].build(torch.bfloat16)) / 1e9, len(f"{billions:g}".replace(".", ""))
        assert number == pytest.approx(billions, rel=1e-3 if billions > 10 and digits > 3 else 4e-3), name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model names by family: folders, or an embedded world."""
    root = tmp_path_factory.mktemp("models")
    found = {"shapes-flux": "shapes-flux"}
    for family in {family for family, _ in TINY.values()} - set(found):
        families.get(family).build().save_pretrained(root / family)
        found[family] = str(root / family)
    return found


def tiny(name: str, folders: dict[str, str], *more: str):
    family, overrides = TINY[name]
    return load(BASE, [*SHORT, f"model={folders[family]}", *overrides, *more])


def estimate(recipe, prompts: list[Prompt] | None = None) -> Sizes:
    found = sizes(recipe, prompts or read_prompts(recipe)[0])
    assert found is not None
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in TINY])
def test_the_estimate_is_what_a_real_step_takes(name: str, folders: dict[str, str]):
    recipe = tiny(name, folders, "train.ema=0.9", "rewards={jpeg: {use: jpeg_compressibility}}")
    bench = Bench(recipe, rows=8)
    found = estimate(recipe, bench.drawn_prompts)
    rollout, _, training = found.phases
    policy = bench.policy
    modules = modules_of(policy.source)
    adapters = [p for m in policy.modules.values() for n, p in m.named_parameters() if "lora_" in n]
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    for denoiser, module in policy.modules.items():
        counts[denoiser] -= sum(p.numel() for n, p in module.named_parameters() if "lora_" in n)
    assert found.parameters == counts
    assert found.trainable == sum(p.numel() for p in policy.trainable())
    assert found.adapters == sum(p.numel() * p.element_size() for p in adapters)
    assert rollout.weights == sum(p.numel() * p.element_size() for m in modules.values() for p in m.parameters())

    measured = bench.replay.bytes_per_row * len(bench.rollout.rollout_logp)
    assert training.activations == pytest.approx(measured, rel=0.1)

    trajectory = bench.rollout.replay
    states = [x for part in (trajectory.enter, trajectory.drawn) for streams in part.values() for x in streams.values()]
    stored = {storage_of(x): x.untyped_storage().nbytes() for x in states}
    assert rollout.trajectory == sum(stored.values())

    learner = build_learner(recipe, policy)
    learner.step()
    moments = [s[k] for s in learner.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert learner.average is not None
    kept_tensors = [*moments, *learner.average]
    idle = [p for p in policy.trainable() if p not in learner.optimizer.state]  # Adam keeps nothing for these
    measured = sum(t.numel() * t.element_size() for t in kept_tensors) + sum(2 * p.numel() * 4 for p in idle)
    assert rollout.optimizer == measured and len(idle) <= 4
    assert training.optimizer - rollout.optimizer == sum(p.numel() * 4 for p in policy.trainable())


def test_an_older_copy_and_finished_states_are_counted():
    recipe = load("quickstart", ["train.prompts=2", "train.group=8", "train.updates=1", "lora.rank=3"])
    assert recipe.train.old is not None and recipe.train.ema is not None
    found, policy = estimate(recipe), build_policy(recipe)
    learner = build_learner(recipe, policy)
    copies = learner.copies
    each = sum(p.numel() * 4 for p in policy.trainable())
    assert copies is not None and learner.average is not None and "old" in copies
    rollout = found.phases[0]
    assert rollout.optimizer == 4 * each  # two moments, the average, the older copy
    assert found.latent is not None
    assert rollout.trajectory == recipe.train.prompts * recipe.train.group * math.prod(found.latent) * 4
    assert "the average, the older copy" in describe_sizes(recipe, read_prompts(recipe)[0])


def test_parts_of_a_rollout_are_stored_as_they_are_joined(folders: dict[str, str]):
    recipe = tiny(
        "shapes, groups share", folders, "train.rollout_batch=4", "sampler.window={kind: random_window, size: 2}"
    )
    bench = Bench(recipe, rows=8)
    trajectory = bench.rollout.replay
    states = [x for part in (trajectory.enter, trajectory.drawn) for streams in part.values() for x in streams.values()]
    stored = {storage_of(x): x.untyped_storage().nbytes() for x in states}
    assert estimate(recipe).phases[0].trajectory == sum(stored.values())


def test_the_reference_is_stored_where_a_divergence_is_paid(folders: dict[str, str]):
    recipe = tiny("shapes", folders, "objective.kl=0.1")
    bench = Bench(recipe, rows=8)
    fill_reference(bench.policy, bench.rollout, torch.arange(8), View(exact_kl=True))
    means = sum(x.numel() * x.element_size() for s in bench.rollout.replay.reference.values() for x in s.values())
    rollout, _, training = estimate(recipe).phases
    assert training.trajectory - rollout.trajectory == means > 0


def test_recomputing_keeps_block_inputs_and_one_block():
    """Measured in a real backward pass, as each block is computed again: what is outside blocks, what those that are
    not done with were given, what the one keeps."""
    parts = components("shapes-flux") or {}
    part, modules = parts["transformer"], {name: one.build(torch.float32) for name, one in parts.items()}
    module = part.kind.from_config(part.config)  # pyright: ignore[reportAttributeAccessIssue]
    call = {"height": 32, "width": 32, "max_sequence_length": 16}
    recorded = record(
        config_place("shapes-flux"), modules, ["transformer"], call, rows=3, text="a red circle", pictures={}
    )
    calls = recorded.calls["transformer"]
    given = {n: torch.randn(v.shape) if isinstance(v, torch.Tensor) else v for n, v in calls[0][1].items()}
    found = measure_activations(modules["transformer"].requires_grad_(True), calls)

    with count_saved([*module.parameters(), *module.buffers()]) as whole:
        output = module(**given)[0].sum()
    assert found.whole == whole.bytes and output.requires_grad

    inputs, moments, own = SavedStorages(), [], {}

    def watched(block: nn.Module, *args):
        for leaf in (x for a in args for x in (a if isinstance(a, tuple) else (a,)) if isinstance(x, torch.Tensor)):
            inputs.note(leaf)

        def run(*args):
            if block in own:  # in the backward pass: what is still held of the rest, and what the block keeps
                moments.append(sum((outside.storages | inputs.storages).values()) + own[block])
            else:
                with count_saved(block.parameters()) as first:
                    result = block(*args)
                    known = outside.storages | inputs.storages
                    own[block] = sum(size for where, size in first.storages.items() if where not in known)
                del result
            return block(*args)

        return checkpoint(run, *args, use_reentrant=False)

    module.enable_gradient_checkpointing(watched)
    module.train()
    with count_saved([*module.parameters(), *module.buffers()]) as outside:
        output = module(**given)[0].sum()
    output.backward()
    assert len(moments) == len(own) > 2
    assert found.recomputing == pytest.approx(max(moments), rel=0.02)
    assert found.recomputing < 0.7 * found.whole


def test_offloading_leaves_in_each_phase_what_it_uses():
    found = estimate(load(BASE, ["offload=true"]))
    encoding, rollout, decoding, training = found.phases
    assert [phase.name for phase in found.phases] == ["encoding", "rollout", "decoding", "training"]
    texts = found.parameters["text_encoder"] + found.parameters["text_encoder_2"]
    assert encoding.weights == 4 * texts + found.adapters, "frozen weights of the denoiser make room"
    assert decoding.weights - rollout.weights == 4 * found.parameters["vae"]
    assert rollout.weights == training.weights == 4 * found.parameters["transformer"] + found.adapters
    (everything, *_) = estimate(load(BASE)).phases
    assert everything.weights == 4 * sum(found.parameters.values()) + found.adapters


def test_more_rows_and_pixels_take_more_and_checkpointing_less():
    def training(*more: str) -> int:
        return estimate(load(BASE, ["train.micro_batch=1", *more])).phases[-1].activations or 0

    one = training()
    assert training("train.micro_batch=2") == pytest.approx(2 * one, rel=0.05)
    assert training("pipeline.height=64") > 1.4 * one
    assert training("train.gradient_checkpointing=true") < 0.6 * one


def test_storages_are_counted_once_and_parameters_never():
    weight = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(8, 4, requires_grad=True)
    with count_saved([weight]) as saved:
        y = x @ weight
        total = y.exp() + y.sin()
    assert saved.bytes == 3 * x.numel() * 4  # x, y (once), exp's result
    del total
    assert saved.bytes == 2 * x.numel() * 4  # exp's result went with the graph that held it; y is ours still
    again = SavedStorages()
    again.note(x[:2])
    again.note(x[2:])
    assert again.bytes == x.numel() * 4


def test_the_text_says_what_is_not_known(tmp_path: Path):
    recipe = load(BASE, ["model=nobody/nothing", "pipeline={}"])
    assert describe_sizes(recipe, []).startswith("memory      not estimated: there is no config of nobody/nothing")
    families.get("mochi").build().save_pretrained(tmp_path / "mochi")
    text = describe_sizes(load(BASE, [f"model={tmp_path / 'mochi'}", "pipeline={}"]), [])
    assert "not estimated for MochiPipeline: RuntimeError: User specified an unsupported autocast" in text
    assert " trained; " in text and "\nfits        not known" in text
    assert "activations" in describe_sizes(load(BASE), read_prompts(load(BASE))[0])


def test_numbers_as_a_person_says_them():
    assert [size_text(n) for n in (5 * 2**20, 2**30, 34.56 * 2**30)] == ["5.0 MiB", "1.0 GiB", "34.6 GiB"]
    assert [count_text(n) for n in (11.9e9, 2.24e9, 234e3, 12)] == ["11.9 B", "2.24 B", "234 K", "12"]


def test_every_known_pipeline_has_a_published_number():
    assert set(PUBLISHED) | {"black-forest-labs/FLUX.1-schnell", "Qwen/Qwen-Image-Edit-2509"} == set(PIPELINES)
