"""What drawing, training and the fit of a critic hold beside weights, of a language model's recipe."""

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from flowrl.contracts import View
from flowrl.planning.costs import plan_for
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes import token_passes
from flowrl.planning.sizes.token_models import build_critic, build_frozen, build_model, config_of
from flowrl.planning.sizes.token_passes import UNKNOWN, Rows
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON, LanguageModel

# what of a recipe decides what its model is, and how it is computed with
MODEL_KEYS = {"model", "dtype", "quantize", "lora", "roles", "full", "freeze", "critic", "objective", "seed", "device"}
GIVEN = ("exact", "forward", "jsd")  # divergences over the vocabulary


@dataclass(frozen=True)
class Sizes:
    """Rows of a rollout at once and the prompts that they are of, rows of a micro-batch, whether an update has several;
    tokens of a prompt, those of its media among them, and of a completion."""

    drawn: int
    prompts: int
    micro: int
    several: bool
    length: int
    limit: int


@dataclass(frozen=True)
class Held:
    """Bytes at most, None where the model's forward needs values. Those of training are beside gradients."""

    drawing: int | None
    training: int | None
    valuing: int


def held(recipe: Recipe, config: PretrainedConfig, sizes: Sizes, *, cached: bool, uniform: bool) -> Held:
    """What the passes of a recipe hold. uniform: all layers of the model are alike, so that a few of them say what all
    hold; see `is_uniform`."""

    def find(what: str, measure: Callable[[PretrainedConfig], int], own: PretrainedConfig, *, alike: bool) -> Any:
        key = [what, _told(recipe), own.to_dict(), asdict(sizes), cached, alike]
        return look_up("held", key, lambda: _of_all_layers(recipe, own, measure, alike=alike))

    drawing: int | None = 0
    if recipe.rollout.engine is None:
        drawing = find("drawing", lambda c: _drawing(recipe, c, sizes, cached=cached), config, alike=uniform)
    made = recipe.full and not sizes.several  # gradients that are made as activations go: no sum of parts
    training = find("training", lambda c: _training(recipe, c, sizes), config, alike=uniform and not made)
    valuing = 0
    if recipe.critic is not None and (own := config_of(recipe.critic.path or recipe.model)) is not None:
        valuing = find("valuing", lambda c: _valuing(recipe, c, sizes), own, alike=uniform) or 0
    return Held(drawing, training, valuing)


def seen(recipe: Recipe, config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> token_passes.Seen:
    """What the media of one prompt take; nothing where there are none, or that is not known."""
    if not tensors:
        return token_passes.Seen(0, 0, 0, 0)
    told = [[name, list(t.shape), str(t.dtype), None if t.is_meta else t.tolist()] for name, t in tensors.items()]

    def find() -> JSON:
        try:
            return asdict(token_passes.seeing(_model(recipe, config), tensors))
        except UNKNOWN:
            return asdict(token_passes.Seen(sum(t.nbytes for t in tensors.values()), 0, 0, 0))

    return token_passes.Seen(**look_up("seen", [_told(recipe), config.to_dict(), told], find))


def is_uniform(model: LanguageModel, config: PretrainedConfig) -> bool:
    """Whether all layers of the decoder have as many parameters, as many that learn, and are of one kind."""
    number = config.get_text_config().num_hidden_layers
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == number]
    alike = {tuple({_shape(layer) for layer in one}) for one in lists}
    return len(lists) > 0 and all(len(one) == 1 for one in alike) and len(set(kinds)) < 2


def _shape(layer: nn.Module) -> tuple[int, int]:
    numbers = [(p.numel(), p.requires_grad) for p in layer.parameters()]
    return sum(n for n, _ in numbers), sum(n for n, learns in numbers if learns)


def _told(recipe: Recipe) -> JSON:
    """What of the recipe the sizes of passes depend on, but for the model's config."""
    train, plan = recipe.train, plan_for(recipe, 0)
    told = recipe.model_dump(mode="json", include=MODEL_KEYS - {"model"})
    told |= {"credit": recipe.advantage.credit.kind, "plan": asdict(plan), "alone": recipe.rollout.batch_invariant}
    references = [one.path for one in recipe.references if one.use == "model"]
    again = [train.gradient_checkpointing, train.recompute_every, train.offload_activations]
    return json.loads(json.dumps([told, references, again], default=str))


def _of_all_layers(
    recipe: Recipe, config: PretrainedConfig, measure: Callable[[PretrainedConfig], int], *, alike: bool
) -> int | None:
    """What a measure gives of the whole model: where layers are alike, of two models with a few of them, since each
    further period of them adds the same."""
    number = config.get_text_config().num_hidden_layers
    every = recipe.train.recompute_every if recipe.train.gradient_checkpointing else 1
    few = 2 + (number - 2) % every
    try:
        if not alike or number <= few + every:
            return measure(config)
        least, more = measure(_cut(config, few)), measure(_cut(config, few + every))
    except UNKNOWN:
        return None
    return least + (more - least) * (number - few) // every


def _cut(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    made = copy.deepcopy(config)
    text = made.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return made


def _model(recipe: Recipe, config: PretrainedConfig) -> LanguageModel:
    told = recipe.model_dump_json(include=MODEL_KEYS - {"objective", "critic"})
    return _model_once(_Asked(recipe, config, f"{told} {config.to_json_string(use_diff=False)} {_again(recipe)}"))


@dataclass(frozen=True)
class _Asked:
    """A recipe and a config, equal to others by a text."""

    recipe: Recipe
    config: PretrainedConfig
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@functools.lru_cache(maxsize=4)
def _model_once(asked: _Asked) -> LanguageModel:
    recipe = asked.recipe
    model, *_ = build_model(recipe, asked.config)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients({"model": model}, recipe.train.recompute_every)
    return model


def _again(recipe: Recipe) -> int:
    return recipe.train.recompute_every if recipe.train.gradient_checkpointing else 0


def _drawing(recipe: Recipe, config: PretrainedConfig, sizes: Sizes, *, cached: bool) -> int:
    kept = ["entropy"] if recipe.objective.entropy_share is not None else []
    kept += ["entropy"] if recipe.objective.weight == "inverse_entropy" else []
    kept += ["squares"] if recipe.advantage.credit.kind == "optimal_token" else []
    if recipe.rollout.dtype in ("bfloat16", "float16"):  # of a copy with its adapters in its weights
        other = recipe.dtype.model_copy(update={"model": recipe.rollout.dtype})
        recipe = recipe.model_copy(update={"dtype": other, "lora": None, "full": True, "quantize": None, "roles": None})
    model, alone = _model(recipe, config), recipe.rollout.batch_invariant
    rows = Rows(1 if alone else sizes.drawn, sizes.length, sizes.limit)
    prompts = 1 if alone else sizes.prompts
    return token_passes.drawing(model, rows, prompts, plan_for(recipe, 0), cached=cached, kept=kept)


def _training(recipe: Recipe, config: PretrainedConfig, sizes: Sizes) -> int:
    model, objective, teacher = _model(recipe, config), recipe.objective, None
    exact = objective.kl > 0 and objective.kl_kind in GIVEN
    path = next((one.path for one in recipe.references if one.use == "model"), None)
    if exact and path is not None and (own := config_of(path)) is not None:
        teacher = build_frozen(own, getattr(torch, recipe.dtype.model))
    view = View(
        exact_kl=exact,
        entropy=objective.entropy > 0 or objective.entropy_target is not None,
        kl_kind=objective.kl_kind if objective.kl_kind in GIVEN else "exact",
    )
    learning = [p for p in model.parameters() if p.requires_grad]
    made = recipe.full and not sizes.several
    for parameter in learning:
        parameter.grad = None if made else torch.empty_like(parameter)
    peak = token_passes.learning(
        model,
        Rows(sizes.micro, sizes.length, sizes.limit),
        view,
        getattr(torch, recipe.dtype.logp),
        teacher=teacher,
        alone=recipe.rollout.batch_invariant,
        in_host=recipe.train.offload_activations,
    )
    for parameter in learning:
        parameter.grad = None
    return max(0, peak - sum(p.nbytes for p in learning)) if made else peak


def _valuing(recipe: Recipe, config: PretrainedConfig, sizes: Sizes) -> int:
    model, _ = build_critic(recipe, config)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients({"critic": model}, recipe.train.recompute_every)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    rows = Rows(sizes.micro, sizes.length, sizes.limit)
    return token_passes.valuing(model, rows, in_host=recipe.train.offload_activations)
