"""Language models of transformers, also those that read pictures or sounds; their decisions are tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.kinds.kind import Building, Exporter, Planning, Proofs, Words
from flowrl.media.files import MEDIA_KEYS, marks_problem, media_kind
from flowrl.recipe.calls import read_json
from flowrl.recipe.checks.attention import check_attention
from flowrl.recipe.checks.begun import check_begun
from flowrl.recipe.checks.correction import check_drawing, check_static
from flowrl.recipe.checks.credit import check_token_credit
from flowrl.recipe.checks.engines import check_engine
from flowrl.recipe.checks.environment import check_environment
from flowrl.recipe.checks.noised import check_texts
from flowrl.recipe.checks.objectives import check_token_objective
from flowrl.recipe.checks.roles import check_roles
from flowrl.recipe.checks.views import check_views, drawing_view, unshown
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.attention import LANGUAGE_MODELS
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.models import reads_media
from flowrl.recipe.presets import LANGUAGE
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import names_own
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.policies.language.policy import LanguagePolicy


def section_of(recipe: Recipe) -> GenerationKeys:
    """The section that says how tokens are drawn. Raises ValueError for a recipe of another kind."""
    if recipe.generation is None:
        raise ValueError("the recipe has no `generation`: its decisions are denoising steps")
    return recipe.generation


class Language:
    """The kind of a recipe with `generation`."""

    name, unread, presets, texts = "language", ("pipeline", "sampler", "vae"), LANGUAGE, True
    index = "a language model's config.json"
    saving = ("quantize",)
    words = Words(
        model="a language model",
        chosen="add generation={max_new_tokens: NUMBER}",
        decisions="tokens",
        network="model",
        whole="whole model",
        forward="token",
        forwards="token-forwards",
        costs="token-forwards an iteration, at most (completions may end early; prompts come on top)",
        reference="greedy decoding",
        reference_sample="the greedy answer",
    )

    def claims(self, values: Mapping[str, JSON]) -> bool:
        """Whether a recipe says how tokens are generated."""
        return values.get("generation") is not None

    def holds(self, folder: Path) -> bool:
        """Whether a folder has a config that names a class of transformers, and is no pipeline's, or it is GGUF."""
        if folder.suffix == ".gguf":
            return folder.is_file()
        return "architectures" in read_json(folder / "config.json") and not (folder / "model_index.json").is_file()

    def completed(self, values: dict[str, JSON]) -> dict[str, JSON]:
        """The values with objective.length for aggregate `constant`: the limit, not the longest completion drawn."""
        for name in self.unread:
            if values.get(name):
                problem = f"got {show(values[name])}, but `generation` makes this a language model's recipe"
                raise RecipeError(name, problem, f"remove {name}, or set generation=null")
        objective, generation = values.get("objective"), values.get("generation")
        limit = generation.get("max_new_tokens") if isinstance(generation, dict) else None
        if not isinstance(objective, dict) or names_own(objective) or not isinstance(limit, int):
            return values
        if objective.get("aggregate") != "constant" or objective.get("length") is not None:
            return values
        return values | {"objective": objective | {"length": limit}}

    def check_model(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Keys of pipelines, and a system message without a chat template."""
        if recipe.eval.steps is not None:
            problem = f"got {recipe.eval.steps}, but a language model has no denoising steps"
            yield RecipeError("eval.steps", problem, "set eval.steps=null")
        if recipe.eval.samples > 1 and recipe.eval.temperature == 0:
            problem = f"got {recipe.eval.samples}, but at eval.temperature 0 all completions of a prompt are the same"
            yield RecipeError("eval.samples", problem, "set eval.temperature above 0, or eval.samples=1")
        if recipe.lora is not None and recipe.lora.modules is not None:
            problem = f"got {show(recipe.lora.modules)}, but a language model is one module"
            yield RecipeError("lora.modules", problem, "set lora.modules=null")
        if recipe.quantize is not None and recipe.quantize.weights == "gguf":
            problem = "got 'gguf', but a language model in such a file is read as plain weights"
            yield RecipeError("quantize.weights", problem, "give model: gguf:FILE and remove quantize, or set int8")
        if recipe.block_offload:
            problem = "got true, but only a pipeline's denoiser comes block by block"
            yield RecipeError("block_offload", problem, "set block_offload=false")
        if recipe.offload:
            yield RecipeError("offload", "got true, but a language model is used all the time", "set offload=false")
        yield from check_attention(recipe, LANGUAGE_MODELS)
        given = section_of(recipe)
        if given.system is not None and given.chat_template is False:
            problem = "given, but generation.chat_template is false, so there is no chat that it could go into"
            yield RecipeError("generation.system", problem, "remove it, or set generation.chat_template=auto")
        if given.chat_arguments and given.chat_template is False:
            problem = "given, but generation.chat_template is false, so there is no template that they could go to"
            yield RecipeError("generation.chat_arguments", problem, "remove them")
        if given.processor and reads_media(recipe.model) is False:
            problem = f"got {show(given.processor)}, but {recipe.model!r} reads text alone and has none"
            yield RecipeError("generation.processor", problem, "remove it, or give a vision-language model")

    def check_sampling(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Completions that are drawn in more than one go, and what the model talks to."""
        yield from check_begun(recipe, section_of(recipe))
        yield from check_environment(recipe, section_of(recipe))
        yield from check_roles(recipe, section_of(recipe))
        yield from check_views(recipe, section_of(recipe))

    def draws_in_parts(self, recipe: Recipe) -> bool:
        """Of trees, discussions and samples beside a group, and where more is drawn once completions are scored."""
        given, beside = section_of(recipe), drawing_view(recipe, "beside")
        return any(part is not None for part in (given.tree, given.again, recipe.roles, beside))

    def draws_together(self, recipe: Recipe) -> bool:
        """Of a server, which is brought the weights of all, and where a draw ends once any group is complete."""
        return recipe.rollout.engine is not None or section_of(recipe).partial is not None

    def check_ranks(self, recipe: Recipe) -> Iterator[RecipeError]:
        """What needs whole weights, or all calls of the model in one order, where ranks hold parts of them."""
        engine = recipe.rollout.engine
        if engine is not None and engine.use == "sglang" and recipe.lora is not None and recipe.parallel.kind == "fsdp":
            problem = "got 'sglang', which is given a model with the adapters merged into whole weights, of which a "
            problem += "rank has a part"
            remedy = "set vllm, which is given the adapters, or parallel.kind=replicate"
            yield RecipeError("rollout.engine.use", problem, remedy)
        agent = recipe.environment is not None and recipe.environment.agent is not None
        if agent and recipe.parallel.kind == "fsdp":
            problem = (
                "given, but its calls come whenever they do, and ranks that share out the weights call in one order"
            )
            yield RecipeError("environment.agent", problem, "leave it out, or set parallel.kind=replicate")

    def check_objective(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Keys about denoising steps."""
        yield from check_token_objective(recipe)
        yield from check_token_credit(recipe, section_of(recipe))
        yield from check_drawing(recipe.rollout, section_of(recipe))
        yield from check_static(recipe)
        yield from check_engine(recipe, section_of(recipe))
        yield from check_texts(recipe)

    def check_parts(self, recipe: Recipe) -> Iterator[RecipeError]:
        """Rewards that would start before the rollout ends."""
        for name, spec in recipe.rewards.items():
            if spec.overlap:
                problem = "got true, but the completions of a language model are complete at once"
                yield RecipeError(f"rewards.{name}.overlap", problem, f"remove rewards.{name}.overlap")

    def call(self, recipe: Recipe) -> object:
        """Chat template, its arguments, system message, and arguments of the processor."""
        given = section_of(recipe)
        return given.chat_template, given.system, given.chat_arguments, given.processor

    def noise(self, recipe: Recipe) -> object:
        """Nothing: the plan says it all."""
        return ()

    def sampling(self, recipe: Recipe) -> dict[str, JSON]:
        """None of them: runs are measured as their own recipes draw."""
        return {"step": None, "noise": None, "steps": None}

    def sampled_by(self, recipe: Recipe, sampling: Mapping[str, JSON]) -> Recipe:
        """The recipe as it is."""
        return recipe

    def plain(self, recipe: Recipe) -> Recipe:
        """The recipe as it is: its plan is the same in every iteration, and every token is drawn."""
        return recipe

    def prompt_arguments(self, model: str, *, online: bool) -> list[str]:
        """The columns of media, unless the model is known to read text alone."""
        return [] if reads_media(model) is False else list(MEDIA_KEYS)

    def refuse_prompts(self, prompts: Sequence["Prompt"], model: str) -> str | None:
        """Refuses media for a model that is known to read text alone, and marks that are not as many as files."""
        for prompt in prompts:
            if prompt.media and reads_media(model) is False:
                return (
                    f"the prompt {prompt.text!r} has pictures or sounds ({', '.join(prompt.media)[:120]}), and "
                    f"{model!r} reads text alone: its folder has no processor; give a vision-language model, or remove "
                    "that column"
                )
            texts = [str(message["content"]) for message in prompt.messages] or [prompt.text]
            if problem := marks_problem(texts, prompt.media):
                return f"the prompt {prompt.text!r} {problem}"
        return None

    def refuse_views(self, prompts: Sequence["Prompt"], recipe: Recipe) -> str | None:
        """Refuses prompts that show nothing that the recipe's views could change."""
        return unshown(recipe, [{media_kind(path) for path in prompt.media} for prompt in prompts])

    def library(self, export: str) -> str:
        """peft for a LoRA, transformers for a whole model."""
        return "peft" if export == "lora" else "transformers"

    @property
    def planning(self) -> Planning:
        """How tokens are drawn, and what that costs."""
        from flowrl.planning import language

        return language

    @property
    def building(self) -> "Building[LanguagePolicy]":
        """Policies over causal language models."""
        from flowrl.policies.language import building

        return building

    @property
    def exporter(self) -> "Exporter[LanguagePolicy]":
        """Folders of transformers, and LoRA of peft."""
        from flowrl.exports import language

        return language

    @property
    def proofs(self) -> Proofs:
        """Proofs about tokens and completions."""
        from flowrl.checking.proofs import language

        return language
