"""Whether the keys about memory and time go with the rest of a recipe."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.schema import Recipe

IN_PLACE = ("int8", "fp8")  # what weights can become that are there already


PACKAGE = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes", "gguf": "gguf"}


def check_fitting(recipe: Recipe) -> Iterator[RecipeError]:
    """What of these keys does not go together."""
    train = recipe.train
    if train.recompute_every > 1 and not train.gradient_checkpointing:
        problem = f"got {train.recompute_every}, but no activations are computed again"
        yield RecipeError("train.recompute_every", problem, "set train.gradient_checkpointing=true, or this to 1")
    if train.ema_in_host and train.ema is None:
        yield RecipeError("train.ema_in_host", "got true, but no average is kept", "set train.ema, or this to false")
    yield from _quantize(recipe)
    yield from _compile(recipe)
    if not recipe.block_offload:
        return
    if recipe.lora is None:
        problem = "got true with full: true, but weights that learn stay on the device"
        yield RecipeError("block_offload", problem, "train a lora, or set block_offload=false")
    if not train.gradient_checkpointing or train.recompute_every > 1:
        problem = "got true, but a block whose activations are not computed again is needed in the backward pass"
        yield RecipeError("block_offload", problem, "set train.gradient_checkpointing=true and train.recompute_every=1")


def _compile(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.compile is None:
        return
    beside = {
        "block_offload": recipe.block_offload,
        "quantize": recipe.quantize is not None,
        "train.offload_activations": recipe.train.offload_activations,
    }
    for place, there in beside.items():
        if there:
            problem = f"given beside {place}, with which it has not been tried"
            yield RecipeError("compile", problem, f"set compile=null, or leave {place} out")
    if recipe.parallel.kind == "fsdp" and not recipe.compile.regional:
        problem = "got False beside parallel.kind=fsdp, which gathers a model's weights between its blocks"
        yield RecipeError("compile.regional", problem, "set true, or parallel.kind=replicate")


def _quantize(recipe: Recipe) -> Iterator[RecipeError]:
    keys, remedy = recipe.quantize, "or remove quantize"
    if keys is None:
        return
    if recipe.lora is None:
        problem = "given with full: true, but weights in few bits do not learn"
        yield RecipeError("quantize", problem, f"train a lora, {remedy}")
    if recipe.block_offload:
        problem = "given beside block_offload, which points weights elsewhere, and these may not be"
        yield RecipeError("quantize", problem, f"set block_offload=false, {remedy}")
    if recipe.model.startswith("random:") and keys.weights not in IN_PLACE:
        problem = f"got {keys.weights!r} with model={recipe.model}, whose weights are made and not read"
        yield RecipeError("quantize.weights", problem, f"set {' or '.join(IN_PLACE)}, {remedy}")
    package = PACKAGE[keys.weights]
    if find_spec(package) is None:
        problem = f"got {keys.weights!r}, which needs the package {package}, and it is not installed"
        yield RecipeError("quantize.weights", problem, f"pip install {package}, {remedy}")
    if (keys.weights == "gguf") != (keys.file is not None):
        problem = f"got {show(keys.file)} with quantize.weights={keys.weights}, but gguf alone has a file"
        yield RecipeError("quantize.file", problem, "give the GGUF file of the denoiser with weights: gguf, else null")
    elif keys.file is not None and not Path(keys.file).expanduser().is_file():
        yield RecipeError("quantize.file", f"got {show(keys.file)}, and there is no such file", "correct the path")
    if keys.weights == "gguf" and keys.skip:
        problem = f"got {show(keys.skip)}, but a file says itself which weights are quantised"
        yield RecipeError("quantize.skip", problem, "set quantize.skip=[]")
