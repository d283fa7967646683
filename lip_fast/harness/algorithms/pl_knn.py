"""PL-KNN: the nearest training rows vote for their candidates."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Algorithm, one_hot
from lip_fast.harness.algorithms.features import features_of
from lip_fast.harness.models import Network

__all__ = ["NearestCandidates", "Votes"]

# Rows that are scored at a time: bounds the copies of their neighbours.
_ROWS = 500


class Votes(nn.Module):
    """Scores of features by the votes of the k nearest ones among those that it keeps.

    Args:
        features: (n, q), floating point.
        votes: (n, l), what each row votes for.
        k: number of neighbours, at least 1; all rows where there are fewer.
    """

    def __init__(self, features: Tensor, votes: Tensor, k: int) -> None:
        super().__init__()
        self._features = features.double().cpu()
        self._votes = votes.double().cpu()
        k = min(k, len(features))
        self._index = NearestNeighbors(n_neighbors=k).fit(self._features.numpy())

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """(m, q) -> (m, l) float64 on the device of the features; see :class:`NearestCandidates`."""
        blocks = features.double().cpu().split(_ROWS)
        return torch.cat([self._scores(X) for X in blocks]).to(features.device)

    def _scores(self, X: Tensor) -> Tensor:
        near = torch.from_numpy(self._index.kneighbors(X.numpy(), return_distance=False))
        # From differences: distances of the search come from products, and may not be 0 for equal rows.
        distances = (X[:, None] - self._features[near]).norm(dim=2)
        total = distances.sum(1, keepdim=True)
        weights = 1 - distances / total
        if near.shape[1] == 1:
            weights = torch.ones_like(weights)
        return torch.einsum("mk,mkl->ml", weights.where(total > 0, 1.0), self._votes[near])


class NearestCandidates(Algorithm):
    """Score of class j = sum_i w_i [j in S_i] over the k nearest training rows i, w_i = 1 - d_i / sum_m d_m.

    Distances d are Euclidean, between the network's features; S_i are the candidates (the label, where there
    is one). Neighbours that all lie at distance 0 weigh 1 each, and so does a single one, whose weight by the
    formula would be 0. Of equal scores the first class is taken.

    Source: Hüllermeier & Beringer 2005, "Learning from Ambiguously Labeled Examples"
    (doi:10.1007/11552253_16; at length in Intelligent Data Analysis 10, 2006), weighted nearest neighbours.
    The weights and k = 10 are those of later comparisons with it.

    Options:
        neighbours: k, a whole number of at least 1, 10.
    """

    TITLE = "PL-KNN"
    OPTIONS: ClassVar = {"neighbours": 10}
    LABELS = ("indices", "candidates")
    WHOLE = True
    LINEAR = False

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        k = float(options["neighbours"])
        cls.expect("neighbours", k, "a whole number of at least 1", k.is_integer() and k >= 1)

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """This algorithm takes no steps: see :meth:`classifier`."""
        raise NotImplementedError

    def fit(self, model: Network) -> None:
        """Nothing: the rows themselves are the classifier."""

    def classifier(self, model: Network) -> Votes:
        """The rows as the network sees them now."""
        candidates = one_hot(self.task.targets, self.task.classes)
        return Votes(features_of(model, self.task.features), candidates, int(self.options["neighbours"]))
