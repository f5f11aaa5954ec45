"""Makes the model of shapes-look from nothing: `flowrl world build shapes-look`."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from flowrl.untyped import Network, Processor
from flowrl.worlds.shapes_look import eye, pretrain
from flowrl.worlds.shapes_look.cards import card
from flowrl.worlds.shapes_look.corpus import CLOSE, OPEN, call
from flowrl.worlds.shapes_look.files import picture_of
from flowrl.worlds.shapes_look.model import make_model, make_processor
from flowrl.worlds.shapes_look.pool import Pool
from flowrl.worlds.shapes_look.scenes import QUADRANTS, SHAPES, Question, questions
from flowrl.worlds.shapes_look.zoom import quadrant_of
from flowrl.worlds.stage import Cycle

EYE_CYCLES: tuple[Cycle, ...] = ((1600, 0.5),)  # see `stage.Stage`
CYCLES: tuple[Cycle, ...] = ((1800, 0.3), (1000, 0.5))  # lessons, documents
SEED = 1
SCENES = 3000  # of the pool of each stage
TURNS = 3
MAX_NEW_TOKENS = 12  # of a turn


@dataclass(frozen=True)
class Measured:
    """Shares of the held-out questions: right answers, of all, of small and of large objects, and rows that zoom."""

    all: float
    small: float
    large: float
    zooms: float

    def __str__(self) -> str:
        return f"{self.all:.3f}  (small {self.small:.3f}  large {self.large:.3f}; {self.zooms:.2f} zoom)"


def build(
    out: Path,
    *,
    eye_cycles: Sequence[Cycle] = EYE_CYCLES,
    cycles: Sequence[Cycle] = CYCLES,
    scenes: int = SCENES,
    keep: bool = False,
) -> Measured:
    """Pretrains the model, saves it to `out` in transformers' format with a model card; returns sampled accuracy.

    If interrupted, it resumes when called again with the same folder. `keep` leaves the checkpoints.
    """
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    processor = make_processor()
    model = make_model(processor)
    heads = eye.train(
        model.model.vision_tower, Pool(f"{SEED}/eye", scenes), work / "eye.pt", cycles=tuple(eye_cycles), seed=SEED
    )
    pretrain.train(
        model,
        processor,
        heads,
        Pool(f"{SEED}/language", scenes),
        work / "language.pt",
        cycles=cycles,
        seed=SEED,
        report=lambda step: str(Aims.of(model, processor, questions("heldout"))),
    )
    model.eval().to(torch.float16).save_pretrained(out)
    processor.save_pretrained(out)
    measured = describe(out, steps=(_steps(eye_cycles), _steps(cycles)))
    if not keep:
        shutil.rmtree(work)
    return measured


def _steps(cycles: Sequence[Cycle]) -> str:
    return " + ".join(f"{steps:,}" for steps, _ in cycles)


@torch.no_grad()
def measure(
    model: Network,
    processor: Processor,
    asked: Sequence[Question] | None = None,
    *,
    turns: int = TURNS,
    greedy: bool = False,
    seed: int = 0,
) -> Measured:
    """Accuracy of one conversation per (held-out) question, at temperature 1 or greedy, by transformers' own loop.

    A conversation of one turn has no tool. It is right if its last turn ends in the right shape between the tags.
    """
    chosen = list(questions("heldout") if asked is None else asked)
    shown = [[picture] for picture in map(picture_of, chosen)]
    looks: list[list[str]] = [[] for _ in chosen]
    said = [""] * len(chosen)
    going = list(range(len(chosen)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for turn in range(turns):
            texts = _say(model, processor, [(chosen[i], looks[i], shown[i]) for i in going], greedy)
            further = []
            for i, text in zip(going, texts, strict=True):
                said[i], quadrant = text, called(text)
                if turn + 1 < turns and quadrant in QUADRANTS:
                    shown[i].append(quadrant_of(shown[i][-1], quadrant))
                    looks[i].append(quadrant)
                    further.append(i)
            going = further
            if not going:
                break
    right = [
        text.endswith(f"{OPEN}{q.asked.shape}{CLOSE}") and text.count(OPEN) == 1
        for q, text in zip(chosen, said, strict=True)
    ]
    by_size = {
        size: [r for q, r in zip(chosen, right, strict=True) if q.asked.size == size] for size in ("small", "large")
    }
    shares = {size: sum(values) / len(values) for size, values in by_size.items()}
    return Measured(sum(right) / len(right), **shares, zooms=sum(map(bool, looks)) / len(looks))


def called(text: str) -> str | None:
    """The quadrant that a turn zooms into; None where it calls nothing that can be read."""
    found = re.fullmatch(r"<tool_call>(\{.*\})</tool_call>", text)
    try:
        return json.loads(found[1])["arguments"]["quadrant"] if found else None
    except (ValueError, KeyError, TypeError):
        return None


def _say(model: Network, processor: Processor, rows: Sequence[tuple], greedy: bool) -> list[str]:
    """The next turn of each conversation (question, looks, pictures)."""
    given = _read(processor, rows)
    drawn = model.eval().generate(
        **given,
        do_sample=not greedy,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return processor.tokenizer.batch_decode(drawn[:, given["input_ids"].shape[1] :], skip_special_tokens=True)


def _read(processor: Processor, rows: Sequence[tuple], begun: str = "") -> dict[str, Tensor]:
    """What the model is given of conversations, padded on the left; `begun`: what the next turn begins with."""
    texts = [
        processor.apply_chat_template(pretrain.messages(q.text, looks), add_generation_prompt=True, tokenize=False)
        + begun
        for q, looks, _ in rows
    ]
    seen = [picture for _, _, pictures in rows for picture in pictures]
    return dict(
        processor(
            text=texts,
            images=seen,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
    )


@dataclass(frozen=True)
class Aims:
    """What the model does where it is led along the right path, means over held-out questions by size.

    direct: the right shape, greedily, at once; looked: after two right zooms; look: probability of a call; first,
    second: of the right quadrant in a first and in a second call; again: of a second call after a right first one.
    """

    direct: dict[str, float]
    looked: dict[str, float]
    look: dict[str, float]
    first: dict[str, float]
    second: dict[str, float]
    again: dict[str, float]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Network, processor: Processor, asked: Sequence[Question]) -> "Aims":
        """Measured without drawing anything."""
        token = processor.tokenizer.convert_tokens_to_ids
        whole = [picture_of(q) for q in asked]
        paths = [q.asked.quadrants for q in asked]
        one = [quadrant_of(p, path[0]) for p, path in zip(whole, paths, strict=True)]
        two = [quadrant_of(p, path[1]) for p, path in zip(one, paths, strict=True)]
        begun = [
            [(q, (), [p]) for q, p in zip(asked, whole, strict=True)],
            [(q, path[:1], [p, a]) for q, path, p, a in zip(asked, paths, whole, one, strict=True)],
            [(q, path, [p, a, b]) for q, path, p, a, b in zip(asked, paths, whole, one, two, strict=True)],
        ]
        calls = call("?").partition("?")[0]

        def next_token(level: int, text: str) -> Tensor:
            given = _read(processor, begun[level], text)
            return model.eval()(**given).logits[:, -1].float().softmax(-1)

        shapes = torch.tensor([token(q.asked.shape) for q in asked])
        among = torch.tensor([token(shape) for shape in SHAPES])

        def right(level: int) -> Tensor:
            return (among[next_token(level, OPEN)[:, among].argmax(-1)] == shapes).float()

        def aim(level: int) -> Tensor:
            wanted = torch.tensor([token(path[level]) for path in paths])
            return next_token(level, calls).gather(1, wanted[:, None])[:, 0]

        def by_size(values: Tensor) -> dict[str, float]:
            small = torch.tensor([q.asked.size == "small" for q in asked])
            return {"small": values[small].mean().item(), "large": values[~small].mean().item()}

        speaks = token("<tool_call>")
        return cls(
            by_size(right(0)),
            by_size(right(2)),
            by_size(next_token(0, "")[:, speaks]),
            by_size(aim(0)),
            by_size(aim(1)),
            by_size(next_token(1, "")[:, speaks]),
        )

    def __str__(self) -> str:
        return (
            "  ".join(f"{name} {values['small']:.2f}/{values['large']:.2f}" for name, values in vars(self).items())
            + "  (small/large)"
        )


def describe(out: Path, *, steps: tuple[str, str]) -> Measured:
    """Measures the saved model and writes its model card."""
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(out)
    rows = {
        "with the tool, temperature 1": measure(model, processor),
        "with the tool, greedy": measure(model, processor, greedy=True),
        "without it, temperature 1": measure(model, processor, turns=1),
        "without it, greedy": measure(model, processor, turns=1, greedy=True),
    }
    number = sum(p.numel() for p in model.parameters())
    text = card(rows, Aims.of(model, processor, questions("heldout")), parameters=number, steps=steps)
    (out / "README.md").write_text(text, encoding="utf-8")
    return rows["with the tool, temperature 1"]
