"""A reward fitted to pairs: a linear head on a vision model's embeddings, by the likelihood of Bradley and Terry.

The head of kind aesthetic weighs the entries of a picture's embedding (LAION's form; reward `aesthetic`), or of the
mean over its patches; that of kind clip weighs the entries of the embedding's product with the prompt's, whose plain
sum is the cosine (reward `clip_score`). Few pairs tell little about many entries: their weights are pulled to 0, those
of kind clip to each other, as strongly as cross-validation says.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from flowrl.contracts import Prompt
from flowrl.core.pairs import best_and_worst
from flowrl.names import UserError
from flowrl.reading.pairs import samples_of
from reward_models.parts.embedding.clip import tower
from reward_models.parts.embedding.tower import Tower

PENALTIES = tuple(10.0**exponent for exponent in range(-4, 2))
FOLDS = 5
USES = {"aesthetic": "aesthetic", "clip": "clip_score"}  # kind -> the reward that takes its head
HEAD, REPORT = "head.safetensors", "report.json"


@dataclass(frozen=True)
class Fit:
    """How a head was fitted. features: what of a picture it weighs, see `fit`. accuracy: share of held-out pairs that
    it orders as they were; before: that of the plain cosine, of kind clip; penalty: what cross-validation chose."""

    kind: str
    features: str
    pairs: int
    heldout: int
    accuracy: float
    before: float | None
    penalty: float


def fit(
    prompts: Sequence[Prompt],
    kind: str,
    folder: Path,
    *,
    model: str,
    weights: str | None = None,
    features: str = "embedding",
    heldout: float = 0.2,
    device: torch.device | str = "cpu",
    seed: int = 0,
    tell: Callable[[int], None] = lambda pictures: None,
) -> Fit:
    """Fits a head to the pairs of prompts with samples, and writes it and its report to a folder.

    features, of kind aesthetic: the picture's embedding, or patches, the mean over its patches, which tells sizes and
    places better. Prompts are held out whole, so that no picture is on both sides. tell: is told how many pictures are
    embedded. Raises UserError for too few prompts, and for samples that are no pictures, ValueError for a model without
    patches.
    """
    if kind == "clip" and features == "patches":
        raise UserError("--features: got 'patches', but a head of kind clip weighs what is compared with the prompt")
    fitted, apart = _split(prompts, heldout, seed)
    embedder = tower(model, weights, texts=kind == "clip").to(device)
    embedded = _Features(embedder.by_patches() if features == "patches" else embedder, kind, tell)
    train, test = (torch.stack([embedded.difference(prompt) for prompt in part]) for part in (fitted, apart))
    penalty = _best_penalty(train, kind, [prompt.text for prompt in fitted], seed)
    head = _solve(train, kind, penalty)
    before = _accuracy(test, torch.ones_like(head)) if kind == "clip" else None
    report = Fit(kind, features, len(train), len(test), _accuracy(test, head), before, penalty)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"0.weight": head.float()[None]} | ({"0.bias": torch.zeros(1)} if kind == "aesthetic" else {})
    save_file(tensors, folder / HEAD)
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def _split(prompts: Sequence[Prompt], heldout: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    if len(texts) < 2 * FOLDS:
        raise UserError(f"train-reward: got pairs of {len(texts)} prompts; accepted: at least {2 * FOLDS}; give more")
    random.Random(seed).shuffle(texts)
    apart = set(texts[: max(1, round(heldout * len(texts)))])
    parts = [p for p in prompts if p.text not in apart], [p for p in prompts if p.text in apart]
    return parts


class _Features:
    """The features of a pair: those of the better picture less those of the worse, float64 [D]."""

    def __init__(self, embedder: Tower, kind: str, tell: Callable[[int], None]):
        self.embedder, self.kind, self.tell = embedder, kind, tell
        self._known: dict[Path, Tensor] = {}

    @torch.no_grad()
    def difference(self, prompt: Prompt) -> Tensor:
        """Of the best and the worst sample of a prompt."""
        files, scores = samples_of(prompt)
        if len(files) < 2:
            raise UserError(f"train-reward: {prompt.text!r} has one sample; accepted: pairs, or more of each prompt")
        order = best_and_worst(torch.tensor(scores), torch.zeros(len(files), dtype=torch.int64))[0].tolist()
        better, worse = (self._embedding(files[i]) for i in order)
        difference = (better - worse).double().cpu()
        if self.kind == "clip":
            difference = difference * self.embedder.text([prompt.text])[0].double().cpu()
        return difference

    def _embedding(self, file: Path) -> Tensor:
        if file not in self._known:
            try:
                picture = Image.open(file).convert("RGB")
            except OSError as error:
                raise UserError(f"train-reward: {file} is no picture that can be opened ({error}); remove it") from None
            self._known[file] = self.embedder.image_pil([picture])[0]
            self.tell(len(self._known))
        return self._known[file]


def _solve(differences: Tensor, kind: str, penalty: float) -> Tensor:
    """The weights [D] of least mean -log sigmoid(difference . weights), with the penalty on their squares.

    Of kind clip what all entries share is free: the weights are a common one and what departs from it.
    """
    scale = differences.std().clamp(min=1e-12)
    scaled = differences / scale
    common = scaled.sum(1, keepdim=True) / scaled.shape[1] ** 0.5
    inputs = torch.cat([scaled, common], 1) if kind == "clip" else scaled
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    price = torch.full_like(weights, penalty).detach()
    if kind == "clip":
        price[-1] = 1e-6
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.softplus(-inputs @ weights).mean() + (price * weights.square()).sum() / 2
        loss.backward()
        return loss

    solver.step(closure)
    head = weights.detach()
    if kind == "clip":
        head = head[:-1] + head[-1] / scaled.shape[1] ** 0.5
    return head / scale


def _best_penalty(differences: Tensor, kind: str, texts: Sequence[str], seed: int) -> float:
    """The penalty under which held-out folds are likeliest; a prompt lies in one fold."""
    names = list(dict.fromkeys(texts))
    random.Random(seed + 1).shuffle(names)
    fold_of = {text: i % FOLDS for i, text in enumerate(names)}
    fold = torch.tensor([fold_of[text] for text in texts])

    def loss(penalty: float) -> float:
        total = 0.0
        for i in range(FOLDS):
            head = _solve(differences[fold != i], kind, penalty)
            total += float(functional.softplus(-differences[fold == i] @ head).sum())
        return total

    return min(PENALTIES, key=loss)


def _accuracy(differences: Tensor, head: Tensor) -> float:
    margin = differences @ head
    return float((margin > 0).double().mean())
