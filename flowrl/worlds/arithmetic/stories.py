"""Word problems in the form of GSM8K's files, for language models that can read: one or two steps, whole numbers.

`python -m flowrl.worlds.arithmetic.stories FOLDER` writes stories_train.jsonl and stories_heldout.jsonl, as they ship
in recipes/prompts. The two share no problem, and some templates are held out altogether.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

NAMES = ("Ana", "Ben", "Carla", "Deniz", "Emil", "Fatou", "Goran", "Hana", "Ivo", "June", "Kofi", "Lena")
THINGS = ("apples", "books", "coins", "eggs", "flowers", "keys", "lemons", "pens", "shells", "stamps")

Story = tuple[str, str, int]  # the problem, its steps, the result


def _more(r: random.Random, name: str, thing: str) -> Story:
    a, b = r.randint(2, 40), r.randint(2, 40)
    return (
        f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have now?",
        f"{a}+{b}={a + b}",
        a + b,
    )


def _fewer(r: random.Random, name: str, thing: str) -> Story:
    a = r.randint(10, 60)
    b = r.randint(2, a - 1)
    return f"Of {a} {thing}, {name} gives away {b}. How many {thing} are left?", f"{a}-{b}={a - b}", a - b


def _boxes(r: random.Random, name: str, thing: str) -> Story:
    a, b = r.randint(2, 9), r.randint(2, 9)
    text = f"{name} fills {a} boxes with {b} {thing} each. How many {thing} are in the boxes?"
    return text, f"{a}*{b}={a * b}", a * b


def _price(r: random.Random, name: str, thing: str) -> Story:
    a, b = r.randint(2, 9), r.randint(2, 9)
    left = r.randint(1, 20)
    text = (
        f"{name} buys {a} {thing} for {b} euros each and has {left} euros left. How many euros did {name} have before?"
    )
    return text, f"{a}*{b}={a * b}, {a * b}+{left}={a * b + left}", a * b + left


def _two_days(r: random.Random, name: str, thing: str) -> Story:
    a, b, c = r.randint(5, 30), r.randint(5, 30), r.randint(1, 9)
    text = f"{name} collects {a} {thing} on Monday and {b} on Tuesday, and loses {c} of them. How many {thing} remain?"
    return text, f"{a}+{b}={a + b}, {a + b}-{c}={a + b - c}", a + b - c


def _shelf(r: random.Random, name: str, thing: str) -> Story:  # held out
    a, b, c = r.randint(2, 8), r.randint(2, 8), r.randint(1, 9)
    text = f"A shelf has {a} rows of {b} {thing}. {name} puts {c} more on it. How many {thing} are on the shelf?"
    return text, f"{a}*{b}={a * b}, {a * b}+{c}={a * b + c}", a * b + c


TRAINED = (_more, _fewer, _boxes, _price, _two_days)
HELD_OUT = (*TRAINED, _shelf)


def problems(number: int, seed: int, templates: tuple[Callable[..., Story], ...], without: set[str]) -> Iterator[Story]:
    """So many problems that differ, none of them among the texts `without`."""
    r, seen = random.Random(seed), set(without)
    while number:
        story = templates[number % len(templates)](r, r.choice(NAMES), r.choice(THINGS))
        if story[0] not in seen:
            seen.add(story[0])
            number -= 1
            yield story


def write(folder: Path) -> None:
    """Writes the two files into a folder that exists."""
    heldout = list(problems(96, 2, HELD_OUT, set()))
    train = list(problems(480, 1, TRAINED, {text for text, _, _ in heldout}))
    for split, stories in (("train", train), ("heldout", heldout)):
        lines = [json.dumps({"question": text, "answer": f"{steps}\n#### {result}"}) for text, steps, result in stories]
        (folder / f"stories_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
