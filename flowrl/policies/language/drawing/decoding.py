"""Forward passes of a causal language model: token by token with a key-value cache, and teacher-forced.

Prompts are padded on the left, so that every row's next token is in the last column; the attention mask hides the
padding, and position ids count from each row's first real token. A row's result is then that of the row alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Progress
from flowrl.policies.language.drawing.forwards import Beside, beside, forward, left_padded
from flowrl.policies.language.drawing.heads import Head, states
from flowrl.policies.language.drawing.prefixes import holds_tokens
from flowrl.policies.language.drawing.reading import Reading, read
from flowrl.policies.language.drawing.static_cache import StaticCache, StaticReading
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.policies.language.media.inputs import Inputs
from flowrl.untyped import LanguageModel
from samplers.tokens import Generation, Logits, States, draw, penalised, token_entropy, token_logp, token_squares

ADMITTED = 4  # rows are read into free places once these are that part of all: reading and joining cost, too


# is told which rows (positions int64) have drawn their last token, where they stand in the reading, and the reading
Leave = Callable[[Tensor, Tensor, Reading], None]
# is told how many rows are at work; gives further ones that have been read, and which they are, or None
More = Callable[[int], tuple[Reading, Tensor] | None]


def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    plan: Generation,
    *,
    group: int,
    stop: Stop,
    pad: int,
    progress: Progress | None = None,
    entropy: Tensor | None = None,
    squares: Tensor | None = None,
    inputs: Sequence[Inputs] | None = None,
    barred: Sequence[int] = (),
    slots: int | None = None,
    static: StaticCache | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens int64 [R, K], log-probs float32 [R, K], lengths int64 [R]) of `group` completions per prompt, on the CPU.

    uniforms float64 [R, K] decide the draws. A completion ends with what `stop` says, which it includes, or after
    K = plan.max_new_tokens. A prompt is read once for its group, and a row that has ended is not computed further.
    entropy and squares float32 [R, K], where given, are filled in, of the distribution that each token is scored under:
    its entropy in nats, and the sum of its squared probabilities. inputs: the media of each prompt, see `read`.
    barred: tokens that are never drawn. slots: at most so many rows at once (None: all); further ones take the places
    of those that have ended, for models whose caches can be joined (prefixes.py). static: what keeps keys and values
    in buffers of fixed size, see `StaticReading`; None: in caches that grow.
    """
    rows, begun, slots = len(uniforms), 0, min(slots or len(uniforms), len(uniforms))
    longest = max(len(prompt) for prompt in prompts) + plan.max_new_tokens
    buffers = None if static is None else static.buffers(model, slots, longest)

    def admit(number: int) -> tuple[Reading, Tensor]:
        nonlocal begun
        new = torch.arange(begun, min(begun + number, rows))
        begun += len(new)
        own = range(int(new[0]) // group, int(new[-1]) // group + 1)
        shown = None if inputs is None else [inputs[i] for i in own]
        reading = read(model, [prompts[i] for i in own], pad=pad, inputs=shown)
        index = (new // group - own.start).to(model.device)
        if buffers is not None:
            return StaticReading(reading, index, buffers), new
        reading.select(index)
        return reading, new

    def more(at_work: int) -> tuple[Reading, Tensor] | None:
        free = slots - at_work
        return admit(free) if begun < rows and free >= (max(slots // ADMITTED, 1) if joinable else slots) else None

    reading, alive = admit(slots)
    joinable = buffers is not None or slots >= rows or holds_tokens(reading.cache, reading.attention)
    begin, until = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), plan.max_new_tokens)
    return draw_on(
        model,
        reading,
        uniforms,
        begin,
        until,
        plan,
        stop=stop,
        pad=pad,
        progress=progress,
        entropy=entropy,
        squares=squares,
        barred=barred,
        alive=alive,
        more=None if slots >= rows else more,
    )


@torch.no_grad()
def draw_on(
    model: LanguageModel,
    reading: Reading,
    uniforms: Tensor,
    begin: Tensor,
    until: Tensor,
    plan: Generation,
    *,
    stop: Stop,
    pad: int,
    progress: Progress | None = None,
    entropy: Tensor | None = None,
    squares: Tensor | None = None,
    leave: Leave | None = None,
    barred: Sequence[int] = (),
    alive: Tensor | None = None,
    more: More | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, log-probs, lengths) as `decode`, of rows that have been read: each goes on at a column of its own.

    begin int64 [R]: the column of a row's next token; what stands before it is left blank. until int64 [R], above
    begin: where it stops at the latest. leave: see `Leave`; the cache then holds all of a row but its last token.
    barred: tokens that are never drawn, though they keep their probability in what is scored. alive: the rows that the
    reading holds, int64 (None: all); more: gives the others, as places become free.
    """
    device = model.device
    tokens = torch.full(uniforms.shape, pad)
    logp, length = torch.zeros(uniforms.shape), begin.clone()
    ending = torch.tensor(sorted(stop), device=device)
    alive = torch.arange(len(uniforms)) if alive is None else alive
    seen = _said(reading) if plan.repetition_penalty != 1 else None
    while True:
        at, logits = (alive, length[alive]), reading.logits
        told = logits if seen is None else penalised(logits, seen, plan.repetition_penalty)
        if len(barred):
            told = told.index_fill(1, torch.tensor(barred, device=device), -torch.inf)
        token = draw(told, uniforms[at].to(device, torch.float32 if device.type == "mps" else None), plan)
        tokens[at] = token.cpu()
        logp[at] = token_logp(logits[:, None], token[:, None], plan.scale)[:, 0].cpu()
        if entropy is not None:
            entropy[at] = token_entropy(logits[:, None], plan.scale)[:, 0].cpu()
        if squares is not None:
            squares[at] = token_squares(logits[:, None], plan.scale)[:, 0].cpu()
        length[alive] += 1
        if progress is not None:
            progress(len(alive))
        within = length[alive] < until[alive]
        if stop.texts:
            within &= ~_written(stop, tokens, begin, length, alive)
        going = ~torch.isin(token, ending) & within.to(device)
        if leave is not None and not going.all():
            left = (~going).nonzero()[:, 0]
            leave(alive[left.cpu()], left, reading)
        if not going.any():
            if more is None or (fresh := more(0)) is None:
                return tokens, logp, length
            reading, alive = fresh
            seen = None if seen is None else _said(reading)
            continue
        if not going.all():
            index = going.nonzero()[:, 0]
            reading.keep(index)
            token, alive = token[index], alive[index.cpu()]
            seen = None if seen is None else seen[index]
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        reading.step(model, token)
        if more is not None and (fresh := more(len(alive))) is not None:
            reading.join(fresh[0])
            alive = torch.cat([alive, fresh[1]])
            seen = None if seen is None else torch.cat([seen, _said(fresh[0])])


def _said(reading: Reading) -> Tensor:
    """Which tokens the contexts of a reading hold, bool [R, V]."""
    seen = torch.zeros(reading.logits.shape, dtype=torch.bool)
    for row, context in zip(seen, reading.contexts, strict=True):
        row[list(context)] = True
    return seen.to(reading.logits.device)


def _written(stop: Stop, tokens: Tensor, begin: Tensor, length: Tensor, rows: Tensor) -> Tensor:
    """Which of these rows have written a text that ends them with their last token, bool [r]."""
    return torch.tensor([stop.written(tokens[i, begin[i] : length[i]].tolist()) for i in rows.tolist()])


def decode_alone(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    plan: Generation,
    *,
    group: int,
    entropy: Tensor | None = None,
    squares: Tensor | None = None,
    inputs: Sequence[Inputs] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`decode` of each row by itself, prompt and all, so that a row is the same bits whatever it is drawn with."""
    rows = []
    for i in range(len(uniforms)):
        kept = {"entropy": entropy, "squares": squares}
        own: dict[str, Any] = {name: None if value is None else value[i : i + 1] for name, value in kept.items()}
        own["inputs"] = None if inputs is None else [inputs[i // group]]
        rows.append(decode(model, [prompts[i // group]], uniforms[i : i + 1], plan, group=1, **own, **options))
    tokens, logp, length = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return tokens, logp, length


def teacher_forced(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    length: Tensor,
    *,
    pad: int,
    head: Head | None = None,
    inputs: Sequence[Inputs] | None = None,
) -> Logits:
    """Logits [r, T, V] that each of the first T = max(length) tokens [r, K] of the completions was drawn from.

    head: of `head_of`; logits are then left to be made of the states before it. inputs: the media of each row, of its
    prompt and of what it was given since; None for a model that reads text alone.
    """
    width = int(length.max())
    ids, attention, shown = whole_rows(model, prompts, tokens, length, pad, inputs)
    if head is None:
        return forward(model, ids, attention, width, shown=shown)
    return States(states(model, ids, attention, width, shown), head.module, head.size)


def whole_rows(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    length: Tensor,
    pad: int,
    inputs: Sequence[Inputs] | None,
) -> tuple[Tensor, Tensor, Beside | None]:
    """(ids, attention mask, what goes beside them) of prompts with all tokens but the last column of the longest."""
    width = int(length.max())
    ids, attention = left_padded(prompts, pad, model.device)
    drawn = tokens[:, :width].to(model.device)
    valid = (torch.arange(width) < length[:, None]).long().to(model.device)
    ids, attention = torch.cat([ids, drawn], 1), torch.cat([attention, valid], 1)
    ids, attention = ids[:, :-1], attention[:, :-1]
    lists = zip(prompts, tokens.tolist(), length.tolist(), strict=True)
    contexts = [] if inputs is None else [[*prompt, *row[:number]] for prompt, row, number in lists]
    return ids, attention, beside(model, contexts, inputs, attention)
