"""Conversations drawn row by row, by a copy in another precision, by a server, and with a text given near the limit."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_support as vision
from engines_support import NAME, endpoint
from flowrl.contracts import Drawing, Rollout
from flowrl.core.backward import fill_old
from flowrl.core.objectives.mismatch import mismatch
from flowrl.engines.remote import Engine, drawn_elsewhere
from flowrl.names import UserError
from flowrl.policies import adapters
from flowrl.policies.language.drawing.low_precision import low_precision
from flowrl.policies.language.media.views import PictureView, Views, viewed
from flowrl.recipe.keys.engines import EngineKeys
from policies_support import shake
from samplers.tokens import Generation
from talk_support import PLAN, PROMPTS, Album, Counting, model, policy, seeing

GROUP = 3
ROWS = GROUP * len(PROMPTS)


def row(rollout: Rollout, i: int) -> tuple[list[int], list[float], list[bool], Any]:
    """Ids, log-probs, mask and conversation of one row, without its padding."""
    number = int(rollout.replay.length[i])
    lists = (values[i, :number].tolist() for values in (rollout.replay.tokens, rollout.rollout_logp, rollout.mask))
    return *lists, rollout.samples.talks[i].written()


def adapted(seed: int | None = None) -> Any:
    made = policy(batch_invariant=True)
    adapters.add_lora(made.modules, rank=4, alpha=8, targets="all")
    if seed is not None:
        shake(made.modules, seed=seed)
    return made


def test_a_row_alone_is_the_same_bits_in_any_batch():
    whole = policy(batch_invariant=True).rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0)
    turns = [len(talk.said) for talk in whole.samples.talks]
    for prompt, member in ((2, 2), (1, 0), (2, turns.index(max(turns[6:]), 6) - 6)):
        alone = policy(batch_invariant=True).rollout(PROMPTS[prompt : prompt + 1], plan=PLAN, seed=0, first=member)
        assert row(alone, 0) == row(whole, prompt * GROUP + member)
    assert max(turns[6:]) > 1
    batch = policy().rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0)
    assert [row(batch, i)[0] for i in range(ROWS)] == [row(whole, i)[0] for i in range(ROWS)]  # the same draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.folder(tmp_path_factory.mktemp("seeing"), "qwen2_5_vl")


def test_and_so_is_one_beside_rows_with_pictures(folder: Path, tmp_path: Path):
    prompts = vision.prompts(tmp_path)
    whole = seeing(folder, Album(), turn_tokens=12).rollout(prompts, plan=Generation(120), seed=1)
    assert len({len(own.pieces) for own in whole.replay.inputs}) > 1
    for i in range(len(prompts)):
        alone = seeing(folder, Album(), turn_tokens=12).rollout([prompts[i]], plan=Generation(120), seed=1)
        assert row(alone, 0) == row(whole, i)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_copy_draws_every_turn(precision: str):
    subject = policy(batch_invariant=True)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    found = subject.rollout(PROMPTS, group_size=GROUP, plan=replace(PLAN, precision=precision), seed=0)
    assert all(torch.equal(before[name], value) for name, value in subject.model.state_dict().items())
    assert max(len(talk.said) for talk in found.samples.talks) > 2
    fill_old(subject, found, torch.arange(ROWS))
    assert 1e-6 < float(mismatch(found.old_logp, found.rollout_logp, found.mask)["mean_abs"]) < 0.1
    later = found.mask & (found.step_stats["turn"] > 1)
    assert ((found.old_logp - found.rollout_logp)[later].abs() > 1e-6).any()
    twin = low_precision(model(), precision)
    other = policy(batch_invariant=True)
    other.model, other._proven = twin, {False}
    expected = other.rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0)
    assert [row(found, i) for i in range(ROWS)] == [row(expected, i) for i in range(ROWS)]


def engine(url: str, use: str = "vllm") -> Engine:
    return Engine(EngineKeys(use=use, url=url, model=NAME, retries=1), NAME)


@pytest.mark.parametrize("heat", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_server_draws_the_turns_of_this_process(heat: float):
    here, plan = adapted(seed=1), replace(PLAN, temperature=heat, max_new_tokens=90)
    here.conversations.environment = Counting()
    drawing, rows_here = Drawing(PROMPTS, 2, plan, 5, 3), 2 * len(PROMPTS)
    with endpoint(adapted(), updates=True) as (service, url):
        service.plan = plan
        found = drawn_elsewhere(here, drawing, None, engine=engine(url))
        again = drawn_elsewhere(here, drawing, None, engine=engine(url)).rollout
    expected = here.rollout(PROMPTS, group_size=2, plan=plan, seed=5, first=3)
    rows = [row(found.rollout, i) for i in range(rows_here)]
    assert rows == [row(again, i) for i in range(rows_here)] and found.metrics["engine/retries"] == 0
    assert max(len(talk.said) for talk in found.rollout.samples.talks) > 1
    for i, own in enumerate(rows):
        one = row(expected, i)
        if heat == 0:
            assert own == one
        first = (expected.step_stats["turn"][i] == 1).sum()  # noise of later turns is named by their place
        assert own[0][:first] == one[0][:first] and own[1][:first] == one[1][:first]
    fill_old(here, found.rollout, torch.arange(rows_here))
    gaps = (found.rollout.old_logp - found.rollout.rollout_logp)[found.rollout.mask].abs()
    assert (len(gaps) == 0) == (heat == 0) and bool((gaps < 1e-4).all())


def test_pictures_behind_a_prompt_go_to_no_server(folder: Path, tmp_path: Path):
    drawing = Drawing(vision.prompts(tmp_path), 1, Generation(120), 5, 0)
    subjects = [seeing(folder, Album(), turn_tokens=6) for _ in range(2)]
    for subject in subjects:
        adapters.add_lora(subject.modules, rank=2, alpha=2, targets="all")
    with endpoint(subjects[1], updates=True) as (_, url), pytest.raises(UserError, match="set rollout.engine=null"):
        drawn_elsewhere(subjects[0], drawing, None, engine=engine(url))


def test_a_server_is_asked_what_the_prompt_ends_with(folder: Path, tmp_path: Path):
    drawing = Drawing(vision.prompts(tmp_path), 2, Generation(6, temperature=0.0), 5, 0)
    here, there = (seeing(folder, Counting(last=1, opening=" Go on.")) for _ in range(2))
    for subject in (here, there):
        adapters.add_lora(subject.modules, rank=2, alpha=2, targets="all")
    with endpoint(there, updates=True) as (_, url):
        draws = partial(drawn_elsewhere, engine=engine(url))
        found = viewed(here, drawing, None, views=Views(second=PictureView("dark", "drop")), explore=draws).rollout
    for own, other in zip(
        found.replay.inputs[:4], found.replay.shown[:4], strict=True
    ):  # a second look at what it drew
        assert own.key != other.key and [len(one.pieces) for one in (own, other)] == [1, 1]
    expected = here.rollout(drawing.prompts, group_size=2, plan=drawing.plan, seed=5)
    assert [row(found, i)[0] for i in range(6)] == [row(expected, i)[0] for i in range(6)]
    text = here.tokenizer.decode(found.replay.prompts[2], skip_special_tokens=True)
    assert text.endswith("is larger,  or ? Go on.")


def test_a_text_is_given_near_the_limit_of_a_conversation():
    plan = Generation(60, force=("777", 8))
    subject = policy(made=model(end=2.0))
    plain = subject.rollout(PROMPTS, group_size=6, plan=replace(plan, force=None), seed=0)
    found = subject.rollout(PROMPTS, group_size=6, plan=plan, seed=0)
    ids = subject.tokenizer("777", add_special_tokens=False).input_ids
    forced = 0
    for i, talk in enumerate(found.samples.talks):
        own, other = row(found, i), row(plain, i)
        if len(other[0]) <= 52:
            assert own == other
            continue
        begins = [at for at in range(52, 58) if own[0][at : at + 3] == ids and not any(own[2][at : at + 3])]
        if begins:
            forced += 1
            at = begins[0]
            assert own[0][:at] == other[0][:at] and own[1][at : at + 3] == [0.0] * 3
            assert "777" in found.samples.given[i] and "777" in talk.said[-1].text
            assert int(found.samples.lengths[i]) == sum(own[2])
    assert forced >= 2 and "" in found.samples.given
    assert plain.samples.given is None
