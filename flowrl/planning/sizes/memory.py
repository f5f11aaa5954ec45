"""How much memory a recipe needs on its device, phase by phase, from configs alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from flowrl.contracts import Prompt
from flowrl.known.places import config_place
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes.pictures import picture_sizes
from flowrl.planning.sizes.prompt_tokens import ASSUMED
from flowrl.planning.sizes.quantised import QuantisedBytes, all_of, copies_in_training
from flowrl.planning.sizes.query import MeasuredSizes, SizeQuery
from flowrl.planning.sizes.scoring import with_rewards
from flowrl.planning.sizes.shared import of_a_rank
from flowrl.policies.devices import device_type
from flowrl.policies.pipelines.calls.autoencoders import NAMES as AUTOENCODERS
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.keys.reference import ReferenceKeys
from flowrl.recipe.schema import Recipe, Train
from flowrl.untyped import JSON
from samplers.decisions import stored_states
from samplers.visits import Injected, Visited

DRAWING = ("rollout", "decoding")  # the phases in which merged weights stand beside the frozen ones


@dataclass(frozen=True)
class Phase:
    """What is on the device in one phase, in bytes. activations None: not estimated. rewards: their models. moved: what
    comes to the device for the phase, or comes back after it."""

    name: str
    weights: int
    optimizer: int
    trajectory: int
    activations: int | None
    rewards: int = 0
    moved: int = 0

    @property
    def total(self) -> int:
        """The sum of all that is known."""
        return self.weights + self.optimizer + self.trajectory + (self.activations or 0) + self.rewards


@dataclass(frozen=True)
class Sizes:
    """Parameters by component, those that learn, and the phases. pipeline: its class. latent: the shape of a row's
    latent, None if the shapes of this pipeline are not known (unknown: why), so that activations and trajectory are not
    either."""

    parameters: dict[str, int]
    trainable: int
    adapters: int  # bytes of the LoRA weights, part of the weights in every phase
    phases: list[Phase]
    latent: tuple[int, ...] | None
    pipeline: str
    drawing: str = "what one block works on"  # what is counted of a rollout
    unknown: str | None = None
    left_out: str = "the allocator's slack"


def sizes(recipe: Recipe, prompts: Sequence[Prompt]) -> Sizes | None:
    """The sizes of a recipe; None if no config of its model is available. Raises PolicyError for a LoRA that does not
    fit it.

    Weights, adapters, optimizer and trajectory are exact. Activations of training are what autograd keeps in one step's
    forward of a micro-batch; those of a rollout are what one block keeps, an upper bound of what it needs at once.
    """
    configs = configs_of(recipe.model)
    if configs is None:
        return None
    query = size_query(recipe, prompts)
    measured = _look_up(query, configs)
    latent = None if measured.latent is None else (measured.latent,)
    activations = _activations(query, measured, recipe)
    if recipe.sampler.look and activations is not None:  # what is trained is not called as the rollout is
        other = replace(query, pipeline=recipe.pipeline | recipe.sampler.look)
        looked = _activations(other, _look_up(other, configs), recipe)
        activations = (activations if looked is None else looked)[0], activations[1]
    phases = _phases(recipe, query, measured, latent, activations)
    if reference := reference_bytes(recipe):
        phases = [replace(phase, weights=phase.weights + reference) for phase in phases]
    if merges(recipe, device_type(recipe.device)):
        beside = look_up("merged", [asdict(query), configs], lambda: _merged(query))
        phases = [replace(p, weights=p.weights + beside) if p.name in DRAWING else p for p in phases]
    phases = of_a_rank(recipe, phases, sum(measured.frozen[name] for name in measured.trained) + measured.added)
    told = {"unknown": measured.unknown}
    return Sizes(measured.parameters, measured.learning, measured.added, phases, latent, measured.pipeline, **told)


def size_query(recipe: Recipe, prompts: Sequence[Prompt]) -> SizeQuery:
    """What the sizes of the recipe's model depend on."""
    return SizeQuery(
        model=recipe.model,
        lora=None
        if recipe.lora is None
        else recipe.lora.options | {"modules": recipe.lora.modules} | _computed(recipe),
        dtype=recipe.dtype.model,
        pipeline=recipe.pipeline,
        text=max((p.text for p in prompts), key=len, default=" ".join(["a"] * ASSUMED)),
        pictures=picture_sizes(prompts),
    )


def _look_up(query: SizeQuery, configs: JSON) -> MeasuredSizes:
    return MeasuredSizes(**look_up("sizes", [asdict(query), configs], lambda: _measure(query)))


def _computed(recipe: Recipe) -> dict[str, JSON]:
    """What a query says of adapters that compute as the model does; nothing of others."""
    return {"as_model": True} if adapters_as_model(recipe, device_type(recipe.device)) else {}


def _merged(query: SizeQuery) -> int:
    from flowrl.planning.sizes.measure import measure_merged

    return measure_merged(query)


def reference_bytes(recipe: Recipe) -> int | None:
    """What the weights of another model, or other adapters, as the reference take in each phase.

    0 where there are none; None where they are not known. What is offloaded of a model is left out.
    """
    sizes_of = [_reference_bytes(recipe, one) for one in recipe.references]
    known = [size for size in sizes_of if size is not None]
    return sum(known) if len(known) == len(sizes_of) else None


def _reference_bytes(recipe: Recipe, reference: ReferenceKeys) -> int | None:
    path = reference.path
    if path is None:
        return 0
    if reference.use == "lora":
        return sum(file.stat().st_size for file in Path(path).expanduser().glob("**/*.safetensors")) or None
    configs = configs_of(path)
    if configs is None:
        return None
    call = recipe.pipeline if reference.pipeline is None else reference.pipeline
    query = SizeQuery(path, None, recipe.dtype.model, call, "", {})
    measured = _look_up(query, configs)
    stays = measured.trained if recipe.offload else list(measured.frozen)
    return sum(measured.frozen[name] for name in stays)


def _measure(query: SizeQuery) -> dict[str, JSON]:
    from flowrl.planning.sizes.measure import measure

    return asdict(measure(query))


def configs_of(model: str) -> JSON:
    """What the sizes of a model depend on: the texts of its configs, or the known ones of a hub id; None for others."""
    folder = config_place(model)
    if not (folder / "model_index.json").is_file():
        return None
    files = [folder / "model_index.json", *sorted(folder.glob("*/config.json"))]
    files += sorted(folder.glob("tokenizer/tokenizer_config.json"))
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


def _activations(query: SizeQuery, measured: MeasuredSizes, recipe: Recipe) -> tuple[int, int] | None:
    """(bytes of training, of a rollout's forward) of one row, of the denoiser that takes most."""
    if not measured.kept:
        return None
    train, block = recipe.train, max(block for _, _, block in measured.kept)
    if train.offload_activations:
        return block, block
    if not train.gradient_checkpointing:
        return max(whole for whole, _, _ in measured.kept), block
    return max(_recomputing(query, measured, train.recompute_every)), block


def _recomputing(query: SizeQuery, measured: MeasuredSizes, every: int) -> list[int]:
    """Bytes of a row, of each denoiser, where each so many-th block computes again."""
    if every == 1:
        return [again for _, again, _ in measured.kept]

    def found() -> list[int]:
        from flowrl.planning.sizes.measure import measure_recomputing

        return measure_recomputing(query, every)

    return look_up("recomputing", [asdict(query), every, configs_of(query.model)], found)


def _fixed(measured: MeasuredSizes, train: Train) -> int:
    """Bytes that a backward pass holds of all rows together: rounded weights, of blocks that are not computed again."""
    kept = (train.recompute_every - 1) / train.recompute_every if train.gradient_checkpointing else 1.0
    return 0 if train.offload_activations else round(measured.fixed * kept)


def _micro(recipe: Recipe) -> int:
    return recipe.train.micro_rows or recipe.train.drawn * recipe.train.group // recipe.train.updates


def _phases(
    recipe: Recipe,
    query: SizeQuery,
    measured: MeasuredSizes,
    latent: tuple[int, ...] | None,
    activations: tuple[int, int] | None,
) -> list[Phase]:
    """AdamW keeps two moments of what learns; a gradient and each copy (average, reference, older) add one."""
    train, added, state = recipe.train, measured.added, measured.state
    frozen = measured.frozen
    if recipe.vae.dtype is not None:
        width = getattr(torch, recipe.vae.dtype).itemsize
        frozen = frozen | {name: measured.parameters[name] * width for name in AUTOENCODERS if name in frozen}
    averaged = train.ema is not None and not train.ema_in_host
    resting = state * (2 + averaged + recipe.keeps_reference + (train.old is not None))
    tape, reference = (0, 0) if latent is None else trajectory(recipe, latent)
    at_work = sum(frozen[name] for name in measured.trained) + added
    everything = sum(frozen.values()) + added
    if recipe.block_offload:
        spared = _spared(recipe, measured.trained)
        at_work, everything = at_work - spared, everything - spared
    few = QuantisedBytes() if recipe.quantize is None else _quantised(recipe, query)
    at_work, everything = at_work - few.spared, everything - few.spared
    chunk = arithmetic(recipe).rows_at_once
    rollout = training = None
    if activations is not None and latent is not None:
        distance = math.prod(latent) * 4  # of the draw from its mean
        training = _micro(recipe) * (activations[0] + distance) + _fixed(measured, train)
        rollout = chunk * activations[1]
    encoding = _encoding_bytes(recipe, query)
    if encoding is not None and rollout is not None and not recipe.offload:  # all prompts of a call at once
        rollout = max(rollout, encoding[0] * -(-chunk // recipe.train.group))
    weights = at_work if recipe.offload else everything
    phases = [
        Phase("rollout", weights, resting, tape, rollout),
        Phase("training", weights + copies_in_training(few, train), resting + state, tape + reference, training),
    ]
    if recipe.offload:
        texts = sum(size for name, size in frozen.items() if "text" in name or "image_encoder" in name)
        stays = recipe.full or recipe.quantize is not None
        learning = at_work if stays else added  # frozen weights make room for the encoders, quantised ones do not
        moved = texts + at_work - learning
        held = None if encoding is None else encoding[0]
        first = replace(phases[0], name="encoding", weights=learning + texts, trajectory=0, activations=held)
        phases = [replace(first, moved=moved), *phases]
    away = sum(size for name, size in frozen.items() if "text" in name or "image_encoder" in name)
    decoding = replace(phases[-2], name="decoding", weights=everything - away if recipe.offload else everything)
    one = _decoding_bytes(recipe, query)
    at_once = 1 if recipe.vae.slicing else min(chunk, recipe.vae.batch or chunk)
    phases.insert(-1, replace(decoding, activations=None if one is None else one * at_once))
    return with_rewards(recipe, phases, query.text)


def _spared(recipe: Recipe, trained: list[str]) -> int:
    """Bytes of the blocks that are away while one of them is on the device."""
    query = SizeQuery(recipe.model, None, recipe.dtype.model, {}, "", {})

    def measured() -> JSON:
        from flowrl.planning.sizes.measure import measure_blocks

        return measure_blocks(query, trained)

    blocks = look_up("blocks", [recipe.model, query.dtype, trained, configs_of(recipe.model)], measured)
    return sum(whole - largest for whole, largest in blocks)


def _quantised(recipe: Recipe, query: SizeQuery) -> QuantisedBytes:
    """What quantize changes of the denoisers' bytes."""
    keys = recipe.quantize
    assert keys is not None

    def measured() -> JSON:
        from flowrl.planning.sizes.measure import measure_quantised

        return measure_quantised(query, keys)

    place = [asdict(query), keys.model_dump(), configs_of(recipe.model)]
    return all_of(QuantisedBytes(*one) for one in look_up("quantised", place, measured))


def _encoding_bytes(recipe: Recipe, query: SizeQuery) -> list[int] | None:
    """Bytes that encoding one prompt takes beside weights, in a list; None where that is not known."""
    query = replace(query, lora=None)

    def measured() -> JSON:
        from flowrl.planning.sizes.measure import measure_encoding

        return measure_encoding(query)

    return look_up("encoding", [asdict(query), configs_of(recipe.model)], measured)


def _decoding_bytes(recipe: Recipe, query: SizeQuery) -> int | None:
    """Bytes that decoding one sample takes beside weights; None where that is not known."""
    query, dtype, tiling = replace(query, lora=None), recipe.vae.dtype or recipe.dtype.model, recipe.vae.tiling

    def measured() -> int | None:
        from flowrl.planning.sizes.measure import measure_decoding

        return measure_decoding(query, dtype, tiling=tiling)

    return look_up("decoding", [asdict(query), dtype, tiling, configs_of(recipe.model)], measured)


def trajectory(recipe: Recipe, latent: tuple[int, ...]) -> tuple[int, int]:
    """(bytes that an iteration stores, bytes of the reference's means if a divergence is used).

    States are stored, and means if the objective compares with them; see `samplers.decisions.stored_states`. Of samples
    that are noised again it is their final states, and those of the walk that are visited.
    """
    train, tree = recipe.train, plan_for(recipe, 0).tree(recipe.train.group)
    widest = max(part.rows for part in tree.passes())
    in_one_piece = train.rollout_batch is None or train.rollout_batch >= widest
    states, means = (train.drawn * number for number in stored_states(tree, in_one_piece=in_one_piece))
    each = math.prod(latent)
    width = torch.finfo(getattr(torch, recipe.dtype.trajectory)).bits // 8
    exact = torch.finfo(getattr(torch, recipe.dtype.logp)).bits // 8
    again = 1 + sum(isinstance(column, Visited) for column in tree.levels) if tree.levels else 0
    injects = any(isinstance(column, Injected) for column in tree.levels)
    again += tree.keep_noise or injects  # with the noise that the walk began from
    states += train.drawn * len(tree.leaves) * again
    held = states * each * width + (means * each * exact if recipe.objective.centred else 0)
    return held, means * each * exact if any(stage.objective.kl > 0 for stage in recipe.stages()) else 0
