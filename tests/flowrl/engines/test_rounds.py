"""Ranks that hold parts of the weights make the same calls, whatever each of them has to do."""

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from flowrl.core.learning.copies import Copies
from flowrl.engines.rounds import Round, Rounds

KINDS = ["look", "step", "back", "whole"]


class Ranks:
    """Ranks that are threads; they agree by waiting for each other."""

    def __init__(self, size: int):
        self.size, self.given = size, [0] * size
        self.wall = threading.Barrier(size, timeout=20)

    def of(self, rank: int) -> "Rank":
        return Rank(self, rank)


class Rank:
    def __init__(self, ranks: Ranks, rank: int):
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def agree(self, number: int) -> list[int]:
        self.ranks.given[self.rank] = number
        self.ranks.wall.wait()
        given = list(self.ranks.given)
        self.ranks.wall.wait()
        return given


class Model(nn.Module):
    """x * w, with a record of what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.calls: list[str] = []

    def forward(self, x: torch.Tensor, *, twice: bool = False) -> dict[str, torch.Tensor]:
        self.calls.append("step" if torch.is_grad_enabled() else "look")
        y = x * self.w
        if y.requires_grad:
            y.register_hook(lambda grad: self.calls.append("back"))
        return {"y": y, "x": x}


class Parts:
    """Stands for the weights of a model that are gathered: it is told in order."""

    def __init__(self, model: Model):
        self.model = model

    def gather(self) -> None:
        self.model.calls.append("whole")

    def shard(self) -> None:
        """Nothing to record: it is no call together."""

    close = shard


def together(works: Sequence[Callable[[Model], None]], *, whole: bool = False) -> list[Model]:
    """The models of so many ranks after each has done its work and rested."""
    ranks, failed = Ranks(len(works)), []
    models = [Model() for _ in works]

    def run(rank: int) -> None:
        try:
            model = models[rank]
            rounds = Rounds(ranks.of(rank), [model], [Parts(model)], whole=whole)
            with torch.no_grad():
                model(torch.ones(2))  # what `prepare` does on every rank
            rounds.rest()
            works[rank](model)
            rounds.rest()
        except BaseException as error:
            failed.append(error)
            ranks.wall.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return models


def looks(number: int) -> Callable[[Model], None]:
    def work(model: Model) -> None:
        with torch.no_grad():
            for i in range(number):
                assert model(torch.full((2,), float(i)))["y"].tolist() == [2.0 * i, 3.0 * i]

    return work


def trains(*inputs: float, before: int = 0) -> Callable[[Model], None]:
    """Calls with gradient, whose losses are differentiated as one; looks before."""

    def work(model: Model) -> None:
        looks(before)(model)
        outputs = [model(torch.full((2,), value))["y"] for value in inputs]
        if outputs:
            torch.stack(outputs).sum().backward()

    return work


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "works",
    [
        [looks(3), looks(1)],
        [trains(1.0), looks(0)],
        [trains(1.0, 5.0), trains(7.0)],
        [trains(1.0, before=2), trains(7.0), trains(2.0, 3.0, 4.0)],
        [looks(2), trains(7.0, before=1), looks(0)],
    ],
)
def test_all_ranks_make_the_same_calls(works, whole):
    models = together(works, whole=whole)
    kinds = [[kind for kind in model.calls if whole is False or kind != "look"] for model in models]
    assert all(one == kinds[0] for one in kinds) and kinds[0]


def test_gradients_are_those_of_the_own_rows():
    models = together([trains(1.0, 5.0), trains(7.0), looks(1)])
    assert models[0].w.grad.tolist() == [6.0, 6.0]
    assert models[1].w.grad.tolist() == [7.0, 7.0]
    assert not models[2].w.grad.any()  # it walked along, for nothing


def test_gradients_reach_inputs_through_a_call():
    x = torch.tensor([1.0, 1.0], requires_grad=True)

    def work(model: Model) -> None:
        (model(x * 2)["y"].sum() * 3).backward()

    together([work, looks(0)])
    assert x.grad.tolist() == [12.0, 18.0]


def test_a_rank_walks_along_under_the_weights_of_the_one_that_looks():
    """Parts of the current weights and of an older copy would be no weights at all."""
    seen: dict[int, list[str | None]] = {0: [], 1: []}

    class Shown(Copies):
        def __init__(self, rank: int, used: str | None):
            self.now, self.rank = used, rank

        @property
        def used(self) -> str | None:
            return self.now

        def shown(self, name):
            outer = self

            class Context:
                def __enter__(self):
                    self.before, outer.now = outer.now, name

                def __exit__(self, *error):
                    outer.now = self.before

            return Context()

    ranks, models = Ranks(2), [Model(), Model()]

    def run(rank: int) -> None:
        model = models[rank]
        rounds = Rounds(ranks.of(rank), [model], [Parts(model)], whole=False)
        with torch.no_grad():
            model(torch.ones(2))
            rounds.weights = copies = Shown(rank, "old" if rank == 0 else None)
            model.register_forward_hook(lambda *_: seen[rank].append(copies.now))
            if rank == 0:
                model(torch.ones(2))
            rounds.rest()
            assert copies.now == ("old" if rank == 0 else None)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {0: ["old"], 1: ["old"]}


def test_one_model_is_whole_at_a_time_and_all_ranks_gather_it():
    """A critic is called by one rank while the other still samples from its policy, and the other way round."""
    ranks, all_calls, failed = Ranks(2), [], []
    orders = [("policy", "policy", "critic"), ("critic", "policy", "critic")]

    def run(rank: int) -> None:
        try:
            calls: list[str] = []
            models = {"policy": Model(), "head": Model(), "critic": Model()}
            parts = [Told(name, calls) for name in models]
            rounds = Rounds(ranks.of(rank), list(models.values()), parts, whole=True, models=[0, 0, 1])
            with torch.no_grad():
                for name in orders[rank]:
                    assert models[name](torch.ones(2))["y"].tolist() == [2.0, 3.0]
                    assert calls[-1] == ("critic" if name == "critic" else "head"), "whole is the model that is called"
            rounds.rest()
            all_calls.append(calls)
        except BaseException as error:
            failed.append(error)
            ranks.wall.abort()

    class Told:
        def __init__(self, name: str, calls: list[str]):
            self.name, self.calls = name, calls

        def gather(self) -> None:
            self.calls.append(self.name)

        def shard(self) -> None:
            self.calls.append("part")

        def close(self) -> None:
            """No call together either."""

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert all_calls[0] == all_calls[1] and all_calls[0].count("policy") == all_calls[0].count("head")


def test_rounds_are_numbers_and_back():
    for kind in range(5):
        for module in (0, 3):
            for weights in (0, 2):
                one = Round(kind, module, weights)
                assert one.code < 0 and Round.of(one.code) == one


def test_a_copy_is_exchanged_with_parts_and_put_back():
    """Of parts, values are exchanged in place, as what gathers them knows where they lie."""

    class Part(torch.Tensor):
        def full_tensor(self):
            raise AssertionError("nobody asks for all of it")

        def to_local(self):
            return self.as_subclass(torch.Tensor)

    parameter = nn.Parameter(torch.tensor([1.0, 2.0]).as_subclass(Part))
    place = parameter.data_ptr()
    copies = Copies([parameter])
    copies.keep("old")
    with torch.no_grad():
        parameter.mul_(10)
    copies.keep("average")
    with torch.no_grad():
        parameter.mul_(10)
        with copies.using("old"):
            assert parameter.tolist() == [1.0, 2.0] and parameter.data_ptr() == place and copies.used == "old"
            with copies.shown("average"):
                assert parameter.tolist() == [10.0, 20.0]
            with copies.shown(None):
                assert parameter.tolist() == [100.0, 200.0]
            assert parameter.tolist() == [1.0, 2.0]
    assert parameter.tolist() == [100.0, 200.0] and copies["old"][0].tolist() == [1.0, 2.0] and copies.used is None
