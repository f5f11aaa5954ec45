"""What is drawn and what it is drawn for: prompts, samples, rollouts; and the rewards that score samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowrl.contracts.conversations import Conversation

Message = dict[str, str]  # {"role": system, user or assistant, "content": a text}
Steps = tuple[tuple[int, float], ...]  # (where a step ends, counted in characters of its text, what it is worth)


@dataclass(frozen=True)
class Prompt:
    """What one group of samples is drawn for.

    `meta` is the reward's ground truth, `media` paths of inputs, `call` the pipeline's arguments, Paths for files.
    `messages`: of a conversation, all that was said so far, of which `text` is the end; empty for a single text.
    """

    id: str
    text: str
    media: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Finished samples, the only thing a reward sees.

    prompts has length B; group int64 [B] says which samples were drawn for the same prompt. One of images float
    [B, 3, H, W] in [0, 1], video float [B, T, 3, H, W] in [0, 1], audio float [B, C, T] with full scale at -1 and 1 or
    texts (length B) is given; audio may also go along with a video. sample_rate: samples of audio a second. Where
    decisions are drawn until one of them ends the sample: lengths int64 [B], how many there are, and truncated bool
    [B], whether their limit ended it instead. given: of each text the parts that the model did not draw, such as a
    hint; None where it drew everything. talks: of each sample the conversation that it came of, where there were
    several turns; its text is then that of the model's last turn, and lengths counts what the model drew. steps: by
    reward, of each sample its scored steps, filled in by the scorer for rewards that give `StepScores`. contrast: by
    reward, float [B], the mean of what it gave to further samples of the same prompt that were drawn under other
    pictures, and are not among these; NaN where there are none, nothing where none were drawn.
    """

    prompts: Sequence[Prompt]
    group: Tensor
    images: Tensor | None = None
    video: Tensor | None = None
    texts: Sequence[str] | None = None
    lengths: Tensor | None = None
    truncated: Tensor | None = None
    audio: Tensor | None = None
    sample_rate: int | None = None
    given: Sequence[str] | None = None
    talks: "Sequence[Conversation] | None" = None
    steps: dict[str, list[Steps]] = field(default_factory=dict)
    contrast: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def readable(self) -> list[str]:
        """The texts as they are shown to people: of a conversation all of it; none without texts."""
        return list(self.texts or ()) if self.talks is None else [talk.readable() for talk in self.talks]

    def __getitem__(self, index: Sequence[int]) -> "Samples":
        """The samples at these positions, as a Samples."""
        at = torch.as_tensor(list(index), dtype=torch.int64)
        return Samples(
            prompts=[self.prompts[i] for i in index],
            group=self.group[at],
            images=_at(self.images, at),
            video=_at(self.video, at),
            audio=_at(self.audio, at),
            sample_rate=self.sample_rate,
            texts=None if self.texts is None else [self.texts[i] for i in index],
            lengths=_at(self.lengths, at),
            truncated=_at(self.truncated, at),
            given=None if self.given is None else [self.given[i] for i in index],
            talks=None if self.talks is None else [self.talks[i] for i in index],
            steps={name: [of[i] for i in index] for name, of in self.steps.items()},
            contrast={name: values[at] for name, values in self.contrast.items()},
        )


def _at(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index.to(values.device)]


@dataclass(frozen=True)
class Credit:
    """How the rewards of samples reach rows, where rows are not samples. P prompts have r rows and l samples each.

    weights float32 [P or 1, V, r, l]: row i takes in view v the sum of weights[:, v, i] times the rewards of its
    prompt's samples; the advantages of the V views add up. peers int64 [r]: rows of a prompt with equal numbers are
    compared. by_row False: samples are compared within their prompt, and rows take the weighted sum of the advantages.
    """

    weights: Tensor
    peers: Tensor
    by_row: bool = True


@dataclass
class Rollout:
    """Samples and all that training on them needs.

    rollout_logp float32 [R, K]: log-probabilities under the policy that sampled. mask bool [R, K]: decisions that are
    trained. replay: what the policy stored for itself, opaque to everybody else. reference float32 [R, K]: log-probs
    under the reference policy, once core/backward.py has filled them in. credit: how the samples' rewards reach the
    rows; None where row i is sample i. step_stats: further numbers of each decision, float32 [R, K], by name, where the
    policy has any: of a denoising step `std`, its standard deviation, and `dt` < 0, its length in noise level; of a
    token `entropy`, in nats, of the distribution that it is scored under, `squares`, the sum of its squared
    probabilities, `node`, the number of its segment within the trees of its prompt (rows share the tokens of a
    segment), `tree`, that of its tree, and `value`, what is to be expected of where its segment begins, or what a
    search found its segment to be worth; `age`, how many iterations ago it was drawn. baseline: float32 [B] by name,
    what each reward gave to the sample that the model holds for likeliest for the same prompt, where advantages ask.
    value, returns float32 [R, K]: what a critic expects before each decision, and what it is fitted to, where there is
    one (core/values.py); returns are NaN in rows that could not be scored.
    counts int64 [R]: how often each row counts in the loss, where rows were drawn anew from what was sampled (None:
    once).
    own bool [R]: rows whose `replay` is in this process, where several train together; None: all are.
    roles int64 [R]: of several, which one a row belongs to; each has weights of its own, and a loss that is a mean over
    its rows. None: there is one.
    old_logp float32 [R, K]: log-probs under the weights that train, before the first update, once core/backward.py has
    filled them in, where an objective corrects for a policy that sampled otherwise.
    shown float32 [R, K]: log-probs under the same weights beside other pictures (`View.shown`), NaN in rows that have
    none, once core/backward.py has filled them in.
    """

    samples: Samples
    rollout_logp: Tensor
    mask: Tensor
    replay: Any
    reference: Tensor | None = None
    credit: Credit | None = None
    step_stats: dict[str, Tensor] = field(default_factory=dict)
    baseline: dict[str, Tensor] | None = None
    value: Tensor | None = None
    returns: Tensor | None = None
    old_logp: Tensor | None = None
    roles: Tensor | None = None
    counts: Tensor | None = None
    own: Tensor | None = None
    shown: Tensor | None = None


class NoTruth(ValueError):
    """A prompt lacks what a reward has to know of it; the text says what, and what is accepted.

    Rewards of texts raise it also for a text that is empty, so that a data set is refused before weights are loaded.
    """


@dataclass(frozen=True)
class StepScores:
    """What a process reward gives in place of [B]: of each sample the steps of its text, and what each is worth.

    A step is (end, value): end in [1, len(text)], how many characters of `Samples.texts` there are up to its last one,
    never falling from step to step. NaN, or None in place of a sample's steps: it could not be scored. A sample may
    have no step. Such a reward says so by its return annotation, `-> StepScores`.
    """

    steps: Sequence[Sequence[tuple[int, float]] | None]


class Reward(Protocol):
    """Scores samples: float32 [B]. NaN marks "could not be scored"; an error is never turned into a number."""

    def __call__(self, samples: Samples) -> "Tensor | StepScores":
        """The scores, one a sample, or those of its steps."""
        ...
