"""shapes-vlm: a LLaVA (arXiv:2304.08485) of transformers that says whether a picture shows a caption.

Its image tower is that of shapes-clip, its language model a Llama of three layers. It is trained on one question, that
of VQAScore (arXiv:2404.01291), and learns the first token of the answer.
"""

import random
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flowrl.untyped import Network, Processor
from flowrl.worlds import llava
from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.judges.clip import MEAN, PATCH, STD, TOWER, normalise
from flowrl.worlds.shapes.judges.lookalikes import contents, lookalikes, paraphrase
from flowrl.worlds.shapes.judges.pool import PicturePool, spoil
from flowrl.worlds.shapes.render import SIZE
from flowrl.worlds.shapes.tokenizers import words
from flowrl.worlds.stage import Cycle, Stage

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
PHRASES = ("Does this figure show", "Please answer yes or no.")  # one token each
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN, LAYERS = 96, 3
BATCH, ASKED = 32, 2  # pictures, and captions right and wrong for each


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the world and of the question; other text falls back on characters."""
    question = [w for w in QUESTION.replace('"{}"?', "").replace(".", "").split()]
    known = list(dict.fromkeys([*words(), *question, "Yes", "No", '"', '"?', "'", ".", ",", "?", "!", "-"]))
    pieces = [(token, 0.0) for token in SPECIAL] + [(word, -2.0) for word in known]
    pieces += [(c, -6.0) for c in string.ascii_letters + string.digits if c not in known]
    raw = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "isolated")]
    )
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    raw.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **named)


def make_processor() -> LlavaProcessor:
    """Tokenizer, pictures at their own size, and chat template."""
    return llava.processor_of(make_tokenizer(), TEMPLATE, side=SIZE, patch=PATCH, resample=3, mean=MEAN, std=STD)


def make_model(processor: Processor, eye: Network) -> LlavaForConditionalGeneration:
    """A model whose image tower is that of the CLIP `eye` and whose rest is untrained; its caller seeds torch."""
    tower = TOWER, len(eye.transformer.resblocks)
    model = llava.untrained(processor, side=SIZE, tower=tower, language=(HIDDEN, LAYERS), length=128)
    model.model.vision_tower.load_state_dict(_transformers_names(eye, model.model.vision_tower.state_dict()))
    return model


def _transformers_names(eye: Network, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an image tower of open_clip under the names that transformers gives them."""
    held = eye.state_dict()
    prefix = next(iter(wanted)).split("embeddings.")[0]
    renamed = {
        "embeddings.class_embedding": held["class_embedding"],
        "embeddings.patch_embedding.weight": held["conv1.weight"],
        "embeddings.position_embedding.weight": held["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        renamed[f"pre_layrnorm.{kind}"] = held[f"ln_pre.{kind}"]
        renamed[f"post_layernorm.{kind}"] = held[f"ln_post.{kind}"]
        for i in range(len(eye.transformer.resblocks)):
            old, new = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            for name, part in zip("qkv", held[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                renamed[f"{new}.self_attn.{name}_proj.{kind}"] = part
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            pairs |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            renamed |= {f"{new}.{b}.{kind}": held[f"{old}.{a}.{kind}"] for a, b in pairs.items()}
    return {prefix + name: tensor.clone() for name, tensor in renamed.items()}


class QuestionTokens:
    """Turns captions into token ids with the processor's chat template, and caches them."""

    def __init__(self, processor: Processor):
        self.processor, self.known = processor, {}
        read = processor.tokenizer.convert_tokens_to_ids
        self.yes, self.no, self.pad = read("yes"), read("no"), processor.tokenizer.pad_token_id

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T], padded on the right, and lengths [N]."""
        rows = [self._row(caption) for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.pad)
        for row, place in zip(rows, ids, strict=True):
            place[: len(row)] = row
        return ids, lengths

    def _row(self, caption: str) -> Tensor:
        if caption not in self.known:
            content = [{"type": "image"}, {"type": "text", "text": QUESTION.format(caption)}]
            chat = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            text = text.replace("<image>", "<image>" * (SIZE // PATCH) ** 2)
            self.known[caption] = torch.tensor(self.processor.tokenizer(text).input_ids)
        return self.known[caption]


def answer_logits(
    model: Network, asker: QuestionTokens, images: Tensor, index: Tensor, captions: Sequence[str]
) -> Tensor:
    """Logits [N, vocabulary] of the first token of the answer about images[index] and each caption.

    images: [B, 3, 32, 32] in [0, 1]; each is encoded once, whatever the number of questions.
    """
    seen = model.model.get_image_features(normalise(images), vision_feature_layer=-1).pooler_output
    features = torch.stack(list(seen))[index]
    ids, lengths = asker(captions)
    embedded = model.get_input_embeddings()(ids)
    at = ids == model.config.image_token_id
    embedded = embedded.masked_scatter(at[..., None], features)
    there = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    states = model.model.language_model(inputs_embeds=embedded, attention_mask=there).last_hidden_state
    return model.lm_head(states[torch.arange(len(ids)), lengths - 1])


def train(
    model: Network,
    processor: Processor,
    pool: PicturePool,
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    report: Callable[[int], str] | None = None,
) -> None:
    """Fits the model on questions about the pool, its image tower frozen; resumes from `path`."""
    asker = QuestionTokens(processor)
    model.model.vision_tower.requires_grad_(False)
    learns = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model, model.lm_head])
    stage = Stage("shapes-vlm", learns, path, cycles=cycles, lr=1.5e-3, average=0.99)

    def loss(step: int) -> Tensor:
        index, questions = draw(pool, seed * 1_000_003 + step)
        images, _ = spoil(pool.images[index], seed * 1_000_003 + step, 0.3)
        logits = answer_logits(
            model, asker, images, torch.tensor([k for k, _, _ in questions]), [c for _, c, _ in questions]
        )
        return functional.cross_entropy(
            logits, torch.tensor([asker.yes if right else asker.no for _, _, right in questions])
        )

    stage.run(loss, report, every=500)
    stage.swap()
    model.eval()


def draw(pool: PicturePool, seed: int) -> tuple[Tensor, list[tuple[int, str, bool]]]:
    """Pictures int64 [B] and questions: (place of the picture, caption, whether it shows that).

    About half of the answers are yes. Wrong captions are those that a picture was drawn for and does not show, those
    that it nearly shows, and those of other pictures.
    """
    rng = random.Random(seed)
    index = [rng.randrange(len(pool)) for _ in range(BATCH)]
    questions: list[tuple[int, str, bool]] = []
    for k, i in enumerate(index):
        scene, asked = pool.scenes[i], pool.asked[i]
        wrong: list[Scene] = [] if asked is None else [asked]
        if scene is not None:
            questions += [(k, paraphrase(scene, rng).caption, True) for _ in range(ASKED)]
            other = pool.scenes[rng.randrange(len(pool))]
            if other is not None and contents(other) != contents(scene):
                wrong.append(other)
            wrong += lookalikes(scene, max(0, ASKED - len(wrong)), rng, seen=True)
        questions += [(k, w.caption, False) for w in wrong]
    return torch.tensor(index), questions


@torch.no_grad()
def probabilities(model: Network, processor: Processor, images: Tensor, captions: Sequence[str]) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of each picture [N, 3, 32, 32] and its caption, float32 [N]."""
    asker, parts = QuestionTokens(processor), []
    for start in range(0, len(captions), 200):
        part = images[start : start + 200]
        logits = answer_logits(model, asker, part, torch.arange(len(part)), captions[start : start + 200])
        parts.append(torch.sigmoid(logits[:, asker.yes] - logits[:, asker.no]))
    return torch.cat(parts)


def calibrate_temperature(probability: Tensor, labels: Tensor) -> float:
    """The temperature, 0.25 to 4, that minimises the cross entropy of logits divided by it (arXiv:1706.04599).

    probability, labels: [N].
    """
    logits = torch.logit(probability.double().clamp(1e-6, 1 - 1e-6))
    tried = torch.logspace(-0.6, 0.6, 121, dtype=torch.float64)
    losses = [functional.binary_cross_entropy_with_logits(logits / t, labels.double()).item() for t in tried]
    return tried[losses.index(min(losses))].item()


def save(model: Network, processor: Processor, out: Path) -> None:
    """Writes the model in float16 and the processor, in transformers' format."""
    model.half().save_pretrained(out)
    model.float()
    processor.save_pretrained(out)


def load(folder: Path) -> tuple[Network, Processor]:
    """The saved model in float32 and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)
