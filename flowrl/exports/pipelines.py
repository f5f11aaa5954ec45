"""The export formats of a trained diffusers pipeline, and how an export is used without flowrl.

Kinds: "lora" is what `pipe.load_lora_weights` reads, "merged" a whole pipeline folder for `from_pretrained`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from flowrl import names
from flowrl.contracts import Prompt
from flowrl.planning.costs import eval_plan
from flowrl.policies import adapters
from flowrl.policies.devices import device_of
from flowrl.policies.loading import load_pipeline
from flowrl.policies.noise import Key, start_generators
from flowrl.policies.pipelines.calls.arguments import call_arguments
from flowrl.policies.pipelines.calls.layouts import media_of
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.first_order import first_order_scheduler, single_step_scheduler
from flowrl.recipe.schema import Recipe
from flowrl.untyped import Network, Pipeline


def write(policy: PipelinePolicy, folder: Path, kind: str) -> None:
    """Writes the policy's weights as they are. "merged" fuses the adapters: the policy cannot be trained afterwards."""
    if kind == "lora":
        adapters.save(policy.source, policy.modules, folder)
        return
    adapters.fuse(policy.modules)
    policy.source.save_pretrained(folder)


@torch.no_grad()
def draw(policy: PipelinePolicy, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Tensor]:
    """The policy's ODE sample of each prompt, float32 [3, H, W] or [T, 3, H, W] in [0, 1] or [C, T], on the CPU."""
    samples_drawn = []
    for prompt in prompts:  # one per call, as in `redraw`: a row's padding may depend on the others in its call
        samples = policy.rollout([prompt], group_size=1, plan=eval_plan(recipe), seed=recipe.seed).samples
        samples_drawn.append(_first_medium({"images": samples.images, "video": samples.video, "audio": samples.audio}))
    return samples_drawn


@torch.no_grad()
def redraw(recipe: Recipe, folder: Path, kind: str, prompts: Sequence[Prompt]) -> list[Tensor]:
    """The samples of a fresh, plain pipeline with the exported weights from the same noise; see `draw`.

    A multistep or second-order scheduler is reduced to first order, as in the policy.
    """
    pipe, device = load(recipe, folder, kind), device_of(recipe.device)
    pipe.scheduler = single_step_scheduler(first_order_scheduler(pipe.scheduler), eval_plan(recipe).num_steps)
    pipe.enable_model_cpu_offload(device=device) if recipe.offload and device.type != "cpu" else pipe.to(device)
    accepted = inspect.signature(type(pipe).__call__).parameters
    own = {"num_inference_steps": eval_plan(recipe).num_steps, "output_type": "pt"}
    redrawn = []
    for prompt in prompts:
        arguments = call_arguments(recipe.pipeline, [prompt], accepted) | own
        arguments["generator"] = start_generators([Key(recipe.seed, prompt.id, 0)])
        output = pipe(**{name: value for name, value in arguments.items() if name in accepted})
        redrawn.append(_first_medium(media_of(output, pipe, 1)))
    return redrawn


def _first_medium(media: Mapping[str, Tensor | None]) -> Tensor:
    """The picture or video, else the sound, of a single sample, float32 on the CPU; media: kind -> [1, ...]."""
    return next(m for key in ("images", "video", "audio") if (m := media.get(key)) is not None)[0].float().cpu()


def load(recipe: Recipe, folder: Path, kind: str) -> Pipeline:
    """The pipeline that `usage` loads, in the recipe's model dtype."""
    dtype = getattr(torch, recipe.dtype.model)
    pipe = (
        load_pipeline(recipe.model, dtype, None, recipe.quantize)
        if kind == "lora"
        else load_pipeline(str(folder), dtype)
    )
    for place, name, options in _weight_files(folder) if kind == "lora" else ():
        modules: dict[str, Network] = modules_of(pipe)
        reads = pipe.load_lora_weights if name is None else modules[name].load_lora_adapter
        reads(str(place), **options)
    return pipe


def usage(recipe: Recipe, folder: Path, kind: str) -> str:
    """Python code that loads the export, with FOLDER for its path."""
    head = ["import torch", "from diffusers import DiffusionPipeline", ""]
    place = repr(recipe.model)
    if kind == "merged":
        place = '"FOLDER"'
    elif recipe.model in names.MODELS:
        head[2:2] = ["from flowrl.names import MODELS"]
        place = f"MODELS[{recipe.model!r}]"
    lines = [f"pipe = DiffusionPipeline.from_pretrained({place}, dtype=torch.{recipe.dtype.model})"]
    if recipe.quantize is not None:
        lines.insert(
            0, f"# trained over weights in {recipe.quantize.weights}: quantised alike, the base gives the same"
        )
    for part, name, options in _weight_files(folder) if kind == "lora" else ():
        loader = "pipe.load_lora_weights" if name is None else f"pipe.{name}.load_lora_adapter"
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        lines.append(f'{loader}("{(Path("FOLDER") / part.relative_to(folder)).as_posix()}"{given})')
    values = {"num_inference_steps": eval_plan(recipe).num_steps} | recipe.pipeline
    call = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return "\n".join([*head, *lines, f'picture = pipe("a prompt", {call})[0][0]'])


def _weight_files(folder: Path) -> Iterator[tuple[Path, str | None, dict[str, object]]]:
    """(folder, denoiser that loads it or None for the pipeline, loader options) of what `adapters.save` wrote."""
    if any(folder.glob("*.safetensors")):
        yield folder, None, {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, "pt") as weights:
            by_pipeline = all(key.startswith(f"{adapters.DENOISERS[0]}.") for key in weights.keys())
        if by_pipeline:  # the pipeline's own writer has no place for its second denoiser (Wan 2.2)
            yield file.parent, None, {f"load_into_{file.parent.name}": True}
        else:
            yield file.parent, file.parent.name, {"prefix": None, "weight_name": file.name}
