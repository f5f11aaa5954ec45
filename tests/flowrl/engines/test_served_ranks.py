"""Ranks whose completions servers draw: the weights go there once, and the run is that of one process."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from engines_support import NAME, adapted, endpoint
from flowrl.build import build_policy
from flowrl.contracts import Drawing, Prompt
from flowrl.engines.app import build_app
from flowrl.engines.client import EngineError
from flowrl.engines.remote import Engine
from flowrl.engines.run import served
from flowrl.engines.service import PolicyService
from flowrl.planning.costs import plan_for
from flowrl.policies.noise import group_keys
from flowrl.recipe.keys.engines import EngineKeys
from language_support import PROMPTS
from policies_support import shake
from ranks_support import compare, done, end, job, lines, recipe_of, started
from resume_support import assert_same_run
from samplers.tokens import Generation
from thread_ranks import together

SIX = [*PROMPTS, Prompt("d", "5*5"), Prompt("e", "31+4"), Prompt("f", "2")]
DRAWING = Drawing(SIX, 4, Generation(8), 5, 3)
SERVICES: list[PolicyService] = []  # those behind the servers of a test
OWN = ([0, 3, 5], [], [1, 2, 4])  # of three ranks; the second has nothing


def drawn(urls: list[str], policies: list[Any], times: int = 1) -> list[list[Any]]:
    """What each rank gets so many times, with other weights each time."""
    keys = EngineKeys(use="vllm", url=urls, model=NAME, retries=1)

    def work(ranks: Any) -> list[Any]:
        engine, found = Engine(keys, NAME), []
        for number in range(times):
            own = Drawing(SIX, 4, DRAWING.plan, 5, 3, own=OWN[ranks.rank])
            found.append(engine.draw(policies[ranks.rank], own, ranks))
            ranks.gather(None)
            if number == 0 and ranks.rank == 0:
                for service in SERVICES:  # as servers that were started anew
                    service._adapters.clear()
                    service._loaded = ""
            ranks.gather(None)
            if number == 1:
                shake(policies[ranks.rank].modules, seed=2)
        return found

    return together(len(policies), work)


def test_each_rank_asks_for_its_own_prompts_and_all_hold_the_weights_that_the_first_one_brought():
    policies = [adapted(seed=1) for _ in OWN]
    with ExitStack() as stack:
        pairs = [stack.enter_context(endpoint(adapted(), updates=True)) for _ in range(2)]
        SERVICES[:] = [service for service, _ in pairs]
        found = drawn([url for _, url in pairs], policies, times=3)
        names = [service.names[1:] for service, _ in pairs]
    subject = adapted(seed=1)
    for number in range(3):
        if number == 2:
            shake(subject.modules, seed=2)
        whole = subject.rollout(SIX, group_size=4, plan=DRAWING.plan, seed=5, first=3)
        for own, given in zip(OWN, found, strict=True):
            if not own:
                assert given[number] is None
                continue
            rollout, rows = given[number].rollout, [4 * i + k for i in own for k in range(4)]
            for at, row in enumerate(rows):
                length = int(whole.replay.length[row])
                assert torch.equal(rollout.replay.tokens[at, :length], whole.replay.tokens[row, :length])
                assert torch.equal(rollout.rollout_logp[at, :length], whole.rollout_logp[row, :length])
            assert [rollout.samples.texts[at] for at in range(len(rows))] == [whole.samples.texts[r] for r in rows]
            assert given[number].metrics["engine/retries"] == 0
    assert names[0] == names[1] and len(names[0]) == 1  # both servers have the last weights alone
    rows = subject.start(SIX[:1], group_keys(5, ["a"], range(4)), DRAWING.plan)
    two = Engine(EngineKeys(use="vllm", url=["http://a", "http://b"]), NAME)
    assert sorted(two._server_of(row).url for row in rows) == ["http://a"] * 2 + ["http://b"] * 2


def test_ranks_that_hold_other_weights_are_refused_by_name():
    policies = [adapted(seed=1), adapted(seed=1), adapted(seed=3)]
    with endpoint(adapted(), updates=True) as (service, url):
        with pytest.raises(EngineError, match="rank 2 holds other weights than rank 0"):
            drawn([url], policies)
        assert len(service.names) == 1  # none were brought


# ---------------------------------------------------------------------- run by hand

FULL = ("lora=null", "full=true", "train.lr=1e-5")
FSDP = "parallel.kind=fsdp"


def by(use: str, *urls: str, **more: Any) -> str:
    given = "".join(f", {name}: {value}" for name, value in more.items())
    return f"rollout.engine={{use: {use}, url: [{', '.join(urls)}]{given}}}"


def service(folder: Path, *more: str) -> PolicyService:
    recipe = recipe_of("served", folder, *more)
    return PolicyService(build_policy(recipe), recipe.model, plan_for(recipe, 0), updates=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs over one, two and three ranks by one server or two, and what a blow to a rank leaves of one."""
    folder = tmp_path_factory.mktemp("served")
    with ExitStack() as stack:
        made = [service(folder), service(folder), service(folder), service(folder, *FULL)]
        a, b, merged, full = (stack.enter_context(served(build_app(one))) for one in made)
        one, both, names = by("vllm", a), by("vllm", a, b), ["served"]
        jobs = [job(1, folder / "1", names, one), job(2, folder / "2", names, one), job(3, folder / "3", names, both)]
        jobs += [job(2, folder / "parts", names, both, FSDP)]
        jobs += [job(1, folder / "1-full", names, by("sglang", full), *FULL)]
        jobs += [job(2, folder / "full", names, by("sglang", full), FSDP, *FULL)]
        jobs += [job(1, folder / "1-merged", names, by("sglang", merged))]
        jobs += [job(2, folder / "merged", names, by("sglang", merged))]
        blow = {"signal": int(signal.SIGKILL), "rank": 1, "phase": "rollout", "entry": 2, "delay": 0.0}
        jobs += [job(2, folder / "cut", names, one, blow=blow), job(2, folder / "cut", names, one, resume=True)]
        done(folder, jobs)
        yield folder


@pytest.mark.dist
@pytest.mark.parametrize("several", ["2", "3", "parts"])
def test_a_run_by_servers_is_that_of_one_process(several: str, runs: Path):
    compare(runs / "1" / "served", runs / several / "served")
    assert any(line.get("grad_norm", 0) > 0 for line in lines(runs / several / "served"))


@pytest.mark.dist
def test_merged_adapters_go_there_from_ranks(runs: Path):
    compare(runs / "1-merged" / "served", runs / "merged" / "served")


@pytest.mark.dist
def test_a_whole_model_is_put_together_of_the_parts_of_ranks(runs: Path):
    before, after = lines(runs / "1-full" / "served"), lines(runs / "full" / "served")
    assert len(before) == len(after) == 5
    for one, other in zip(before, after, strict=True):
        names = [name for name in one if name.startswith("reward/")]
        assert all(one[name] == other[name] for name in names)
        if "grad_norm" in one:
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5) and one["grad_norm"] > 0


@pytest.mark.dist
def test_a_rank_that_was_killed_while_a_server_drew_costs_nothing_but_time(runs: Path):
    assert len((runs / "cut" / "blows.txt").read_text().splitlines()) == 1
    assert_same_run(runs / "cut" / "served", runs / "2" / "served")


@pytest.mark.dist
def test_a_server_that_ends_is_told_of_in_one_line_and_the_run_goes_on_behind_another(tmp_path: Path):
    """By one rank of two; what was done before is saved."""
    with served(build_app(service(tmp_path))) as url:
        done(tmp_path, [job(2, tmp_path / "whole", ["served"], by("vllm", url))])
    with served(build_app(service(tmp_path))) as url:
        process = started(tmp_path, [job(2, tmp_path / "cut", ["served"], by("vllm", url, retries=1, timeout=5))])
        metrics, until = tmp_path / "cut" / "served" / "metrics.jsonl", time.monotonic() + 300
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            time.sleep(0.02)
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log.txt").read_text()
    try:
        assert process.wait(120) == 0  # jobs that fail are no failure of the program that starts them
    finally:
        end(process)
    told = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("flowrl:")]
    assert len(told) == 1 and "rollout.engine: " in told[0] and "use --resume" in told[0], told
    assert 2 <= len(lines(tmp_path / "cut" / "served")) <= 3
    with served(build_app(service(tmp_path))) as url:
        done(tmp_path, [job(2, tmp_path / "cut", ["served"], by("vllm", url), resume=True)])
    assert_same_run(tmp_path / "cut" / "served", tmp_path / "whole" / "served")
