"""Stage 2: the language model learns lessons, then documents, over what the finished image tower gives of a pool."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowrl.untyped import Network, Processor
from flowrl.worlds.shapes_look.corpus import OPEN, Document, call, document, lesson
from flowrl.worlds.shapes_look.eye import Heads, features_of
from flowrl.worlds.shapes_look.model import SEEN
from flowrl.worlds.shapes_look.pool import PATHS, Pool, spoil
from flowrl.worlds.stage import Cycle, Stage

BATCH = 24  # documents of a step
LESSONS, LESSONS_BESIDE = 24, 8  # lessons of a step: alone, and beside documents
LR = 2e-3
PROJECTOR_STEPS, PROJECTOR_LR = 700, 3e-3
IMAGE = {"type": "image"}


def messages(question: str, looks: Sequence[str] = ()) -> list[dict[str, object]]:
    """The conversation so far: a picture and a question, then calls and the pictures that they gave back."""
    chat: list[dict[str, object]] = [{"role": "user", "content": [IMAGE, {"type": "text", "text": question}]}]
    for quadrant in looks:
        chat.append({"role": "assistant", "content": call(quadrant)})
        chat.append({"role": "tool", "content": [IMAGE]})
    return chat


class Row(NamedTuple):
    """Token ids, which of them the model has to say, and blocks: each sees itself and block 0, not the others."""

    ids: list[int]
    said: list[bool]
    block: list[int]


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

    def __call__(self, read: Document) -> Row:
        """A document; said are the assistant's turns, their ends included."""
        end = [self.processor.tokenizer.eos_token_id]
        ids: list[int] = []
        said: list[bool] = []
        for turn in range(len(read.looks) + 1):
            shown = self.prompt(read.question, read.looks[:turn])
            said += [False] * (len(shown) - len(ids))
            spoken = self.ids(call(read.looks[turn]) if turn < len(read.looks) else read.answer) + end
            ids = shown + spoken
            said += [True] * len(spoken)
        return Row(ids, said, [0] * len(ids))

    def lesson(self, asked: Sequence[tuple[str, str]]) -> Row:
        """Questions about one view, each read as if it were the only one; said are the words of the answers alone."""
        ids = self.prompt("")[:-1]
        said, block = [False] * len(ids), [0] * len(ids)
        turn = self.processor.tokenizer.convert_tokens_to_ids("<|assistant|>")
        for number, (question, answer) in enumerate(asked, 1):
            spoken = self.ids(f"{OPEN}{answer}")
            ids = [*ids, *self.ids(question), turn, *spoken]
            block += [number] * (len(ids) - len(block))
            said += [False] * (len(ids) - len(said) - 1) + [True]
        return Row(ids, said, block)


@torch.no_grad()
def pool_features(eye: Network, pool: Pool, seed: int) -> Tensor:
    """Features of all views of a pool, a little noise on the pixels: float16 [scenes, paths, 16, 96]."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in torch.arange(len(pool)).split(100):
        seen = [features_of(eye, spoil(pool.views(index, path)[0], generator)).half() for path in PATHS]
        rows.append(torch.stack(seen, 1))
    return torch.cat(rows)


def fit_projector(projector: Network, heads: Heads, features: Tensor, *, steps: int, seed: int) -> None:
    """Gives the projector a start: what the heads of the tower read can be read off its outputs, linearly.

    A random projector mixes it with all else that the features hold, and the language model then takes several times as
    long to learn to find a colour. features: [N, ..., 16, 96]. Leaves outputs of standard deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    views = features.flatten(0, -3)
    read = nn.Linear(projector.linear_2.out_features, sum(heads.sizes))
    optimizer = torch.optim.Adam([*projector.parameters(), *read.parameters()], PROJECTOR_LR)
    for step in range(steps):
        seen = views[torch.randint(len(views), (48,), generator=generator)].float()
        with torch.no_grad():
            color, shape, size, place = heads(seen)
            there = color.sigmoid()
            some = there.amax(-1, keepdim=True)
            parts = (3 * there, 2 * shape.softmax(-1) * some, size.softmax(-1) * some, 2 * place.softmax(-1))
            wanted = torch.cat(parts, -1)
        given = projector(seen)
        given = given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + 1e-6)  # as the language model's norms do
        functional.mse_loss(read(given), wanted).backward()
        for group in optimizer.param_groups:
            group["lr"] = PROJECTOR_LR * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        scale = projector(views[:200].float()).std()
        projector.linear_2.weight.div_(scale)
        projector.linear_2.bias.div_(scale)


def train(
    model: Network,
    processor: Processor,
    heads: Heads,
    pool: Pool,
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    report: Callable[[int], str] | None = None,
) -> None:
    """Fits projector and language model, the tower as it is; resumes from `path`. Leaves the averaged weights.

    cycles: of the learning rate; lessons alone in the first one, documents and some lessons in the others.
    """
    features, reader = pool_features(model.model.vision_tower, pool, seed), Reader(processor)
    fit_projector(model.model.multi_modal_projector, heads, features, steps=PROJECTOR_STEPS, seed=seed)
    learned = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
    stage = Stage("language model", learned, path, cycles=cycles, lr=LR, average=0.995)

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{seed}/language/{step}")
        lessons, number = (LESSONS, 0) if step < cycles[0][0] else (LESSONS_BESIDE, BATCH)
        rows, seen = [], []
        while len(rows) < lessons:
            i = rng.randrange(len(pool))
            view, asked = lesson(pool.scenes[i], rng)
            if asked:
                rows.append(reader.lesson(asked))
                seen.append(features[i, PATHS.index(view)])
        for _ in range(number):
            i = rng.randrange(len(pool))
            read = document(rng.choice(pool.scenes[i]), rng)
            rows.append(reader(read))
            seen += [features[i, PATHS.index(read.looks[:n])] for n in range(len(read.looks) + 1)]
        return _loss(model, rows, torch.stack(seen).float(), reader)

    stage.run(loss, report, every=400)
    stage.swap()


def _loss(model: Network, rows: Sequence[Row], features: Tensor, reader: Reader) -> Tensor:
    """Mean negative log-likelihood of what is said."""
    width, pad = max(len(row.ids) for row in rows), reader.processor.tokenizer.pad_token_id
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
    said = torch.tensor([row.said + [False] * (width - len(row.said)) for row in rows])[:, 1:]
    block = torch.tensor([row.block + [-1] * (width - len(row.block)) for row in rows])
    sees = ((block[:, None] == 0) | (block[:, None] == block[:, :, None])).tril()  # [rows, width, width]
    places = sees.sum(-1) - 1  # each block stands where the first does
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    embedded = model.get_input_embeddings()(ids)
    at = (ids == reader.image)[..., None]
    embedded = embedded.masked_scatter(at, model.model.multi_modal_projector(features))
    states = model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=places, use_cache=False
    ).last_hidden_state[:, :-1]
    return functional.cross_entropy(model.lm_head(states[said]), ids[:, 1:][said])
