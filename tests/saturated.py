"""A reward made to be gamed, for the tests of the guard against it."""

from torch import Tensor

from flowrl.contracts import Samples
from flowrl.statistics import PICTURE


def saturation(samples: Samples) -> Tensor:
    """HSV saturation: it says nothing of what a caption asks for, and a policy that raises it paints over that."""
    assert samples.images is not None
    measure, _ = PICTURE["saturation"]
    return measure(samples.images.float())
