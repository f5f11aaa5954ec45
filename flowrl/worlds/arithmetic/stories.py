"""Word problems in English of one step, for language models that were trained on English: sums, differences, products.

    python -m flowrl.worlds.arithmetic.stories FOLDER

writes stories_train.jsonl and stories_heldout.jsonl, {"prompt": ..., "answer": ...} a line, the same ones every time.
No held-out problem has the numbers, in their places, and the kind of one that is trained.
"""

import json
import random
import sys
from pathlib import Path

NUM_TRAIN, NUM_HELDOUT = 400, 64
SEED = 23
NAMES = ("Ann", "Ben", "Carla", "Dev", "Ella", "Farid", "Grace", "Hugo")
THINGS = ("apples", "books", "buttons", "cards", "coins", "marbles", "pencils", "shells")
ASK = "Answer with a number."
# kind -> sentences about a person, another one, a thing, and two numbers
STORIES = {
    "add": (
        "{one} has {a} {thing} and buys {b} more. How many {thing} does {one} have now?",
        "{one} has {a} {thing} and {two} has {b}. How many {thing} do they have together?",
        "There are {a} {thing} on the table. {one} puts {b} {thing} beside them. How many {thing} are there now?",
    ),
    "sub": (
        "{one} has {a} {thing} and gives {b} of them to {two}. How many {thing} does {one} have left?",
        "{one} had {a} {thing} and lost {b}. How many {thing} does {one} still have?",
        "{one} has {a} {thing}. {two} has {b} fewer. How many {thing} does {two} have?",
    ),
    "mul": (
        "{one} has {a} boxes with {b} {thing} in each. How many {thing} does {one} have?",
        "{one} buys {b} {thing} on each of {a} days. How many {thing} does {one} buy?",
        "There are {a} tables with {b} {thing} on each. How many {thing} are there?",
    ),
}


def stories() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training problems, held-out problems), each with a prompt and its answer."""
    rng = random.Random(SEED)
    numbers = [(kind, a, b) for kind in STORIES for a, b in _operands(kind)]
    rng.shuffle(numbers)
    out = set(numbers[:NUM_HELDOUT])
    shown = sorted(set(numbers) - out)
    heldout = [_story(*problem, rng) for problem in numbers[:NUM_HELDOUT]]
    return [_story(*rng.choice(shown), rng) for _ in range(NUM_TRAIN)], heldout


def _operands(kind: str) -> list[tuple[int, int]]:
    if kind == "mul":
        return [(a, b) for a in range(2, 10) for b in range(2, 10)]
    pairs = [(a, b) for a in range(3, 21) for b in range(2, 21)]
    return [(a, b) for a, b in pairs if kind == "add" or b < a]


def _story(kind: str, a: int, b: int, rng: random.Random) -> dict[str, str]:
    one, two = rng.sample(NAMES, 2)
    text = rng.choice(STORIES[kind]).format(one=one, two=two, thing=rng.choice(THINGS), a=a, b=b)
    answer = {"add": a + b, "sub": a - b, "mul": a * b}[kind]
    return {"prompt": f"{text} {ASK}", "answer": str(answer)}


def main(folder: Path) -> None:
    """Writes both files into a folder."""
    for name, problems in zip(("train", "heldout"), stories(), strict=True):
        lines = [json.dumps(problem) for problem in problems]
        (folder / f"stories_{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
