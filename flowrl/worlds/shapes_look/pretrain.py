"""Stage 2: the language model learns the documents, over the features that the finished image tower gives of a pool."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowrl.untyped import Network, Processor
from flowrl.worlds.shapes_look.corpus import Document, call, document
from flowrl.worlds.shapes_look.eye import features_of
from flowrl.worlds.shapes_look.model import SEEN
from flowrl.worlds.shapes_look.pool import PATHS, Pool, spoil
from flowrl.worlds.stage import Cycle, Stage

BATCH = 32
LR = 3e-3
IMAGE = {"type": "image"}


def messages(question: str, looks: Sequence[str] = ()) -> list[dict[str, object]]:
    """The conversation so far: a picture and a question, then calls and the pictures that they gave back."""
    chat: list[dict[str, object]] = [{"role": "user", "content": [IMAGE, {"type": "text", "text": question}]}]
    for quadrant in looks:
        chat.append({"role": "assistant", "content": call(quadrant)})
        chat.append({"role": "tool", "content": [IMAGE]})
    return chat


class Reader:
    """Token ids of documents by the processor's own chat template, and which of them the model has to say."""

    def __init__(self, processor: Processor):
        self.processor, self.known = processor, {}
        self.image = processor.tokenizer.convert_tokens_to_ids("<image>")

    def prompt(self, question: str, looks: Sequence[str] = ()) -> list[int]:
        """Up to where the model speaks next, a picture's token as often as the model sees it."""
        key = (question, tuple(looks))
        if key not in self.known:
            text = self.processor.apply_chat_template(
                messages(question, looks), add_generation_prompt=True, tokenize=False
            )
            self.known[key] = self.ids(text.replace("<image>", "<image>" * SEEN))
        return self.known[key]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands."""
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def __call__(self, read: Document) -> tuple[list[int], list[bool]]:
        """(ids, said) of a document: said are the assistant's turns, their ends included."""
        end = [self.processor.tokenizer.eos_token_id]
        ids: list[int] = []
        said: list[bool] = []
        for turn in range(len(read.looks) + 1):
            shown = self.prompt(read.question, read.looks[:turn])
            said += [False] * (len(shown) - len(ids))
            spoken = self.ids(call(read.looks[turn]) if turn < len(read.looks) else read.answer) + end
            ids = shown + spoken
            said += [True] * len(spoken)
        return ids, said


@torch.no_grad()
def pool_features(eye: Network, pool: Pool, seed: int) -> Tensor:
    """Features of all views of a pool, a little noise on the pixels: float32 [scenes, paths, 16, 96]."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in torch.arange(len(pool)).split(100):
        seen = [features_of(eye, spoil(pool.views(index, path)[0], generator)) for path in PATHS]
        rows.append(torch.stack(seen, 1))
    return torch.cat(rows)


def train(
    model: Network,
    processor: Processor,
    pool: Pool,
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    report: Callable[[int], str] | None = None,
) -> None:
    """Fits projector and language model, the tower as it is; resumes from `path`. Leaves the averaged weights."""
    features, reader = pool_features(model.model.vision_tower, pool, seed), Reader(processor)
    learned = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
    stage = Stage("language model", learned, path, cycles=cycles, lr=LR, average=0.995)

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{seed}/language/{step}")
        documents, seen = [], []
        for _ in range(BATCH):
            i = rng.randrange(len(pool))
            read = document(rng.choice(pool.scenes[i]), rng)
            documents.append(reader(read))
            seen += [features[i, PATHS.index(read.looks[:n])] for n in range(len(read.looks) + 1)]
        return _loss(model, documents, torch.stack(seen), reader)

    stage.run(loss, report, every=600)
    stage.swap()


def _loss(model: Network, documents: list[tuple[list[int], list[bool]]], features: Tensor, reader: Reader) -> Tensor:
    """Mean negative log-likelihood of what is said."""
    width, pad = max(len(ids) for ids, _ in documents), reader.processor.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in documents])
    said = torch.tensor([row + [False] * (width - len(row)) for _, row in documents])
    there = torch.tensor([[k < len(row) for k in range(width)] for row, _ in documents]).long()
    embedded = model.get_input_embeddings()(ids)
    at = (ids == reader.image)[..., None]
    embedded = embedded.masked_scatter(at, model.model.multi_modal_projector(features))
    states = model.model.language_model(
        inputs_embeds=embedded[:, :-1], attention_mask=there[:, :-1], use_cache=False
    ).last_hidden_state
    targets = ids[:, 1:].masked_fill(~said[:, 1:], -100)
    return functional.cross_entropy(model.lm_head(states).flatten(0, 1), targets.flatten(), ignore_index=-100)
