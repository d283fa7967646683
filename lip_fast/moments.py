"""Sums of products of features and labels about a point, which follows the mean of the rows.

In float32 the product of two features of mean m and spread 1 is rounded by some 1e-7 m^2: at m = 1000 by a
tenth of the spread's own square, which is all that tells the rows apart. The mean of a block of rows is
therefore subtracted from its features before they are multiplied. Blocks are then moved to the mean of all
rows by matrices of rank two, in the dtype of the accumulators; no term exceeds the scatter of the rows.

Products in float64 would do without a mean, but take twice the time on a CPU and 2 to 64 times on a GPU, and
would not help accumulators in float32.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.rounding import compute_dtype
from lip_fast.targets import CSR, IGNORE_INDEX, Targets

__all__ = ["Centred", "Moments", "eigen", "moments", "unresolved"]

# Eigenvalues of dependent features, which are rounding, over eps times the norm of what was rounded: measured
# at most 1.1, of 6 to 512 features, 20 to 40000 rows, means of 0 to 1000 spreads.
_NOISE = 4
# Entries of a sparse label matrix expanded at a time: bounds the copy of their feature rows.
_ENTRIES = 1 << 16


@dataclass(frozen=True, eq=False)
class Centred:
    """What n rows say once features and labels are taken from a point each, mostly their means; in float64.

    Attributes:
        G: (q, q) sum of the products of the features: about the means their scatter.
        C: (q, l) sum of the products of features and labels; a column for each class that there is here.
        mass: (l,) sum of the labels: about the means the rows of each class, by the weight of their labels.
        rows: () n.
        mean_x: (q,) the point of the features.
        mean_y: (l,) that of the labels.
        rounding: () how far rounding may have moved G, in the Frobenius norm.
    """

    G: Tensor
    C: Tensor
    mass: Tensor
    rows: Tensor
    mean_x: Tensor
    mean_y: Tensor
    rounding: Tensor

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of G, descending and none below 0, and its eigenvectors (q, q)."""
        return eigen(self.G)

    def unresolved(self, eigenvalues: Tensor | None = None) -> Tensor:
        """() eigenvalues of G up to this are rounding, with that of a decomposition which found these."""
        return unresolved(self.rounding if eigenvalues is None else self.rounding + _rounded(eigenvalues))


class Moments(NamedTuple):
    """C = [X - c, 1]^T Y (q + 1, l) and G = [X - c, 1]^T [X - c, 1] (q + 1, q + 1) of features X, labels Y.

    Attributes:
        C, G: as above.
        shift: (q,) float64, the point c.
        rounding: () float64, by how much rounded products may have moved G, in the Frobenius norm.
    """

    C: Tensor
    G: Tensor
    shift: Tensor
    rounding: Tensor

    @staticmethod
    def zeros(q: int, l: int, *, dtype: torch.dtype, device: torch.device | str) -> "Moments":
        """Those of no rows."""
        return Moments(
            torch.zeros(q + 1, l, dtype=dtype, device=device),
            torch.zeros(q + 1, q + 1, dtype=dtype, device=device),
            torch.zeros(q, dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.float64, device=device),
        )

    @property
    def rows(self) -> Tensor:
        """() their number."""
        return self.G[-1, -1]

    @property
    def column(self) -> Tensor:
        """(q,) sum of the rows of X - c."""
        return self.G[-1, :-1]

    @property
    def mass(self) -> Tensor:
        """(l,) sum of the rows of Y."""
        return self.C[-1]

    def to(self, like: Tensor) -> "Moments":
        """With C and G in the dtype of ``like``, all on its device."""
        shift, rounding = (part.to(like.device) for part in (self.shift, self.rounding))
        return Moments(self.C.to(like), self.G.to(like), shift, rounding)

    def about(self, point: Tensor) -> "Moments":
        """The same rows about another point (q,)."""
        C, G = self.C.clone(), self.G.clone()
        _move(C, G, (self, point - self.shift, 1))
        return Moments(C, G, point, self.rounding)

    def plus(self, other: "Moments", fade: float = 1) -> "Moments":
        """These rows, weighed by ``fade``, and those of ``other``, about the mean of both."""
        other = other.to(self.C)
        n = other.rows + self.rows * fade
        gap = other.shift - self.shift
        step = other.column + self.column * fade + other.rows * gap
        point = self.shift + torch.where(n > 0, step / n, 0)
        C = torch.add(other.C, self.C, alpha=fade)
        G = torch.add(other.G, self.G, alpha=fade)
        _move(C, G, (self, point - self.shift, fade), (other, point - other.shift, 1))
        return Moments(C, G, point, other.rounding + self.rounding * fade)

    @property
    def rounded(self) -> Tensor:
        """() float64, how far rounding of products and of their sums may have moved G, likewise."""
        return self.rounding + _rounded(self.G[:-1, :-1])

    def as_they_are(self) -> Centred:
        """What the rows say with the features taken from c, and the labels from 0."""
        zeros = torch.zeros_like(self.mass, dtype=torch.float64)
        C, G = self.C.double(), self.G.double()
        return Centred(G[:-1, :-1], C[:-1], C[-1], G[-1, -1], self.shift, zeros, self.rounded)

    def centred(self) -> Centred:
        """What the rows say with features and labels taken from their means."""
        raw = self.as_they_are()
        column = self.column.double()
        off, mean_y = column / raw.rows, raw.mass / raw.rows
        G = torch.addr(raw.G, column, off, alpha=-1)
        C = torch.addr(raw.C, column, mean_y, alpha=-1)
        return replace(raw, G=G, C=C, mean_x=raw.mean_x + off, mean_y=mean_y)


def unresolved(rounding: Tensor) -> Tensor:
    """() eigenvalues up to this are rounding, of a matrix that it moved so far in the Frobenius norm."""
    return _NOISE * rounding


def eigen(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and none below 0, and eigenvectors of a sum of squares."""
    eigenvalues, V = torch.linalg.eigh(G)
    return eigenvalues.flip(0).clamp(min=0), V.flip(1)


def _rounded(G: Tensor) -> Tensor:
    """() float64, what one rounding of a matrix, or of its eigenvalues, makes of its norm."""
    # In float64: squares of sums in float32 overflow.
    return torch.linalg.vector_norm(G, dtype=torch.float64) * torch.finfo(G.dtype).eps


def _move(C: Tensor, G: Tensor, *shares: tuple[Moments, Tensor, float]) -> None:
    """Move what C and G are sums of, each ``(rows, d, weight)`` to a point ``d`` further, in one pass."""
    left, right, masses = [], [], []
    for of, d, weight in shares:
        d, n, column = d.to(C.dtype), of.rows * weight, of.column * weight
        # (X - d)^T (X - d) = X^T X - d h^T - h d^T with h = X^T 1 - n d / 2.
        h = column - d * (n / 2)
        left += [d, h]
        right += [h, d]
        masses.append(of.mass * weight)
        G[-1, :-1] -= d * n
    C[:-1].addmm_(torch.stack(left[::2], 1), torch.stack(masses), alpha=-1)
    G[:-1, :-1].addmm_(torch.stack(left, 1), torch.stack(right), alpha=-1)
    G[:-1, -1] = G[-1, :-1]


def moments(X: Tensor, Y: Targets, *, offset: int, here: int, classes: int) -> Moments:
    """Those of a block of rows, about their mean.

    Args:
        X: (n, q) features. Of class indices, rows without a label count for nothing, whatever they hold.
        Y: checked labels among all ``classes``.
        offset: of the first class that C has a column of.
        here: number of classes that C has columns of.
        classes: l.

    Returns:
        in float64 for float64 features, else in float32.
    """
    dtype = compute_dtype(X)
    rows: Tensor | int = len(X)
    labelled = None
    if not isinstance(Y, CSR) and Y.dim() == 1:
        labelled = (Y >= 0) & (Y < classes)
        rows = labelled.sum()
        if X.device.type in host.READABLE and int(rows) == len(X):
            labelled, rows = None, len(X)
    # The same bits however the rows lie.
    X = X.contiguous()
    counted = X if labelled is None else X.masked_fill(~labelled[:, None], 0)
    total = counted.sum(0, dtype=dtype)
    shift = total / (max(rows, 1) if isinstance(rows, int) else rows.clamp(min=1))
    centred = torch.sub(counted, shift)
    if labelled is not None:
        centred.masked_fill_(~labelled[:, None], 0)
    C = _cross(centred, Y, offset, here, classes)
    G = centred.new_empty(len(C), len(C))
    G[:-1, :-1] = ops.gram(centred)
    G[-1, :-1] = G[:-1, -1] = centred.sum(0)
    G[-1:, -1:].fill_(rows)
    return Moments(C, G, shift.double(), _rounded(G[:-1, :-1]))


def _cross(X: Tensor, Y: Targets, offset: int, here: int, classes: int) -> Tensor:
    """[X, 1]^T Y (q + 1, here)."""
    if isinstance(Y, CSR):
        C = X.new_zeros(X.shape[1] + 1, here)
        row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
        col = Y.col if here == classes else _among(Y.col, offset, here)
        for i in range(0, len(row) if here else 0, _ENTRIES):
            entries = slice(i, i + _ENTRIES)
            values = Y.values[entries, None].to(X.dtype)
            C[:-1] += ops.class_sums(X[row[entries]] * values, col[entries], here).sums.mT
            C[-1:] += ops.class_sums(values, col[entries], here).sums.mT
        return C
    if Y.dim() == 2:
        labels = (Y if here == classes else Y.narrow(1, offset, here)).to(X.dtype)
        return torch.cat([X.mT @ labels, labels.sum(0, keepdim=True)])
    if not here:
        return X.new_zeros(X.shape[1] + 1, 0)
    sums, counts = ops.class_sums(X, Y if here == classes else _among(Y, offset, here), here)
    return torch.cat([sums.mT, counts.to(X.dtype)[None]])


def _among(y: Tensor, offset: int, classes: int) -> Tensor:
    """Class indices among the ``classes`` from ``offset`` on; the others are marked as of no class."""
    return torch.where((y >= offset) & (y < offset + classes), y - offset, IGNORE_INDEX)
