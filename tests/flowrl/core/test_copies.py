"""Named copies of weights: kept, moved, used and put back, and never used where a gradient would be wrong."""

import pytest
import torch
from torch import nn

from flowrl.core.learning.copies import Copies
from flowrl.core.learning.learner import Learner


def make() -> tuple[list[nn.Parameter], Copies]:
    parameters = [nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.tensor([[4.0]]))]
    return parameters, Copies(parameters)


def moved(parameters: list[nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by)


def test_a_copy_moves_by_its_decay_alone():
    parameters, copies = make()
    copies.keep("old", 0.9)  # begins at the parameters, whatever the decay
    copies.keep("first")
    moved(parameters, 1.0)
    copies.keep("old", 0.75)
    assert copies["old"][0].tolist() == [2.25, -0.75] and copies["first"][0].tolist() == [2.0, -1.0]
    copies.keep("old")
    assert copies["old"][1].tolist() == [[5.0]]


def test_copies_are_used_within_each_other_and_put_back():
    parameters, copies = make()
    copies.keep("a")
    moved(parameters, 1.0)
    copies.keep("b")
    moved(parameters, 1.0)
    with torch.no_grad(), copies.using("a"):
        assert parameters[1].item() == 4.0
        with copies.using("b"):
            assert parameters[1].item() == 5.0
        assert parameters[1].item() == 4.0
    with pytest.raises(ZeroDivisionError), torch.no_grad(), copies.using("a"):
        _ = 1 / 0
    moved(parameters, 1.0)  # where they stand, and not in a copy
    assert [p.flatten()[0].item() for p in parameters] == [5.0, 7.0]
    assert copies["a"][1].item() == 4.0 and copies["b"][1].item() == 5.0


def test_a_copy_is_not_used_where_gradient_is_recorded():
    parameters, copies = make()
    copies.keep("reference")
    x = torch.tensor([3.0, 1.0], requires_grad=True)
    live = (parameters[0] * x).sum()
    with pytest.raises(RuntimeError, match="'reference' of the weights is used while gradient is recorded"):
        with copies.using("reference"):
            pass
    moved(copies["reference"], 48.0)  # type: ignore[arg-type]
    with torch.no_grad(), copies.using("reference"):
        assert (parameters[0] * x).sum().item() == 197.0
    live.backward()  # a graph from before is that of its own weights
    assert x.grad is not None and x.grad.tolist() == [2.0, -1.0]


def test_copies_survive_in_the_state_of_a_learner():
    def learner(value: float) -> Learner:
        return Learner([nn.Parameter(torch.full((2,), value))], lr=0.1, average=0.5, reference=True)

    first, second = learner(1.0), learner(7.0)
    first.parameters[0].grad = torch.ones(2)
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.average is not None and torch.equal(second.average[0], first.copies["average"][0])
    assert torch.equal(second.copies["reference"][0], torch.ones(2))
    bare = {name: value for name, value in first.state_dict().items() if name != "copies"}
    third = learner(7.0)
    moved(third.parameters, 1.0)
    third.load_state_dict(bare | {"average": [torch.full((2,), 3.0)]})  # as earlier checkpoints have it
    assert third.average is not None and third.average[0].tolist() == [3.0, 3.0]
    assert third.copies["reference"][0].tolist() == [7.0, 7.0]  # what it was given, not what it has become
    third.load_state_dict(bare | {"average": None})
    assert third.average[0].tolist() == [8.0, 8.0]
