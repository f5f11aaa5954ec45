"""Randomness as an argument: every draw is a function of the sample that draws, never of batch, order, rank or worker.

A sample is named by (run seed, prompt id, sample index); its initial noise and the noise of each step come from
CPU generators seeded with a hash of that name, so that they agree on every device.

torch seeds its CPU generator, a Mersenne Twister, with the low 32 bits of a number. Two draws whose hashes agree in
these bits have the same noise: of n draws, n^2 / 2^33 pairs on average, about one among a hundred thousand.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Key:
    """Names one sample: the run's seed, the prompt's id, and the sample's index among those of that prompt.

    copy: which of the equal prompts of a rollout it is, counted from 0.
    """

    seed: int
    prompt: str
    index: int
    copy: int = 0

    def number(self, *what: int | str) -> int:
        """A number of 63 bits for one use of this sample, such as number("step", 3).

        As the seed of a generator on the CPU its low 32 bits count (see above), on a GPU all of them.
        """
        use = "".join([f"\x1f{part}" for part in what])
        copy = f"\x1fcopy {self.copy}" if self.copy else ""
        text = f"{self.seed}\x1f{self.prompt}\x1f{self.index}{use}{copy}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def copy_numbers(prompts: Iterable[str]) -> list[int]:
    """For each id, how many prompts before it have the same id: the `copy` of its keys."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += 1
    return numbers


def group_keys(seed: int, prompts: Sequence[str], members: Sequence[int]) -> list[list[Key]]:
    """For each id, the keys of its samples of these indices."""
    copy = copy_numbers(prompts)
    return [[Key(seed, prompt, i, copy[at]) for i in members] for at, prompt in enumerate(prompts)]


def start_generators(keys: Sequence[Key]) -> list[torch.Generator]:
    """One generator per row, for everything a pipeline draws outside its steps: initial noise, image latents."""
    return [torch.Generator().manual_seed(key.number("start")) for key in keys]


@dataclass
class GlobalGeneratorUse:
    """Whether torch's global generators were used or seeded."""

    seen: bool = False


@contextlib.contextmanager
def global_noise(key: Key, device: torch.device, use: GlobalGeneratorUse | None = None) -> Iterator[None]:
    """Within, torch's global generators are seeded by `key`; afterwards their state is restored.

    For pipelines that draw something without their `generator`, such as the posterior of an autoencoder (JoyImageEdit);
    `use` records it.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.random.default_generator.manual_seed(key.number("global"))
        if gpus:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key.number("global"))
        before = _global_states(gpus)
        try:
            yield
        finally:
            if use is not None and not all(map(torch.equal, before, _global_states(gpus))):
                use.seen = True


def _global_states(gpus: Sequence[torch.device]) -> list[Tensor]:
    return [torch.random.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]


def step_noise(
    keys: Sequence[Key], step: int, stream: int, shape: Sequence[int], device: torch.device, *, use: str = "step"
) -> Tensor:
    """Standard normal noise, float32 [len(keys), *shape], of one step; `stream` tells video from audio latents.

    use: what it is drawn for; different uses are independent.
    """
    generator = torch.Generator()
    noise = torch.empty((len(keys), *shape))
    for row, key in zip(noise, keys, strict=True):
        row.normal_(generator=generator.manual_seed(key.number(use, step, stream)))
    return noise.to(device)


def token_uniforms(keys: Sequence[Key], number: int) -> Tensor:
    """Uniform numbers of [0, 1), float64 [len(keys), number]: number k of a row draws token k of that sample."""
    generator = torch.Generator()
    rows = [torch.rand(number, generator=generator.manual_seed(k.number("tokens")), dtype=torch.float64) for k in keys]
    return torch.stack(rows) if rows else torch.zeros(0, number, dtype=torch.float64)
