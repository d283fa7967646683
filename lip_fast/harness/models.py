"""The networks that are trained."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """A perceptron with ReLU whose last layer, ``head``, is the classifier that LIP acts on.

    Args:
        inputs: number of input features d.
        hidden: widths of the hidden layers, at least one; the last is the head's q.
        classes: number of classes l.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: (n, d) -> (n, q)."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (n, d) -> (n, l)."""
        logits: Tensor = self.head(self.features(x))
        return logits
