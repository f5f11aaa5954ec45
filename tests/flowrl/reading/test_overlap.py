"""A plan tells which held-out prompts are trained on as well."""

from cli_support import call
from flowrl.contracts import Prompt
from flowrl.reading.inputs import overlap


def test_a_plan_counts_held_out_prompts_that_are_trained_on(tmp_path, capsys, monkeypatch):
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text("".join(f"a red circle {i}\n" for i in range(16)))
    heldout.write_text("A red  circle 3.\na red circle 4\na blue square\na green triangle\n")
    own = [f"prompts.train={train}", f"prompts.heldout={heldout}", "rewards={jpeg: {use: jpeg_compressibility}}"]
    code, out, err = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run", *own)
    assert code == 0, err
    assert "2 of the 4 held-out prompts (50%) are among the training prompts too" in out
    _, out, _ = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run")
    assert "none of the 320 held-out prompts is among the training prompts" in out


def test_signs_within_a_prompt_count():
    sums = [Prompt(text, text) for text in ("1 + 2", "1 - 2")]
    assert overlap(sums[:1], sums[1:]) == "none of the 1 held-out prompts is among the training prompts"
    assert overlap(sums, []) is None


def test_one_question_about_two_pictures_is_two_prompts():
    train = [Prompt("a", "What is this?", media=("one.png",)), Prompt("b", "What is that?")]
    heldout = [Prompt("c", "What is this?", media=("two.png",)), Prompt("d", "What is this?", media=("one.png",))]
    assert "1 of the 2 held-out" in overlap(train, heldout) and "none" in overlap(train, heldout[:1])
