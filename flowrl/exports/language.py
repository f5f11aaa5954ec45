"""The export formats of a trained language model, and how an export is used without flowrl.

Kinds: "lora" is what `peft.PeftModel.from_pretrained` reads, "merged" a transformers folder with its tokenizer, or the
processor of a model that reads pictures or sounds.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from flowrl import names
from flowrl.contracts import Prompt
from flowrl.kinds.language import section_of
from flowrl.planning.costs import eval_plan
from flowrl.policies import adapters
from flowrl.policies.devices import device_of
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.building import told_tools
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.drawing.stopping import stop_ids
from flowrl.policies.language.media.inputs import tensors_of, types_of
from flowrl.policies.language.media.processing import placeholder_ids
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import auto_class, load_language, load_processor
from flowrl.recipe.models import gguf_file
from flowrl.recipe.schema import Recipe
from flowrl.untyped import LanguageModel, Processor, Tokenizer


def write(policy: LanguagePolicy, folder: Path, kind: str) -> None:
    """Writes the policy's weights as they are; "merged" merges the adapters into the base weights."""
    adapted = getattr(policy.model, "_hf_peft_config_loaded", False)
    if kind == "lora" or not adapted:
        policy.source.save_weights(folder)
        return
    if others := adapters.other_adapters(policy.model):
        raise PolicyError(
            f"--kind: got merged, but the run has adapters of several roles (beside the first {', '.join(others)}), "
            "which one model cannot hold; accepted: lora, a folder each"
        )
    with TemporaryDirectory() as aside:
        policy.source.save_weights(Path(aside))
        network, tokenizer = load_language(str(policy.model.name_or_path), policy.model.dtype)
        merged: LanguageModel = PeftModel.from_pretrained(network, aside)
        merged.merge_and_unload().save_pretrained(folder)
        (policy.processor or tokenizer).save_pretrained(folder)


@torch.no_grad()
def draw(policy: LanguagePolicy, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Tensor]:
    """The greedy completion of each prompt: float64 [2, K], token ids and their log-probs (nats) at temperature 1.

    Of a model that talks to an environment it is its first turn, and what it would say behind that unasked.
    """
    plan = replace(eval_plan(recipe), temperature=0.0)
    completions = []
    for prompt in prompts:
        alone: dict[str, Any] = {} if policy.conversations is None else {"begun": [None]}
        rollout = policy.rollout([prompt], group_size=1, plan=plan, seed=recipe.seed, **alone)
        length = int(rollout.replay.length[0])
        completions.append(
            _pad(rollout.replay.tokens[0, :length], rollout.rollout_logp[0, :length], plan.max_new_tokens)
        )
    return completions


def redraw(recipe: Recipe, folder: Path, kind: str, prompts: Sequence[Prompt]) -> list[Tensor]:
    """The completions of the plain model with the exported weights; see `draw`."""
    return complete_greedily(recipe, *load(recipe, folder, kind), prompts)


@torch.no_grad()
def complete_greedily(
    recipe: Recipe,
    network: LanguageModel,
    tokenizer: Tokenizer,
    processor: Processor | None,
    prompts: Sequence[Prompt],
) -> list[Tensor]:
    """Greedy completions by transformers' own `generate`, in the form of `draw`."""
    section = section_of(recipe)
    network.to(device_of(recipe.device))
    barred = () if processor is None else placeholder_ids(network.config, processor)
    encode = Encoder(
        tokenizer,
        template=section.chat_template,
        system=section.system,
        arguments=section.chat_arguments | told_tools(recipe),
        processor=processor,
        barred=barred,
    )
    completions = []
    for prompt in prompts:
        row, shown = encode.row(prompt, stop_ids(network, tokenizer))
        ids = torch.tensor([row], device=network.device)
        media: dict[str, object] = {"suppress_tokens": list(barred)} if barred else {}
        if shown:
            media |= tensors_of([shown], network.device, network.dtype)
            named = shown.pieces[0].types
            media |= {name: types_of([shown], name, torch.ones_like(ids)) for name in named}
        output = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=section.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
            **media,
        )
        tokens = output.sequences[0, ids.shape[1] :]
        logp = torch.stack([step[0].float().log_softmax(-1) for step in output.logits])
        completions.append(_pad(tokens, logp.gather(1, tokens[:, None])[:, 0], section.max_new_tokens))
    return completions


def load(recipe: Recipe, folder: Path, kind: str) -> tuple[LanguageModel, Tokenizer, Processor | None]:
    """The (model, tokenizer, processor) that `usage` loads, in the recipe's model dtype."""
    dtype, place = getattr(torch, recipe.dtype.model), recipe.model if kind == "lora" else str(folder)
    network, tokenizer = load_language(place, dtype)
    network = PeftModel.from_pretrained(network, folder).eval() if kind == "lora" else network
    return network, tokenizer, load_processor(place, section_of(recipe).processor)


def usage(recipe: Recipe, folder: Path, kind: str) -> str:
    """Python code that loads the export, with FOLDER for its path."""
    seeing = None if gguf_file(recipe.model) is not None else auto_class(recipe.model)
    auto, reader = ("AutoModelForCausalLM", "tokenizer") if seeing is None else (seeing.__name__, "processor")
    head = ["import torch", f"from transformers import {auto}, Auto{reader.title()}"]
    base = repr(recipe.model) if kind == "lora" else '"FOLDER"'
    file = gguf_file(recipe.model) if kind == "lora" else None
    if file is not None:
        base = f"{str(file.parent)!r}, gguf_file={file.name!r}"
    if kind == "lora":
        head.insert(1, "from peft import PeftModel")
        if recipe.model in names.MODELS:
            head.append("from flowrl.names import MODELS")
            base = f"MODELS[{recipe.model!r}]"
    lines = [f"model = {auto}.from_pretrained({base}, dtype=torch.{recipe.dtype.model})"]
    if kind == "lora":
        lines.append('model = PeftModel.from_pretrained(model, "FOLDER")')
    return "\n".join([*head, "", *lines, f"{reader} = Auto{reader.title()}.from_pretrained({base})"])


def _pad(tokens: Tensor, logp: Tensor, width: int) -> Tensor:
    """float64 [2, width] of tokens int64 [K] and logp float [K], padded with -1.

    Completions that differ in a token differ by at least 1.
    """
    both = torch.stack([tokens.double().cpu(), logp.double().cpu()])
    return torch.nn.functional.pad(both, (0, width - both.shape[1]), value=-1.0)
