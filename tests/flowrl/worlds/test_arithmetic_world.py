"""The arithmetic world: its split, its documents, its tokenizer, its pretraining and the model that ships."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from flowrl import names
from flowrl.reading import prompts
from flowrl.worlds.arithmetic import build, pretrain
from flowrl.worlds.arithmetic.corpus import CLOSE, HASTY, OPEN, SHARES, document, hasty, working
from flowrl.worlds.arithmetic.model import make_model, make_tokenizer
from flowrl.worlds.arithmetic.problems import (
    NUM_HELDOUT,
    NUM_TRAIN,
    SIGNS,
    Problem,
    draw,
    draw_train_problem,
    heldout_problems,
    train_problems,
)
from reward_models.answers import answer_format, exact_match

ASSET = names.MODELS["arithmetic-qwen2"]


def operands(problems) -> set:
    return {(p.kind, frozenset((p.a, p.b))) for p in problems}


def test_held_out_problems_are_in_no_training_prompt_and_no_document():
    heldout, train = heldout_problems(), train_problems()
    assert len(operands(heldout)) == len(heldout) == sum(NUM_HELDOUT.values())
    assert len(operands(train)) == len(train) == sum(NUM_TRAIN.values())
    assert not operands(heldout) & operands(train)
    rng = random.Random(0)
    assert not operands(heldout) & operands(draw_train_problem(rng) for _ in range(20_000))
    plain = random.Random(0)  # without the guard they would be met
    assert operands(heldout) & operands(draw(plain.choice(list(SIGNS)), plain) for _ in range(20_000))


def test_prompts_carry_their_answers():
    for split, problems in (("train", train_problems()), ("heldout", heldout_problems())):
        found = prompts.load(f"arithmetic/{split}")
        assert [p.text for p in found] == [p.text for p in problems] and len({p.id for p in found}) == len(found)
        assert all(int(p.meta["answer"]) == eval(p.text) >= 0 for p in found)
        assert {p.meta["kind"] for p in found} == {"add", "sub", "mul"}


@pytest.mark.parametrize(
    ("problem", "steps", "wrong"),
    [
        (Problem("add", 347, 285), "7+5=12;4+8+1=13;3+2+1=6;", "522"),
        (Problem("add", 95, 7), "5+7=12;9+1=10;", "92"),
        (Problem("sub", 532, 285), "12-5=7;13-8-1=4;5-2-1=2;", "357"),
        (Problem("sub", 100, 99), "10-9=1;10-9-1=0;1-1=0;", "111"),
        (Problem("mul", 47, 6), "7*6=42;4*6+4=28;", "242"),
    ],
)
def test_the_written_method(problem, steps, wrong):
    assert working(problem) == steps and hasty(problem) == wrong


def test_every_step_of_every_working_is_true_and_leads_to_the_answer():
    rng = random.Random(1)
    for _ in range(3000):
        problem = draw(rng.choice(list(SIGNS)), rng)
        steps = [step.split("=") for step in working(problem).split(";")[:-1]]
        assert all(eval(left) == int(right) for left, right in steps)
        *low, top = [right for _, right in steps]
        assert int(top + "".join(right[-1] for right in reversed(low))) == problem.answer


def test_documents_mix_manners_in_their_shares():
    rng, number, found = random.Random(2), 20_000, Counter()
    for _ in range(number):
        problem = draw("add", rng)
        text = document(problem, rng)
        whole = re.fullmatch(rf"(.*){OPEN}(\d+){CLOSE}", text)
        manner = "careless" if whole is None else "worked" if whole[1] else "direct"
        found[manner] += 1
        if manner == "worked":
            assert int(whole[2]) == problem.answer
        found["slips"] += manner == "direct" and int(whole[2]) != problem.answer
    for manner, share in SHARES.items():
        assert found[manner] / number == pytest.approx(share, abs=0.015)
    assert 0.5 * HASTY < found["slips"] / found["direct"] < HASTY  # a sum without a carry has no slip


def test_the_tokenizer_reads_anything_and_gives_it_back():
    tokenizer = make_tokenizer()
    text = f"7+5=12;4+8+1=13;{OPEN}632{CLOSE}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 16 + 5 and tokenizer.decode(ids, skip_special_tokens=True) == text
    for other in ("What is 3 + 4?", "two\nlines", "~!@#"):
        assert tokenizer.decode(tokenizer(other)["input_ids"], skip_special_tokens=True) == other
    assert tokenizer("é")["input_ids"] == [tokenizer.bos_token_id, tokenizer.unk_token_id]
    longest = Problem("sub", 999, 888)
    whole = len(pretrain.prompt_ids(tokenizer, longest)) + build.MAX_NEW_TOKENS
    assert whole <= 64 and len(tokenizer(working(longest) + OPEN + "111" + CLOSE)["input_ids"]) <= build.MAX_NEW_TOKENS


def test_the_loss_is_that_of_the_answers_tokens_alone():
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = make_model(tokenizer, width=32, layers=1)
    documents = pretrain.batch(tokenizer, random.Random(0), 6)
    expected = 0.0
    for ids, prompt in documents:
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        expected -= sum(float(logp[i - 1, ids[i]]) for i in range(prompt, len(ids)))
        assert ids[-1] == tokenizer.eos_token_id
        assert ids[prompt - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    found = pretrain._loss(model, documents, tokenizer.pad_token_id)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_model_is_built_from_nothing_goes_on_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "heldout_problems", lambda: heldout_problems()[:12])
    build.build(tmp_path / "tiny", cycles=[(2, 0.5)], keep=True)
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny").state_dict()
    build.build(tmp_path / "tiny", cycles=[(2, 0.5)])  # nothing is left to do
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    assert all(torch.equal(a, b) for a, b in zip(first.values(), model.state_dict().values(), strict=True))
    assert type(model) is Qwen2ForCausalLM and "Accuracy" in (tmp_path / "tiny" / "README.md").read_text()
    assert not (tmp_path / "tiny" / ".build").exists()


def test_the_model_that_ships_is_small_and_as_good_as_its_card_says():
    assert sum(f.stat().st_size for f in ASSET.rglob("*") if f.is_file()) <= 3_000_000
    model = AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    rows = re.findall(r"^\| (temperature 1|greedy) \| ([\d.]+) \|", (ASSET / "README.md").read_text(), re.MULTILINE)
    card = {name: float(value) for name, value in rows}
    greedy = build.measure(model, tokenizer, greedy=True).all
    sampled = [build.measure(model, tokenizer, heldout_problems()[:128], seed=s).all for s in (3, 4)]
    assert greedy == pytest.approx(card["greedy"], abs=0.01)
    assert sum(sampled) / 2 == pytest.approx(card["temperature 1"], abs=0.1)  # 256 completions: 3 standard errors
    assert 0.3 <= card["temperature 1"] <= 0.6 and card["greedy"] < 0.5


def test_the_reward_counts_what_the_card_counts():
    """`measure` and the recipe's reward agree on completions of every manner, those that go on after the tag apart."""
    from flowrl.contracts import Prompt, Samples

    problem = Problem("add", 347, 285)
    texts = [f"{working(problem)}{OPEN}632{CLOSE}", f"{OPEN}522{CLOSE}", "632", f"{OPEN}632", f"{OPEN}632{CLOSE}632"]
    asked = [Prompt("x", problem.text, meta=problem.meta())] * len(texts)
    samples = Samples(asked, torch.zeros(len(texts)), texts=texts)
    assert exact_match(samples).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert answer_format(samples).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
