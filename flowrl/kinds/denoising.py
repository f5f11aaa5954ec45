"""Models that denoise: any diffusers pipeline, whose decisions are denoising steps."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.kinds.kind import Building, Exporter, Planning, Proofs, Words
from flowrl.recipe.calls import check_free, check_modules, check_values
from flowrl.recipe.checks.attention import check_attention
from flowrl.recipe.checks.guide import check_guide
from flowrl.recipe.checks.noised import check_noised
from flowrl.recipe.checks.objectives import check_step_objective
from flowrl.recipe.checks.schedules import check_schedule
from flowrl.recipe.checks.shapes import refuse_shapes
from flowrl.recipe.checks.steps import check_step
from flowrl.recipe.checks.trees import check_tree
from flowrl.recipe.checks.views import refuse_views
from flowrl.recipe.checks.windows import check_window
from flowrl.recipe.default_noise import with_noise
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.attention import PIPELINES
from flowrl.recipe.keys.sampling import Sampler
from flowrl.recipe.presets import DENOISING
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.policies.pipelines.policy import PipelinePolicy


class Denoising:
    """The kind of a recipe that no other kind claims; its sections are `pipeline` and `sampler`."""

    name, unread, presets, texts = "denoising", (), DENOISING, False
    index = "model_index.json"
    saving = ("offload", "vae.batch", "block_offload", "quantize")
    words = Words(
        model="a diffusers pipeline",
        chosen="remove generation",
        decisions="denoising steps",
        network="denoiser",
        whole="whole pipeline",
        forward="row",
        forwards="denoiser row-forwards",
        costs="row-forwards an iteration (guidance, where the pipeline uses it, doubles them)",
        reference="the ODE",
        reference_sample="the ODE's sample",
    )

    def claims(self, values: Mapping[str, JSON]) -> bool:
        """True: a recipe denoises if nothing in it says otherwise."""
        return True

    def holds(self, folder: Path) -> bool:
        """Whether a folder has a pipeline's index."""
        return (folder / self.index).is_file()

    def completed(self, values: dict[str, JSON]) -> dict[str, JSON]:
        """The values with the step's usual noise on this model."""
        return with_noise(values)

    def check_model(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Arguments of the call, denoisers that the model does not have, and keys of language models."""
        yield from check_free(recipe.pipeline)
        yield from check_values(recipe.pipeline, recipe.model)
        if recipe.lora is not None:
            yield from check_modules(recipe.lora.modules, recipe.model)
        if recipe.freeze:
            problem = "given, but a pipeline's denoiser has no tower, and learns as a whole"
            yield RecipeError("freeze", problem, "set freeze=[]")
        if recipe.environment is not None:
            problem = "given, but a pipeline of denoising steps says nothing that could be answered"
            yield RecipeError("environment", problem, "set environment=null")
        if recipe.eval.temperature is not None:
            problem = f"got {recipe.eval.temperature:g}, but only a language model has one"
            yield RecipeError("eval.temperature", problem, "set eval.temperature=null")
        if recipe.roles is not None:
            yield RecipeError("roles", "given, but only language models hold discussions", "set roles=null")
        yield from check_attention(recipe, PIPELINES)

    def check_sampling(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Table, window and tree."""
        yield from check_schedule(recipe)
        yield from check_window(recipe)
        yield from check_tree(recipe)
        yield from check_guide(recipe.sampler.guide)

    def draws_in_parts(self, recipe: Recipe) -> bool:
        """Of trees."""
        return recipe.sampler.tree is not None

    def draws_together(self, recipe: Recipe) -> bool:
        """No: each rank draws by itself."""
        return False

    def check_ranks(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Everything is done."""
        return iter(())

    def check_objective(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Keys about tokens, and values that do not fit denoising steps."""
        if recipe.train.skip_truncated:
            problem = "got true, but only completions of a language model have a length limit that they may not reach"
            yield RecipeError("train.skip_truncated", problem, "set train.skip_truncated=false")
        yield from check_step_objective(recipe)
        yield from refuse_shapes(recipe)
        yield from refuse_views(recipe)
        yield from check_noised(recipe)

    def check_parts(self, recipe: Recipe) -> Iterator[RecipeError]:
        """The step, by its name and on this model."""
        yield from check_step(recipe)

    def call(self, recipe: Recipe) -> object:
        """The arguments of the pipeline's call."""
        return recipe.pipeline

    def noise(self, recipe: Recipe) -> object:
        """The step and its strength."""
        return recipe.sampler.step, recipe.sampler.step_args, recipe.sampler.noise

    def sampling(self, recipe: Recipe) -> dict[str, JSON]:
        """Step, noise and the number of steps of an evaluation."""
        own = recipe.sampler
        return {"step": own.step, "noise": own.noise, "steps": recipe.eval.steps or own.steps}

    def sampled_by(self, recipe: Recipe, sampling: Mapping[str, JSON]) -> Recipe:
        """See Kind; on the model's own table."""
        steps = sampling["steps"]
        own = recipe.sampler.step_args if sampling["step"] == recipe.sampler.step else {}
        noise = sampling["noise"] or 0.0
        sampler = Sampler(step=sampling["step"] or "", step_args=own, noise=noise, steps=steps or 1)
        evaluation = recipe.eval.model_copy(update={"steps": steps})
        return recipe.model_copy(update={"sampler": sampler, "eval": evaluation})

    def plain(self, recipe: Recipe) -> Recipe:
        """See Kind: the same step and table, without window, tree, tail or shared noise."""
        own = recipe.sampler
        kept = {name: getattr(own, name) for name in ("step", "step_args", "noise", "steps", "schedule")}
        plain = Sampler(**kept)
        return recipe.model_copy(update={"sampler": plain})

    def prompt_arguments(self, model: str, *, online: bool) -> list[str]:
        """The arguments of the pipeline's call; see `argument_names`."""
        from flowrl.planning.sizes.calls import argument_names

        return argument_names(model, online=online)

    def refuse_prompts(self, prompts: Sequence["Prompt"], model: str) -> str | None:
        """Refuses conversations. Whatever else the pipeline does not take is left to the rewards."""
        talk = next((prompt for prompt in prompts if prompt.messages), None)
        if talk is None:
            return None
        return f"the prompt {talk.text!r} is a conversation, and a pipeline takes one text; give prompts of one text"

    def refuse_views(self, prompts: Sequence["Prompt"], recipe: Recipe) -> str | None:
        """Nothing: a recipe of this kind has no views."""
        return None

    def library(self, export: str) -> str:
        """diffusers, which reads pipelines and their LoRA."""
        return "diffusers"

    @property
    def planning(self) -> Planning:
        """Walks of denoising steps."""
        from flowrl.planning import denoising

        return denoising

    @property
    def building(self) -> "Building[PipelinePolicy]":
        """Policies over pipelines."""
        from flowrl.policies.pipelines import building

        return building

    @property
    def exporter(self) -> "Exporter[PipelinePolicy]":
        """Pipelines, and LoRA for them."""
        from flowrl.exports import pipelines

        return pipelines

    @property
    def proofs(self) -> Proofs:
        """Proofs about denoising steps."""
        from flowrl.checking.proofs import denoising

        return denoising
