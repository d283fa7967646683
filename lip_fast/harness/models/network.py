"""The base of the networks: a body that computes features, and a linear head."""

from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module):
    """A body that computes features, and the linear classifier on them that LIP acts on.

    Args:
        body: from inputs (n, d) to features (n, q).
        head: from features (n, q) to logits (n, l).
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: (n, d) -> (n, q)."""
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (n, d) -> (n, l)."""
        logits: Tensor = self.head(self.features(x))
        return logits
