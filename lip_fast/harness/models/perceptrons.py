"""Networks that take their inputs as plain vectors."""

import itertools
from collections.abc import Sequence

from torch import nn

from lip_fast.harness.models.network import Network

__all__ = ["MLP", "Linear"]


class Linear(Network):
    """The head alone, on the inputs as they are.

    With embeddings that another network computed (``FILE.npz``) this is the usual frozen network with a new
    head: q = d, and the features of a row never change.

    Args:
        inputs: number of input features d.
        classes: number of classes l.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(inputs, classes))


class MLP(Network):
    """A perceptron with ReLU.

    Args:
        inputs: number of input features d.
        hidden: widths of the hidden layers, at least one; the last is the head's q.
        classes: number of classes l.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int) -> None:
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), nn.Linear(widths[-1], classes))
