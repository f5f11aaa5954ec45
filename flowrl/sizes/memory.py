"""How much memory a recipe takes on its device, phase by phase, from configs alone."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from transformers import AutoTokenizer

from flowrl import names
from flowrl.contracts import Prompt
from flowrl.planning import arithmetic, plan_for
from flowrl.policies import adapters
from flowrl.recipe.checks import pipeline_class
from flowrl.recipe.schema import Recipe
from flowrl.sizes.activations import Kept, kept
from flowrl.sizes.components import Component, bytes_of, components, number_of
from flowrl.sizes.inputs import BUILDERS, Setting, Step
from flowrl.sizes.known import PIPELINES
from flowrl.sizes.rewards import on_device
from samplers.decisions import stored_states

WORDS = 1.5  # tokens a word of a prompt, where no tokenizer is at hand
ASSUMED = 77  # tokens of a prompt where none is here to be counted


@dataclass(frozen=True)
class Phase:
    """What is on the device in one phase, in bytes. activations None: not worked out. rewards: their models."""

    name: str
    weights: int
    optimizer: int
    trajectory: int
    activations: int | None
    rewards: int = 0

    @property
    def total(self) -> int:
        """All that is known of it."""
        return self.weights + self.optimizer + self.trajectory + (self.activations or 0) + self.rewards


@dataclass(frozen=True)
class Sizes:
    """Parameters by component, those that learn, and the phases. pipeline: its class. latent: a row's state, None where
    the shapes of this pipeline are not known, so that activations and trajectory are not either."""

    parameters: dict[str, int]
    trainable: int
    adapters: int  # bytes of the LoRA weights, part of the weights in every phase
    phases: list[Phase]
    latent: tuple[int, ...] | None
    pipeline: str


def sizes(recipe: Recipe, prompts: Sequence[Prompt]) -> Sizes | None:
    """The sizes of a recipe; None where no config of its model is at hand. Raises PolicyError for a LoRA that fits not.

    Weights, adapters, optimizer and trajectory are exact. Activations of training are what autograd keeps in one step's
    forward of a micro-batch; those of a rollout what one block keeps, which bounds what it works with at once.
    """
    known = components(recipe.model)
    if known is None:
        return None
    dtype = getattr(torch, recipe.dtype.model)
    modules = {name: part.built(dtype) for name, part in known.items()}
    parameters = {name: number_of(module) for name, module in modules.items()}
    wanted = recipe.lora.modules if recipe.lora is not None else None
    trained = {n: modules[n] for n in (adapters.DENOISERS if wanted is None else wanted) if n in modules}
    frozen = {name: bytes_of(module) for name, module in modules.items()}
    with torch.device("meta"):
        if recipe.lora is not None:
            lora = recipe.lora
            adapters.add_lora(trained, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init)
        else:
            adapters.train_full(trained)
    learning = list(adapters.trainable(trained))
    added = sum(bytes_of(m) - frozen[n] for n, m in trained.items())
    state = sum(p.numel() * p.element_size() for p in learning)
    pipeline = pipeline_class(recipe.model) or PIPELINES[recipe.model]
    steps = _steps(recipe, known, trained, prompts, dtype, BUILDERS[pipeline]) if pipeline in BUILDERS else {}
    latent = next(iter(steps.values())).latent if steps else None
    phases = _phases(recipe, frozen, list(trained), added, state, latent, _kept(trained, steps, recipe))
    return Sizes(parameters, sum(p.numel() for p in learning), added, phases, latent, pipeline)


def _kept(trained: dict[str, Any], steps: dict[str, Step], recipe: Recipe) -> tuple[int, int] | None:
    """(bytes of training, of a rollout's forward) of one call's rows, of the denoiser that takes most."""
    if not steps:
        return None
    found: list[Kept] = [kept(trained[name], step.calls) for name, step in steps.items()]
    whole = max(k.recomputing if recipe.train.gradient_checkpointing else k.whole for k in found)
    return whole, max(k.block for k in found)


def _steps(
    recipe: Recipe,
    known: dict[str, Component],
    trained: dict[str, Any],
    prompts: Sequence[Prompt],
    dtype: torch.dtype,
    builder: Callable[[Setting, dict[str, Any]], Step],
) -> dict[str, Step]:
    configs = {name: _with_defaults(part) for name, part in known.items()}
    negative = recipe.pipeline.get("negative_prompt") or ""
    count = _counter(recipe.model)
    longest = sorted((p.text for p in prompts), key=len)[-32:]
    tokens = max(map(count, longest), default=ASSUMED), count(negative if isinstance(negative, str) else negative[0])
    setting = Setting(_micro(recipe), recipe.pipeline, configs, tokens, dtype, _padded(recipe.model))
    return {name: builder(setting, configs[name]) for name in trained}


def _with_defaults(part: Component) -> dict[str, Any]:
    """A config with the values that its class gives to what it leaves out."""
    parameters = inspect.signature(part.kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | part.config


def _padded(model: str) -> int:
    """The length that the model's first tokenizer pads to: CLIP's 77 where its folder is not there."""
    config = names.MODELS.get(model, Path(model).expanduser()) / "tokenizer" / "tokenizer_config.json"
    return json.loads(config.read_text(encoding="utf-8"))["model_max_length"] if config.is_file() else 77


def _counter(model: str) -> Callable[[str], int]:
    """Counts the tokens of a text: by the model's own tokenizer where its folder is there, otherwise by its words.

    Qwen-Image's texts stand in a template whose first tokens are dropped again.
    """
    folder = names.MODELS.get(model, Path(model).expanduser()) / "tokenizer"
    if not folder.is_dir():
        return lambda text: max(1, round(WORDS * len(text.split())))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    bare = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
    if pipeline_class(model) == "QwenImagePipeline":
        pipe = QwenImagePipeline(**bare, tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]
        template, dropped = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
        return lambda text: max(1, len(tokenizer.tokenize(template.format(text))) - dropped)
    return lambda text: max(1, len(tokenizer.tokenize(text)))


def _micro(recipe: Recipe) -> int:
    return recipe.train.micro_batch or recipe.train.prompts * recipe.train.group // recipe.train.updates


def _phases(
    recipe: Recipe,
    frozen: dict[str, int],
    trained: list[str],
    added: int,
    state: int,
    latent: tuple[int, ...] | None,
    activations: tuple[int, int] | None,
) -> list[Phase]:
    """state: bytes of what learns. AdamW keeps two moments of it, a gradient is one, an average one."""
    train = recipe.train
    resting = state * (2 + (train.ema is not None))
    tape, reference = (0, 0) if latent is None else trajectory(recipe, latent)
    at_work = sum(frozen[name] for name in trained) + added
    everything = sum(frozen.values()) + added
    chunk = arithmetic(recipe).rows_at_once
    rollout = training = None
    if activations is not None and latent is not None:
        training = activations[0] + _micro(recipe) * math.prod(latent) * 4  # the draw's distance from its mean
        rollout = activations[1] * chunk // _micro(recipe)
    weights = at_work if recipe.offload else everything
    phases = [
        Phase("rollout", weights, resting, tape, rollout),
        Phase("training", weights, resting + state, tape + reference, training),
    ]
    if recipe.offload:
        texts = sum(size for name, size in frozen.items() if "text" in name or "image_encoder" in name)
        rest = everything - at_work - texts
        phases = [
            replace(phases[0], name="encoding", weights=at_work + texts, trajectory=0, activations=None),
            phases[0],
            replace(phases[0], name="decoding", weights=at_work + rest, activations=None),
            phases[1],
        ]
    return _with_rewards(recipe, phases)


def _with_rewards(recipe: Recipe, phases: list[Phase]) -> list[Phase]:
    """The phases with the models of rewards that stay on the device, and that of scoring, where there are any."""
    stay, at_work = on_device(recipe.rewards, recipe.device)
    if not at_work:
        return phases
    rollout, training = next(p for p in phases if p.name == "rollout"), phases[-1]
    scoring = replace(rollout, name="scoring", activations=None, rewards=at_work)
    return [*(replace(p, rewards=stay) for p in phases[:-1]), scoring, replace(training, rewards=stay)]


def trajectory(recipe: Recipe, latent: tuple[int, ...]) -> tuple[int, int]:
    """(bytes that an iteration stores, of the reference's means where a divergence is paid).

    Stored are states, and means where the objective compares with them.

    See `samplers.decisions.stored_states`.
    """
    train, tree = recipe.train, plan_for(recipe, 0).tree(recipe.train.group)
    widest = max(part.rows for part in tree.passes())
    in_one_piece = train.rollout_batch is None or train.rollout_batch >= train.prompts * widest
    states, means = (train.prompts * number for number in stored_states(tree, in_one_piece=in_one_piece))
    each = math.prod(latent)
    width = torch.finfo(getattr(torch, recipe.dtype.trajectory)).bits // 8
    exact = torch.finfo(getattr(torch, recipe.dtype.logp)).bits // 8
    held = states * each * width + (means * each * exact if recipe.objective.centred else 0)
    return held, means * each * exact if recipe.objective.kl > 0 else 0
