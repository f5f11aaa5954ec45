"""The step of a token with a static cache: a few sizes, one graph for all, and what a recorded one reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_support as vision
from flowrl.build import build_policy
from flowrl.policies.compiling import Compiled, uncompiled
from flowrl.policies.language.drawing import static_steps
from flowrl.policies.language.drawing.static_cache import rung
from flowrl.recipe.load import load
from language_support import PROMPTS, model, policy
from samplers.tokens import Generation
from static_support import Watched, assert_same, filled, static

PLAN = Generation(24)


@pytest.fixture(autouse=True)
def plainly() -> Iterator[None]:
    """Steps run as they are written, except where a test is about compiling them."""
    with uncompiled():
        yield


def test_sizes_come_from_a_short_ladder(monkeypatch: pytest.MonkeyPatch):
    assert [rung(n, 2) for n in (1, 3, 4, 5, 7, 9, 13, 17, 192, 193)] == [2, 3, 4, 6, 8, 12, 16, 24, 192, 256]
    assert [rung(n, 64) for n in (1, 65, 97, 129, 500)] == [64, 96, 128, 192, 512]
    seen: list[tuple[int, ...]] = []
    run = static_steps.step

    def noted(*given: Any) -> Any:
        seen.append((given[3].shape[0], given[5][0][0].shape[2]))
        return run(*given)

    monkeypatch.setattr(static_steps, "compiled", lambda backend: noted)
    made = model()
    made.generation_config.eos_token_id = [3, *range(8, 110, 25)]
    subject = static(policy(made, max_rows=7))
    subject.prepare(PROMPTS[0], PLAN)
    seen.clear()
    lengths = subject.rollout(PROMPTS, group_size=4, plan=Generation(90), seed=3).replay.length
    sizes = list(dict.fromkeys(seen))
    assert {rows for rows, _ in sizes} <= {2, 3, 4, 6, 7} and {columns for _, columns in sizes} == {64, 96, 112}
    assert sizes[-1][0] < 7 == sizes[0][0] and int(lengths.max()) > 64
    assert sum(rows for rows, _ in seen) < 7 * len(seen)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_serves_all_sizes_and_weights(backend: str):
    """After the first step nothing is compiled, whatever the number of rows and their lengths, as weights change."""
    subject, before = static(policy(model()), backend), Compiled.now()
    whole = policy(subject.model).rollout(PROMPTS, group_size=4, plan=PLAN, seed=3)
    torch.compiler.reset()
    with torch.compiler.set_stance("default"):
        subject.prepare(PROMPTS[0], PLAN)
        assert Compiled.now().since(before) == Compiled(1, 0)
        assert_same(subject.rollout(PROMPTS, group_size=4, plan=PLAN, seed=3), whole)
        with torch.no_grad():
            for parameter in subject.model.parameters():
                parameter.mul_(1.01)
        subject.rollout(PROMPTS[:1], group_size=3, plan=Generation(80), seed=3)
        subject.max_rows = 5
        subject.rollout(PROMPTS, group_size=3, plan=Generation(80), seed=3)
    assert Compiled.now().since(before) == Compiled(1, 0)
    torch.compiler.reset()


class Recorded:
    """What a CUDA graph is, without one: a step on the tensors of when it was recorded, into the same memory."""

    def __init__(self, steps: static_steps.Steps, inputs: static_steps.StepInputs):
        self.step, self.replays = lambda: steps._run(inputs), 0
        self.logits = self.step().clone()

    def replay(self) -> None:
        self.replays += 1
        self.logits.copy_(self.step())


@pytest.mark.parametrize("name", ["text", "qwen2_5_vl"])
def test_a_step_that_was_recorded_finds_its_inputs_where_they_were(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As sizes come and go, rows join, and positions are those of pictures."""
    made: list[Recorded] = []

    def recorded(steps: static_steps.Steps, inputs: static_steps.StepInputs) -> tuple[Recorded, torch.Tensor]:
        made.append(Recorded(steps, inputs))
        return made[-1], made[-1].logits

    monkeypatch.setattr(static_steps.Steps, "_recorded", recorded)
    monkeypatch.setattr(static_steps.Steps, "__call__", static_steps.Steps._replayed)
    if name == "text":
        network, prompts, plan = model(), PROMPTS, Generation(80)
        network.generation_config.eos_token_id = [3, *range(8, 110, 25)]
        plain, subject = policy(network), static(policy(network, max_rows=5))
    else:
        folder, prompts, plan = vision.folder(tmp_path / "m", name), vision.prompts(tmp_path), PLAN
        plain, subject = vision.policy(folder), static(vision.policy(folder, max_rows=4))
    whole = plain.rollout(prompts, group_size=4, plan=plan, seed=3)
    subject.prepare(prompts[0], plan)
    made.clear()
    assert_same(subject.rollout(prompts, group_size=4, plan=plan, seed=3), whole)
    steps = filled(subject)[-1].steps
    assert len(steps.graphs) == len(made) >= 3 and sum(one.replays for one in made) > 10
    assert all(steps.runs[size] == static_steps.RUNS for size in steps.graphs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("more", [[], ["rollout.merge=true"], ["train.rollout_batch=5"]])
def test_a_gpu_replays_graphs_and_draws_the_same_rows(more: list[str]):
    """Of weights that change between rollouts; sizes are recorded once they have come twice, and hardly any is not."""
    subject, own = build_policy(load("tiny_lm_grpo", ["device=cuda", *more])), Watched()
    with torch.compiler.set_stance("default"):
        for number in range(3):
            rollouts = []
            for subject.static in (None, own):
                rollouts.append(subject.rollout(PROMPTS, group_size=4, plan=Generation(40), seed=number))
            assert_same(rollouts[1], rollouts[0], 1e-4)
            steps = own.made[-1].steps
            assert steps.graphs and set(steps.graphs) <= set(steps.runs)
            assert all(steps.runs[size] == static_steps.RUNS for size in steps.graphs)
            with torch.no_grad():
                for at, parameter in enumerate(subject.trainable()):
                    parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(at)).cuda()
