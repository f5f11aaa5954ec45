"""The values of `pipeline`: arguments of a diffusers pipeline's call, checked before weights are loaded.

The limits of common arguments are known for every pipeline; sizes follow from the configs in a model's folder, and
types from the annotations of the pipeline's class, once that is known.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

from flowrl import names
from flowrl.known.places import config_place
from flowrl.recipe.annotations import accepted_if_misfit
from flowrl.recipe.base import LARGEST
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.untyped import JSON

MAX_SIDE, MAX_FRAMES = 16384, 4096  # pixels, frames: beyond what any model makes, and what memory can hold


# Arguments of a pipeline's __call__ that flowrl passes itself, and the key that sets them instead.
OWN_ARGUMENTS = {
    "prompt": "prompts.train",
    "prompt_2": "prompts.train",
    "prompt_embeds": "prompts.train",
    "num_inference_steps": "sampler.steps",
    "sigmas": "sampler.steps",
    "timesteps": "sampler.steps",
    "eta": "sampler.noise",
    "generator": "seed",
    "latents": "seed",
    "num_images_per_prompt": "train.group",
    "num_videos_per_prompt": "train.group",
    "output_type": None,
    "return_dict": None,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": None,
}


class Limits(NamedTuple):
    """The numbers that an argument may be; `above` excludes the lower end."""

    whole: bool
    low: float
    high: float = math.inf
    above: bool = False

    def hold(self, value: JSON) -> TypeGuard[int | float]:
        """Whether a value is such a number."""
        if type(value) not in ((int,) if self.whole else (int, float)):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    @property
    def words(self) -> str:
        """The same in words."""
        kind = "a whole number" if self.whole else "a number"
        if self.high == math.inf:
            return f"{kind} {'>' if self.above else '>='} {self.low:g}"
        return f"{kind} {f'in ({self.low:g}, {self.high:g}]' if self.above else f'from {self.low:g} to {self.high:g}'}"


_SIDE = Limits(True, 1, MAX_SIDE)
_SCALE = Limits(False, 0)
_RATE = Limits(False, 0, above=True)
# null is always accepted: an argument that is not given
LIMITS = {
    "height": _SIDE,
    "width": _SIDE,
    "num_frames": Limits(True, 1, MAX_FRAMES),
    "max_sequence_length": Limits(True, 1, 2**20),
    "max_area": Limits(True, 1, MAX_SIDE**2),
    "guidance_scale": _SCALE,
    "guidance_scale_2": _SCALE,
    "true_cfg_scale": _SCALE,
    "image_guidance_scale": _SCALE,
    "pag_scale": _SCALE,
    "guidance_rescale": Limits(False, 0, 1),
    "strength": Limits(False, 0, 1, above=True),
    "frame_rate": _RATE,
    "fps": _RATE,
    "decode_chunk_size": Limits(True, 1),
    "clip_skip": Limits(True, 0),
}

# class of an autoencoder -> config key of its spatial factor, or of the list with one entry more than halvings
_FACTORS = ("scale_factor_spatial", "spatial_compression_ratio")
_LEVELS = {"AutoencoderKL": "block_out_channels", "AutoencoderKLCogVideoX": "block_out_channels"}
_LEVELS |= {"AutoencoderDC": "encoder_block_out_channels"}
# autoencoders of videos that keep the first frame apart: latent frames are 1 + (frames - 1) / factor
_CAUSAL = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLLTXVideo")


def check_free(call: Mapping[str, JSON]) -> Iterator[RecipeError]:
    """Arguments that a recipe may not set, because flowrl passes them itself."""
    for name, setter in OWN_ARGUMENTS.items():
        if name in call:
            remedy = f"use {setter}" if setter else f"remove pipeline.{name}"
            yield RecipeError(f"pipeline.{name}", f"got {show(call[name])}, but flowrl sets it", remedy)


def check_values(call: Mapping[str, JSON], model: str, section: str = "pipeline") -> Iterator[RecipeError]:
    """Argument values that no pipeline, or not the one in this model's folder, can accept. section: where they are."""
    for name, value in call.items():
        place, limits = f"{section}.{name}", LIMITS.get(name)
        if not is_finite(value):
            accepted = limits.words if limits is not None else "finite numbers"
            yield wrong_value(place, value, accepted)
        elif limits is not None and value is not None and not limits.hold(value):
            yield wrong_value(place, value, _with_multiple(limits, multiple(model) if limits is _SIDE else 1))
        elif limits is _SIDE and value is not None and value % (step := multiple(model)):
            near = [n for n in (value // step * step, -(-value // step) * step) if n]
            yield wrong_value(place, value, f"a multiple of {step}, such as {' or '.join(map(str, near))}")
    frames = call.get("num_frames")
    if LIMITS["num_frames"].hold(frames) and (frames - 1) % (factor := frame_multiple(model)):
        near = (frames - 1) // factor * factor + 1
        accepted = f"1 more than a multiple of {factor}, such as {near} or {near + factor}"
        yield wrong_value("pipeline.num_frames", frames, accepted)


def check_call(cls: type, kwargs: dict[str, JSON], section: str = "pipeline") -> None:
    """Raises RecipeError for a key of a section, or a type of value, that the pipeline's own __call__ does not take."""
    known = accepted_by_call(cls)
    for name, value in kwargs.items():
        if known is not None and name not in known:
            meant = names.closest(name, known)
            listed = names.some(name, known, f"the arguments of {cls.__name__}")
            problem = f"got {show(value)}, but {cls.__name__} takes no {name!r}, accepted: {listed}"
            remedy = f"did you mean {meant!r}?" if meant else f"remove {section}.{name}"
            raise RecipeError(f"{section}.{name}", problem, remedy)
    check_types(cls, kwargs, section)
    _check_area(cls, kwargs)


def _check_area(cls: type, kwargs: dict[str, JSON]) -> None:
    """Raises RecipeError if a pipeline would rescale height and width to its own area (FLUX.1 Kontext)."""
    call: Callable = cls.__call__
    area, height, width = inspect.signature(call).parameters.get("max_area"), kwargs.get("height"), kwargs.get("width")
    if area is None or "max_area" in kwargs or not (isinstance(height, int) and isinstance(width, int)):
        return
    wanted = height * width
    if wanted != area.default:
        problem = f"not given, and {cls.__name__} scales {height} x {width} (height x width) to {area.default} pixels"
        raise RecipeError("pipeline.max_area", problem, f"set it to {wanted}")


def accepted_by_call(cls: type) -> list[str] | None:
    """The arguments that a recipe may pass to __call__; None if it takes any keyword."""
    accepts, _ = names.signature(cls.__call__, 1)
    return None if accepts is None else [name for name in accepts if name not in OWN_ARGUMENTS]


def check_types(cls: type, call: Mapping[str, JSON], section: str = "pipeline") -> None:
    """Raises RecipeError for a value that does not fit its annotation in the pipeline's own __call__."""
    types = names.types(cls.__call__)
    for name, value in call.items():
        if name in types and (accepted := accepted_if_misfit(types[name], value)):
            raise wrong_value(f"{section}.{name}", value, accepted)


def _with_multiple(limits: Limits, step: int) -> str:
    return limits.words if step == 1 else f"a multiple of {step} from {step} to {limits.high:g}"


def is_finite(value: JSON) -> bool:
    """Whether all numbers in a value are finite, with squares that float32 can hold."""
    if isinstance(value, Mapping | list):
        return all(map(is_finite, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST  # NaN is not


def multiple(model: str) -> int:
    """The number of which height and width must be multiples; 1 if it cannot be read from the model's folder.

    The autoencoder's factor times the denoiser's patch size: its own, or the 2 x 2 into which pipelines pack latents if
    it takes four times the latents' channels (FLUX, Qwen-Image).
    """
    vae, denoiser = _config(model, "vae"), _config(model, "transformer")
    channels = vae.get("latent_channels") or vae.get("z_dim")
    patch = denoiser.get("patch_size")
    patch = patch[-1] if isinstance(patch, list) and patch else patch
    if isinstance(channels, int) and denoiser.get("in_channels") == 4 * channels:
        patch = 2
    factor = _factor(vae)
    return factor * (patch if isinstance(patch, int) and patch > 0 else 1) if factor else 1


def _factor(vae: Mapping[str, JSON]) -> int | None:
    """Pixels per side of a latent; None if the config does not say."""
    stated = next((vae[key] for key in _FACTORS if isinstance(vae.get(key), int)), None)
    levels = vae.get(_LEVELS.get(vae.get("_class_name", ""), ""))
    halvings = vae.get("temperal_downsample")  # sic: Wan's and Qwen-Image's
    if stated is None and isinstance(levels, list):
        return 2 ** (len(levels) - 1)
    return 2 ** len(halvings) if stated is None and isinstance(halvings, list) else stated


def frame_multiple(model: str) -> int:
    """The number of which frames - 1 must be a multiple; 1 if it is unknown."""
    vae = _config(model, "vae")
    stated = (vae.get("scale_factor_temporal"), vae.get("temporal_compression_ratio"))
    factor = next((value for value in stated if isinstance(value, int)), 1)
    return factor if vae.get("_class_name") in _CAUSAL else 1


def _config(model: str, component: str) -> dict[str, JSON]:
    """A component's config.json in a model's folder; empty if there is none."""
    return read_json(config_place(model) / component / "config.json")


def read_json(path: Path) -> dict[str, JSON]:
    """The object in a JSON file; empty if it is missing or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def listed_components(model: str) -> list[str]:
    """The components with weights in an embedded or local pipeline's folder; empty if they are unknown."""
    folder = config_place(model)
    index = read_json(folder / "model_index.json")
    return [name for name in index if not name.startswith("_") and (folder / name / "config.json").is_file()]


def check_modules(modules: list[str] | None, model: str) -> Iterator[RecipeError]:
    """Denoisers that a recipe names but its model does not have."""
    known = listed_components(model)
    for name in modules or () if known else ():
        if name not in known:
            yield wrong_value("lora.modules", name, f"of {', '.join(known)}", suggestion=names.closest(name, known))
    if modules == []:
        yield wrong_value("lora.modules", modules, "null, or a list of at least one denoiser's name")
