"""Pretraining of the arithmetic model: next tokens of the corpus, from seeds alone."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowrl.untyped import LanguageModel, Tokenizer
from flowrl.worlds.arithmetic.corpus import document
from flowrl.worlds.arithmetic.problems import Problem, draw_train_problem
from flowrl.worlds.stage import Cycle, Stage

BATCH = 128
PARTS = 4  # a batch is cut by length: most documents are short, and padding would double the work


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """Token ids of the problem as the first turn of a chat, up to where the answer begins."""
    messages = [{"role": "user", "content": problem.text}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def batch(tokenizer: Tokenizer, rng: random.Random, size: int) -> list[tuple[list[int], int]]:
    """(token ids of a document, length of its prompt), sorted by length."""
    documents = []
    for _ in range(size):
        problem = draw_train_problem(rng)
        prompt = prompt_ids(tokenizer, problem)
        answer = tokenizer(document(problem, rng), add_special_tokens=False)["input_ids"]
        documents.append((prompt + answer + [tokenizer.eos_token_id], len(prompt)))
    return sorted(documents, key=lambda pair: len(pair[0]))


def train(
    model: nn.Module,
    tokenizer: Tokenizer,
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    size: int = BATCH,
    lr: float = 3e-3,
    report: Callable[[int], str] | None = None,
) -> None:
    """Fits the model to the answers of the corpus, prompts masked. Leaves the averaged weights in the model."""
    stage = Stage("language model", model, path, cycles=cycles, lr=lr, average=0.995)

    def loss(step: int) -> Tensor:
        documents = batch(tokenizer, random.Random(f"{seed}/{step}"), size)
        number = sum(len(ids) - prompt for ids, prompt in documents)
        parts = [documents[i : i + size // PARTS] for i in range(0, size, size // PARTS)]
        return torch.stack([_loss(model, part, tokenizer.pad_token_id) for part in parts]).sum() / number

    stage.run(loss, report, every=400)
    stage.swap()


def _loss(model: LanguageModel, documents: list[tuple[list[int], int]], pad: int) -> Tensor:
    """Sum of the negative log-likelihoods of the answers' tokens."""
    width = max(len(ids) for ids, _ in documents)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in documents])
    wanted = torch.tensor([[prompt <= i < len(row) for i in range(width)] for row, prompt in documents])
    logits = model(input_ids=ids[:, :-1]).logits
    targets = ids[:, 1:].masked_fill(~wanted[:, 1:], -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
