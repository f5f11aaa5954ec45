"""Randomness is a function of whose it is and what it is for."""

import pytest
import torch

from flowrl.policies.noise import Key, copy_numbers, start_generators, step_noise, token_uniforms

CPU = torch.device("cpu")
KEYS = [Key(0, prompt, index) for prompt in ("a", "b") for index in range(3)]


def test_a_rows_noise_does_not_depend_on_its_batch() -> None:
    whole = step_noise(KEYS, 2, 0, (4, 5), CPU)
    assert whole.dtype == torch.float32
    for row, key in enumerate(KEYS):
        assert torch.equal(step_noise([key], 2, 0, (4, 5), CPU)[0], whole[row])
    assert torch.equal(step_noise(KEYS[::-1], 2, 0, (4, 5), CPU), whole.flip(0))
    assert torch.equal(
        torch.cat([step_noise(KEYS[:2], 2, 0, (4, 5), CPU), step_noise(KEYS[2:], 2, 0, (4, 5), CPU)]), whole
    )


@pytest.mark.parametrize(
    "other", [Key(1, "a", 0), Key(0, "b", 0), Key(0, "a", 1)], ids=["another seed", "another prompt", "another sample"]
)
def test_other_samples_draw_other_noise(other: Key) -> None:
    own = Key(0, "a", 0)
    assert own.number("step", 0, 0) != other.number("step", 0, 0)
    assert not torch.equal(step_noise([own], 0, 0, (8,), CPU), step_noise([other], 0, 0, (8,), CPU))
    a, b = (torch.randn(8, generator=generator) for generator in start_generators([own, other]))
    assert not torch.equal(a, b)


def test_steps_streams_and_starts_draw_apart() -> None:
    key = Key(0, "a", 0)
    draws = [step_noise([key], step, stream, (8,), CPU)[0] for step in range(3) for stream in range(2)]
    draws.append(torch.randn(8, generator=start_generators([key])[0]))
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_fields_of_a_key_do_not_run_into_each_other() -> None:
    numbers = {Key(1, "1", 1).number(1), Key(11, "1", 1).number(), Key(1, "11", 1).number(), Key(1, "1", 11).number()}
    assert len(numbers) == 4
    assert all(0 <= number < 2**63 for number in numbers)


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    step_noise(KEYS, 0, 0, (8,), CPU)
    start_generators(KEYS)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_uncorrelated_between_rows() -> None:
    noise = step_noise([Key(0, "a", index) for index in range(64)], 0, 0, (1024,), CPU)
    assert abs(float(noise.mean())) < 0.015  # 65,536 draws: four standard errors
    assert abs(float(noise.var()) - 1) < 0.025
    products = (noise @ noise.T / 1024).fill_diagonal_(0)
    assert float(products.abs().max()) < 0.16  # five standard errors


def test_numbers_of_tokens_belong_to_seed_prompt_and_index():
    keys = [Key(seed, prompt, index) for seed in (0, 1) for prompt in "ab" for index in (0, 1)]
    found = token_uniforms(keys, 5)
    assert found.dtype == torch.float64 and 0 <= found.min() <= found.max() < 1
    assert len({tuple(row.tolist()) for row in found}) == 8
    for row, key in zip(found, keys, strict=True):
        longer = token_uniforms([keys[3], key], 200)
        assert torch.equal(longer[1, :5], row)  # whatever the batch and the number that is asked for
    assert token_uniforms([], 5).shape == (0, 5)
    spread = token_uniforms([Key(0, "c", i) for i in range(100)], 100)
    assert abs(float(spread.mean()) - 0.5) < 0.01 and abs(float(spread.std()) - 12**-0.5) < 0.01


def test_equal_prompts_of_a_rollout_are_told_apart_and_the_first_keeps_its_name():
    assert copy_numbers(["a", "b", "a", "a", "b"]) == [0, 0, 1, 2, 1] and copy_numbers([]) == []
    assert Key(0, "a", 1).number("step", 3, 0) == Key(0, "a", 1, 0).number("step", 3, 0)
    assert len({Key(0, "a", 1, copy).number("start") for copy in range(4)}) == 4
    noise = step_noise([Key(0, "a", 0, copy) for copy in range(3)], 0, 0, (8,), CPU)
    assert len({tuple(row.tolist()) for row in noise}) == 3


def test_of_a_number_its_low_32_bits_count_as_a_seed():
    """As the docstrings say; the two were found by a search through the indices."""
    pair = [Key(0, "a", 5458), Key(0, "a", 8689)]
    one, other = (key.number("step", 0, 0) for key in pair)
    assert one != other and one % 2**32 == other % 2**32
    noise = step_noise(pair, 0, 0, (64,), CPU)
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(*step_noise(pair, 1, 0, (64,), CPU))
    assert not torch.equal(*step_noise([Key(1, key.prompt, key.index) for key in pair], 0, 0, (64,), CPU))
