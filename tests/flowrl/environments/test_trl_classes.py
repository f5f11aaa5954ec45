"""A class in the form of TRL's documentation, unchanged: its columns, its tools, its errors, its score."""

from dataclasses import replace

import pytest

import talk_support
from flowrl.environments.building import build_environment
from flowrl.recipe.keys.environment import EnvironmentKeys
from reward_models.conversations import outcome
from talk_support import PLAN, PROMPTS, policy


@pytest.mark.parametrize("faults", [["ValueError"], []])
def test_it_is_played_as_it_stands(faults: list[str]):
    environment = build_environment(EnvironmentKeys(use="talk_support.Sums", faults=faults))
    assert [tool["function"]["name"] for tool in environment.tools()] == ["add"]
    shape = environment.tools()[0]["function"]["parameters"]["properties"]
    assert shape["b"] == {"type": "integer", "description": "The second number"}
    prompts = [replace(p, meta={"goal": goal, "other": 1}) for p, goal in zip(PROMPTS, (3, 1000, 5), strict=True)]
    subject = policy(environment, made=talk_support.model(calls=4.0))
    samples = subject.rollout(prompts, group_size=8, plan=PLAN, seed=0).samples
    scores, over = outcome(samples, name="reward").tolist(), 0
    for talk, prompt, score in zip(samples.talks, samples.prompts, scores, strict=True):
        texts = [message.text for messages in talk.shown for message in messages]
        sums = [float(text.split()[-1].strip(".")) for text in texts if text.startswith("The sum")]
        ended = "Error: Game over." in texts
        over += ended or talk.failure is not None
        if talk.failure is not None:
            assert not faults and "Game over" in talk.failure and score != score
            continue
        assert faults or not ended
        assert talk.end != "answer" or score == (sums[-1] if sums else 0.0)  # with another end a last sum is not shown
        assert talk.outcome["goal"] == prompt.meta["goal"]
        assert talk.outcome["done"] == (score >= prompt.meta["goal"]) and ended <= bool(talk.outcome["done"])
    assert over > 1 and len(set(scores)) > 2


def test_what_reset_returns_ends_the_prompt():
    environment = build_environment(EnvironmentKeys(use="talk_support.Sums"))
    subject = policy(environment)
    prompt = replace(PROMPTS[1], meta={"goal": 9})
    rollout = subject.rollout([prompt], plan=replace(PLAN, max_new_tokens=8), seed=0)
    assert "7*8 (up to 9)" in subject.tokenizer.decode(rollout.replay.prompts[0]).replace("<unk>", "")
