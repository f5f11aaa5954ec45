"""Texts from files: finetuning and preferences of tokens, by hand and in the loop, and a cold start before GRPO."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cli_support import quiet
from flowrl.contracts import Prompt
from flowrl.core.objectives.texts import TextLikelihood, TextPairs
from flowrl.core.update import Settings
from flowrl.reading import pairs
from flowrl.reading.prompts import PromptError
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run
from language_support import alone, gradient_of, policy
from samplers.tokens import Generation

PROMPTS = [Prompt("a", "12+345"), Prompt("b", "7*8"), Prompt("c", "999-11+123456")]
TEXTS = [["357", "no 1"], ["<answer>56</answer>", "5"], ["1", "124444 or so"]]  # the better one first
PLAN = Generation(20)
MPO = TextPairs(beta=0.3, pair=0.8, bco=0.2, likelihood=1.0, smoothing=0.1)


def log_probs(subject, rollout) -> list[torch.Tensor]:
    """Of each row, of its tokens, by one forward a token without padding."""
    held = rollout.replay
    rows = []
    for i, length in enumerate(held.length.tolist()):
        tokens = held.tokens[i, :length].tolist()
        logits = alone(subject.model, held.prompts[i], tokens)
        rows.append(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0])
    return rows


def gradient(objective, micro: int | None, updates: int = 1) -> tuple[torch.Tensor, dict]:
    subject = policy()
    rollout = subject.given(PROMPTS, TEXTS, plan=PLAN)
    adv = torch.tensor([1.0, -1.0] * 3)
    return gradient_of(subject, rollout, adv, objective, Settings(2, micro_batch=micro, updates=updates))


@pytest.mark.parametrize("objective", [MPO, TextLikelihood("uncertain")])
def test_the_loss_is_the_published_one_whatever_the_cut(objective) -> None:
    subject = policy()
    rollout = subject.given(PROMPTS, TEXTS, plan=PLAN)
    assert rollout.samples.group.tolist() == [0, 0, 1, 1, 2, 2]
    rows = log_probs(subject, rollout)
    if isinstance(objective, TextPairs):
        ratio = [0.1 * (1 + i) * len(row) for i, row in enumerate(rows)]
        wanted = 0.0
        for i in (0, 2, 4):
            margin = torch.tensor(0.3 * (ratio[i] - ratio[i + 1]))
            dpo = -0.9 * functional.logsigmoid(margin) - 0.1 * functional.logsigmoid(-margin)
            bco = -functional.logsigmoid(torch.tensor(0.3 * ratio[i])) - functional.logsigmoid(
                torch.tensor(-0.3 * ratio[i + 1])
            )
            wanted += (0.8 * dpo + 0.2 * bco - rows[i].mean()) / 3
    else:
        every = torch.cat(rows)
        wanted = -(every.exp() * (1 - every.exp()) * every).mean()
    whole, metrics = gradient(objective, None)
    assert metrics["loss"] == pytest.approx(float(wanted), abs=1e-4)
    for micro in (1, 3, 4):
        torch.testing.assert_close(gradient(objective, micro)[0], whole, rtol=1e-5, atol=1e-6)
    if isinstance(objective, TextPairs):
        better = sum(float(-rows[i].mean()) * (len(rows[i]) + len(rows[i + 1])) for i in (0, 2, 4))
        assert metrics["likelihood"] == pytest.approx(better / sum(map(len, rows)), abs=1e-4)


def test_a_text_beyond_the_limit_is_cut() -> None:
    rollout = policy().given(PROMPTS[:1], [["123456789", "1"]], plan=Generation(5))
    assert rollout.samples.lengths.tolist() == [5, 2] and rollout.mask.sum(1).tolist() == [5, 2]


def written(folder: Path, *records: dict) -> Path:
    file = folder / "shown.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_columns_of_texts(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    read = pairs.load(str(written(tmp_path, {"prompt": "2+2", "chosen": chat, "rejected": "5"})))
    assert pairs.samples_of(read[0]) == (["4", "5"], [1.0, -1.0])
    read = pairs.load(str(written(tmp_path, {"prompt": "2+2", "completion": "4"})))
    assert pairs.samples_of(read[0]) == (["4"], [1.0])
    with pytest.raises(PromptError, match="a completion is ' '; accepted: a text that is not empty"):
        pairs.load(str(written(tmp_path, {"prompt": "2+2", "completion": " "})))


SMALL = ["train.prompts=4", "train.group=4", "train.updates=1", "train.iterations=null", "device=cpu", "threads=1"]
SMALL += ["eval.at_start=false", "eval.at_end=false", "eval.every=null", "generation.max_new_tokens=12"]


def test_a_cold_start_and_then_rewards(tmp_path: Path) -> None:
    shown = written(
        tmp_path, *({"prompt": f"{i}+{i}", "completion": f"<answer>{2 * i}</answer>"} for i in range(11, 19))
    )
    first = f"{{objective.loss: {{kind: sft}}, train.source: files, prompts.train: {shown}, train.group: 1}}"
    phases = f"phases=[{{iterations: 3, overrides: {first}}}, {{iterations: 2, reset: [reference, optimizer]}}]"
    run(load("tiny_lm_grpo", [*SMALL, phases, f"output={tmp_path / 'run'}"]), quiet())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == [1, 1, 1, 2, 2]
    assert rows[2]["likelihood"] < 0.8 * rows[0]["likelihood"] and "reward/exact/mean" not in rows[2]
    assert "likelihood" not in rows[3] and rows[3]["replay_gap_max"] < 5e-5 and "reward/exact/mean" in rows[3]


def test_right_answers_and_an_expert_stand_beside_the_objective(tmp_path: Path) -> None:
    shown = written(tmp_path, *({"prompt": f"{i}+{i}", "completion": f"{2 * i}"} for i in range(11, 14)))
    expert = f"objective.expert={{source: {shown}, prompts: 2, coef: {{0: 0.2, 2: 0.4}}}}"
    more = ["train.iterations=2", expert, "objective.right={least: 0.1}", f"output={tmp_path / 'run'}"]
    run(load("tiny_lm_grpo", [*SMALL, *more]), quiet())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["curve/objective.expert.coef"] for row in rows] == pytest.approx([0.2, 0.3])
    assert all(row["expert/likelihood"] > 0 and row["right/likelihood"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["objective.loss={kind: sft}"], "train.source: got 'rollouts', but sft is of texts that come with"),
        (["objective.loss={kind: nft}"], "objective.loss: got 'nft', a loss of noised samples, but `generation`"),
        (["objective.preset=mpo", "train.refill=1"], "train.refill: got 1, but objective.loss 'dpo' takes whole texts"),
        (["objective.preset=dpo", "objective.kl=0.1"], "objective.kl: got 0.1, but objective.loss is in the place of"),
        (["objective.loss={kind: dpo, phi: p}"], "objective.loss.phi: got 'p', but kind 'dpo' reads only beta"),
    ],
)
def test_what_does_not_go_with_texts_is_one_line(given: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("tiny_lm_grpo", given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_loss_of_texts_is_none_of_denoising_steps() -> None:
    with pytest.raises(RecipeError, match="got 'dpo', which is about texts, but the decisions here are denoising"):
        load("quickstart", ["objective.loss={kind: dpo}"])
