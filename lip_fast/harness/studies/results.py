"""The measurements of a study: of each training, and means over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import Network
from lip_fast.harness.studies.subspaces import (
    Ridge,
    Turn,
    chance_similarity,
    directions,
    label_matrix,
    largest_gap,
    residual,
    similarity,
    turns,
)
from lip_fast.harness.training.evaluation import agreement

__all__ = [
    "COMPARISONS",
    "TURN_COLUMNS",
    "CleanNetwork",
    "Measured",
    "RidgeChange",
    "Study",
    "check_directions",
]

# Whose directions are compared with those of clean labels, and in which space they lie.
COMPARISONS = {
    "ridge_features": "ridge head on shared features, among features",
    "ridge_classes": "ridge head on shared features, among classes",
    "head_features": "head as trained, among features",
    "head_classes": "head as trained, among classes",
}


# How tables call the numbers of a :class:`lip_fast.harness.studies.subspaces.Turn`.
TURN_COLUMNS = {
    "features": "sine, features",
    "classes": "sine, classes",
    "gap": "gap",
    "bound": "bound from the labels",
    "theorem": "bound of the theorem",
}


def _plain(value: Any) -> Any:
    """The value with all arrays in it, in dicts and lists too, as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Saved:
    """Base of measurements that are written as plain values, for JSON and checkpoints, and read again."""

    def as_plain(self) -> dict[str, Any]:
        """As plain values; floats keep every bit."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The measurement whose :meth:`as_plain` gave ``values``."""
        return cls(
            **{
                **values,
                **{name: np.array(values[name]) for name in values if name.endswith("_spectrum")},
                "similarity": {name: np.array(phi) for name, phi in values["similarity"].items()},
                "turns": [Turn(**turn) for turn in values["turns"]],
            }
        )


@dataclass(frozen=True)
class RidgeChange(_Saved):
    """What labels of one rate do to the ridge head: the part of :class:`Measured` that needs no training.

    Attributes:
        wrong_rows: as of :class:`Measured`; so are the others.
        wrong_entries: of the label matrix.
        ridge_spectrum: (r',).
        similarity: (r', r') each, of ridge heads alone.
        turns: by k = 1..r' - 1.
    """

    wrong_rows: float
    wrong_entries: float
    ridge_spectrum: np.ndarray
    similarity: dict[str, np.ndarray]
    turns: list[Turn]


@dataclass(frozen=True)
class Measured(_Saved):
    """One training on labels of one rate, beside the training of the same seed on clean labels.

    Attributes:
        seed: of noise, initialisation and batches.
        rate: of the noise.
        wrong_rows: share of the rows with a wrong label, or with a wrong candidate.
        wrong_entries: share of the entries of the (n, l) label matrix that are wrong: the theorem's p.
        test_accuracy: of the network, a fraction.
        head_spectrum: (r,) singular values of the network's head, descending, r = min(q, l).
        ridge_spectrum: (r',) of the ridge head on the features of the clean network; r' is the number of
            directions that it has for clean labels.
        similarity: by the names of ``COMPARISONS``: (r, r), or (r', r') of ridge heads, phi(i, j) of
            :func:`lip_fast.harness.studies.subspaces.similarity`.
        turns: of the ridge head, by k = 1..r' - 1.
    """

    seed: int
    rate: float
    wrong_rows: float
    wrong_entries: float
    test_accuracy: float
    head_spectrum: np.ndarray
    ridge_spectrum: np.ndarray
    similarity: dict[str, np.ndarray]
    turns: list[Turn]


class CleanNetwork:
    """What is kept of the network that learned from clean labels, which others of its seed are compared with.

    It is small: the head, and what the labels of each rate do to the ridge heads. Those need the network's
    features, but no network that learned from the wrong labels.

    Args:
        W: (q, l) float64 weight of its head.
        seed: of its training.
        penalty: the ridge heads' lambda.
        changes: of the ridge head, by rate.

    Attributes:
        W: as given.
        penalty: as given.
    """

    def __init__(
        self, W: np.ndarray, seed: int, penalty: float, changes: Mapping[float, RidgeChange]
    ) -> None:
        self.W, self.penalty = W, penalty
        self._seed, self._changes = seed, changes

    @classmethod
    def of(
        cls, network: Network, train: Rows, seed: int, ridge: float, labels: Mapping[float, np.ndarray]
    ) -> "CleanNetwork":
        """Take from a trained network what its comparisons need.

        Args:
            network: the network.
            train: what its head sees of the training part, with the clean labels that it was trained on.
            seed: of its training.
            ridge: penalty of the ridge heads, see :class:`lip_fast.harness.studies.subspaces.Ridge`.
            labels: by rate those of the same rows, (n,) class indices or (n, l) candidate sets.

        Raises:
            UserError: training diverged, the ridge head has less than two directions, or the features are
                all constant.
        """
        W = _weight(network, seed)
        Y = label_matrix(train.Y.cpu().numpy(), W.shape[1])
        try:
            heads = Ridge(train.X.cpu().double().numpy(), ridge)
        except ValueError as error:  # all features are constant: every unit of the last layer is dead
            raise UserError(f"{error}, of the network trained on clean labels with seed {seed}") from error
        count = directions(heads.weight(Y))
        check_directions(count, W.shape, None)
        changes = {
            rate: _ridge_change(heads, Y, label_matrix(noisy, W.shape[1]), count)
            for rate, noisy in labels.items()
        }
        return cls(W, seed, heads.penalty, changes)

    def state_dict(self) -> dict[str, Any]:
        """The weight as a tensor, and everything else as plain values."""
        return {
            "W": torch.from_numpy(self.W),
            "seed": self._seed,
            "penalty": self.penalty,
            "changes": {rate: change.as_plain() for rate, change in self._changes.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CleanNetwork":
        """The clean network whose :meth:`state_dict` gave ``state``."""
        changes = {rate: RidgeChange.from_plain(values) for rate, values in state["changes"].items()}
        return cls(state["W"].numpy(), state["seed"], state["penalty"], changes)

    @property
    def directions(self) -> int:
        """The number of directions of the ridge head, at least 2."""
        return min(len(change.ridge_spectrum) for change in self._changes.values())

    def measure(self, network: Network, test: Rows, rate: float) -> Measured:
        """Compare a network that was trained on the same rows with labels of ``rate``.

        Args:
            network: the network; this one's own, too.
            test: what its head sees of the test part, with clean labels.
            rate: of the noise, one of those whose labels were given.

        Raises:
            UserError: training diverged.
        """
        W, change = _weight(network, self._seed), self._changes[rate]
        heads = _vectors("head", self.W, W, min(W.shape))
        with torch.no_grad():
            accuracy = agreement(network.head(test.X), test.Y)
        return Measured(
            seed=self._seed,
            rate=rate,
            wrong_rows=change.wrong_rows,
            wrong_entries=change.wrong_entries,
            test_accuracy=accuracy,
            head_spectrum=np.linalg.svd(W, compute_uv=False),
            ridge_spectrum=change.ridge_spectrum,
            similarity={**change.similarity, **{name: similarity(*both) for name, both in heads.items()}},
            turns=change.turns,
        )


def check_directions(count: int, shape: tuple[int, ...], rank: int | None) -> None:
    """Refuse a study of too few directions.

    Args:
        count: directions that the ridge head has, or could have at most.
        shape: (q, l) of the heads.
        rank: the principal subspace's dimension that is asked for, if any.

    Raises:
        UserError: there are less than two, or no more than ``rank``.
    """
    if count < 2:
        raise UserError(
            "expected a ridge head with at least two directions to compare, one less than classes, got "
            f"{count} with {shape[0]} features and {shape[1]} classes"
        )
    if rank is not None and rank >= count:
        raise UserError(f"expected --rank below the {count} directions of the ridge head, got {rank}")


class Study:
    """All that was measured, and means over seeds.

    Args:
        measured: of every seed and rate.
        shape: (q, l) of the heads.
        rank: dimension k of the principal subspace, below ``directions``; None for where the singular values
            of the ridge heads on clean labels, means over seeds, fall most steeply.

    Attributes:
        rates: ascending, 0 first.
        directions: those that the ridge heads of all seeds have on clean labels.
    """

    def __init__(self, measured: Sequence[Measured], shape: tuple[int, int], rank: int | None) -> None:
        self.measured, self.shape = measured, shape
        self.rates = sorted({one.rate for one in measured})
        self.directions = min(len(one.ridge_spectrum) for one in measured)
        self.rank = largest_gap(self.spectra(0.0, "ridge").mean(0)) if rank is None else rank

    def of(self, rate: float) -> list[Measured]:
        """What was measured at a rate, by seed."""
        return [one for one in self.measured if one.rate == rate]

    def mean(self, rate: float, name: str) -> float:
        """Mean over seeds of a number of :class:`Measured`, by the attribute's name."""
        return float(np.mean([getattr(one, name) for one in self.of(rate)]))

    def spectra(self, rate: float, weight: str) -> np.ndarray:
        """Singular values by seed, (seeds, r), of ``"ridge"`` heads or the ``"head"`` as trained."""
        count = self.directions if weight == "ridge" else min(self.shape)
        return np.array([getattr(one, f"{weight}_spectrum")[:count] for one in self.of(rate)])

    def phi(self, rate: float, comparison: str) -> np.ndarray:
        """Similarities of a comparison, (r, r): means over seeds."""
        count = self.directions if comparison.startswith("ridge") else min(self.shape)
        phi: np.ndarray = np.mean(
            [one.similarity[comparison][:count, :count] for one in self.of(rate)], axis=0
        )
        return phi

    def principal_and_residual(self, rate: float, comparison: str, k: int) -> tuple[float, float]:
        """Mean phi of the first k directions, and of the others."""
        phi = self.phi(rate, comparison)
        return float(phi[k - 1, k - 1]), float(residual(phi)[k - 1])

    def chance(self, comparison: str, k: int) -> tuple[float, float]:
        """What :meth:`principal_and_residual` would be on average for random directions."""
        d = self.shape[0 if comparison.endswith("features") else 1]
        left = len(self.phi(0.0, comparison)) - k
        return chance_similarity(k, k, d), chance_similarity(left, left, d)

    def turn(self, rate: float, k: int, name: str) -> float | None:
        """Mean over seeds of a number of :class:`Turn`; None where a seed has none."""
        values = [getattr(one.turns[k - 1], name) for one in self.of(rate)]
        return None if None in values else float(np.mean(values))

    def summary(self) -> list[dict[str, Any]]:
        """Means over seeds by rate, at k = ``rank``, as plain values for JSON."""
        return [
            {
                "rate": rate,
                **{n: self.mean(rate, n) for n in ("wrong_rows", "wrong_entries", "test_accuracy")},
                "principal": {n: self.principal_and_residual(rate, n, self.rank)[0] for n in COMPARISONS},
                "residual": {n: self.principal_and_residual(rate, n, self.rank)[1] for n in COMPARISONS},
                "turn": {n: self.turn(rate, self.rank, n) for n in TURN_COLUMNS},
            }
            for rate in self.rates
        ]


def _weight(network: Network, seed: int) -> np.ndarray:
    """(q, l) float64 weight of the network's head, as the paper lays it out."""
    # The loss of an epoch, which was finite, is taken before its last step.
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise UserError(f"training diverged in its last step, seed {seed}: expected finite weights")
    W: np.ndarray = network.head.weight.detach().cpu().double().T.numpy()
    return W


def _ridge_change(heads: Ridge, Y: np.ndarray, Y_noisy: np.ndarray, count: int) -> RidgeChange:
    wrong, pair = Y != Y_noisy, heads.pair(Y, Y_noisy)
    vectors = _vectors("ridge", pair.W, pair.W_noisy, count)
    return RidgeChange(
        wrong_rows=float(wrong.any(1).mean()),
        wrong_entries=float(wrong.mean()),
        ridge_spectrum=np.linalg.svd(pair.W_noisy, compute_uv=False)[:count],
        similarity={name: similarity(*both) for name, both in vectors.items()},
        turns=turns(pair),
    )


def _vectors(
    name: str, W: np.ndarray, W_other: np.ndarray, count: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The first ``count`` singular vectors of both, among features and among classes."""
    U, _, Vt = np.linalg.svd(W, full_matrices=False)
    U_other, _, Vt_other = np.linalg.svd(W_other, full_matrices=False)
    return {
        f"{name}_features": (U[:, :count], U_other[:, :count]),
        f"{name}_classes": (Vt[:count].T, Vt_other[:count].T),
    }
