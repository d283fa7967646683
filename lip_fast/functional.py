"""Post-hoc functions: exact LIP, its whole k-path, the choice of a rank."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.holdout import check_holdout, label_agreement
from lip_fast.rounding import compute_dtype
from lip_fast.statistics import LabelStatistics
from lip_fast.targets import Targets, as_targets
from lip_fast.validation import (
    check_batches,
    check_features,
    check_finite,
    check_float_matrix,
    check_int,
    check_pair,
    check_sequence,
    check_whole,
    describe,
    full_precision,
    outside_inference_mode,
)

__all__ = ["Data", "LIPPath", "lip", "lip_path", "select_rank"]


Data = Tensor | LabelStatistics | Iterable[tuple[Tensor, Tensor]]
"""Where labels and features come from: a feature tensor (labels apart), statistics, or batches of pairs."""


def lip(
    W: Tensor, X: Data, Y: Tensor | None = None, k: int | None = None, *, bias: Tensor | None = None
) -> Tensor:
    """Repair a classifier weight learned from inaccurate labels (LIP, arXiv:2505.16159), exactly.

    Keeps the top-k singular triplets of W (principal subspace preservation) and replaces each remaining
    singular value by its least-squares fit to the data (label ambiguity purification). The result is that of
    :func:`lip_fast.reference.lip`; the cost is one decomposition of W and one pass over X, and neither the
    label matrix of class indices nor X^T X is formed.

    Args:
        W: (q, l) weight in the layout of the paper: ``W = linear.weight.T``. float32 or float64; bfloat16
            and float16 are computed in float32.
        X: (n, q) features in the dtype of ``W``, n >= 1. Or, without ``Y``: :class:`LabelStatistics`, or an
            iterable of pairs (X, Y) such as a ``DataLoader``, read once.
        Y: (n,) int64 class indices (-100: row without a label), or a (n, l) label matrix, dense or sparse
            (COO or CSR): 0/1, candidate sets, soft labels.
        k: number of principal directions kept, 0 <= k <= min(q, l).
        bias: (l,) bias of the classifier, so that the target is ``Y - 1 bias^T``.

    Returns:
        (q, l) the repaired weight, a new tensor in the dtype of ``W``. A direction that the features do not
        see (``X u_i = 0`` to rounding, 0/0 in the paper) keeps its singular value.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or k do not fit, a class index is out of range, X is empty, or something
            is not finite.
    """
    if k is None:
        raise TypeError("expected k, the number of directions to keep, got None")
    return lip_path(W, X, Y, [k], bias=bias).weight(k)


@dataclass(frozen=True)
class LIPPath:
    """Every repaired weight of one decomposition; made by :func:`lip_path`.

    s_i* does not depend on k, so one decomposition gives the whole path: the weight for k switches the
    singular values above k to the refitted ones.

    Attributes:
        W: (q, l) the weight that was decomposed, in the dtype of the computation.
        U: (q, d) left singular vectors, d = min(q, l); those that no requested k needs may be zero.
        S: (d,) singular values, descending.
        V: (l, d) right singular vectors, likewise.
        refitted: (d,) least-squares singular values s_i*; NaN where no requested k needs them.
        ks: the numbers of kept directions that were asked for.
        dtype: of the weights handed out.
    """

    W: Tensor
    U: Tensor
    S: Tensor
    V: Tensor
    refitted: Tensor
    ks: tuple[int, ...]
    dtype: torch.dtype

    @full_precision
    @torch.no_grad()
    def weight(self, k: int) -> Tensor:
        """The repaired weight (q, l) that keeps ``k`` directions.

        Raises:
            ValueError: ``k`` was not asked for, or the dtype cannot hold the weight.
        """
        if k not in self.ks:
            raise ValueError(f"expected k to be one of {self.ks}, got {k}")
        change = self.refitted[k:] - self.S[k:]
        W = torch.addmm(self.W, self.U[:, k:] * change, self.V[:, k:].mT).to(self.dtype)
        if self.dtype != self.W.dtype:
            check_finite(f"repaired weight in {self.dtype}", W)
        return W

    @full_precision
    @torch.no_grad()
    def agreement(
        self, holdout: tuple[Tensor, Tensor] | None, *, bias: Tensor | None = None
    ) -> dict[int, float]:
        """For every k of ``ks``, how often the weight predicts one of the labels of held-out rows.

        Args:
            holdout: features (n, q) and labels in any form :func:`lip` takes, noisy as they are.
            bias: (l,) bias of the classifier.

        Returns:
            The share of the rows, 0..1, by k.

        Raises:
            TypeError, ValueError: features or labels do not fit.
        """
        X, targets = check_holdout(holdout, q=len(self.W), l=self.W.shape[1], device=self.W.device)
        if bias is not None:
            _check_bias(bias, self.W)
        P = X.to(self.W.dtype) @ self.U
        logits = X.to(self.W.dtype) @ self.W
        if bias is not None:
            logits += bias.to(logits.dtype)
        change = self.refitted - self.S
        done, scores = len(self.S), {}
        # From the top down each k adds the directions between it and the one before.
        for k in sorted(set(self.ks), reverse=True):
            logits += (P[:, k:done] * change[k:done]) @ self.V[:, k:done].mT
            done = k
            scores[k] = label_agreement(logits, targets)
        return scores

    def __len__(self) -> int:
        return len(self.ks)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Pairs (k, weight), in the order of ``ks``."""
        for k in self.ks:
            yield k, self.weight(k)


def lip_path(
    W: Tensor,
    X: Data,
    Y: Tensor | None = None,
    ks: Sequence[int] | None = None,
    *,
    bias: Tensor | None = None,
) -> LIPPath:
    """:func:`lip` for every k, from one decomposition and one pass over the data.

    Args:
        W: (q, l), as in :func:`lip`.
        X: (n, q), as in :func:`lip`.
        Y: labels, as in :func:`lip`.
        ks: numbers of kept directions; None for 0..min(q, l).
        bias: (l,), as in :func:`lip`.

    Returns:
        :class:`LIPPath`: iterate over it for pairs (k, weight); weights are made when asked for.

    Raises:
        TypeError, ValueError: as :func:`lip`.
    """
    check_float_matrix("W", W)
    check_whole("W", W)
    d = min(W.shape)
    if ks is not None:
        check_sequence("ks", ks)
    ks = tuple(range(d + 1)) if ks is None else tuple(check_int("k", k, 0, d) for k in ks)
    if not ks:
        raise ValueError("expected at least one k, got none")
    if bias is not None:
        _check_bias(bias, W)
    check_finite("W", W)
    data = _check_data(W, X, Y)

    first = min(ks)
    weight, U, S, V = _decompose(W, first)
    sums, unseen = _sum(data, W, V[:, first:].contiguous(), U[:, first:].contiguous(), bias)
    return LIPPath(weight, U, S, V, _refitted(S, first, sums, unseen), ks, W.dtype)


@outside_inference_mode
def _refitted(S: Tensor, first: int, sums: ops.Sums, unseen: Tensor) -> Tensor:
    """The values s_i* from ``first`` on; s_i of a direction that the features do not see."""
    fitted = (sums.numerator / sums.denominator).to(S.dtype)
    refitted = torch.full_like(S, math.nan)
    refitted[first:] = torch.where(sums.denominator > unseen, fitted, S[first:])
    return refitted


@full_precision
@torch.no_grad()
def _decompose(W: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W as it is computed with and its U, S, V, where singular vectors before ``first`` may be zero."""
    W = W.detach().to(compute_dtype(W))
    svd = ops.tail_svd(W, rank=first)
    # tail_svd has no vectors for values at the rounding of float32; the paper refits those as well.
    if int(svd.status) == 0 and bool((svd.S[-1:] > 1e-5 * svd.S[:1]).all()):
        U, V = W.new_zeros(len(W), len(svd.S)), W.new_zeros(W.shape[1], len(svd.S))
        U[:, first:], V[:, first:] = svd.A, svd.B
        return W, U, svd.S, V
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return W, U, S, Vh.mT


def _check_data(W: Tensor, X: Data, Y: Tensor | None) -> LabelStatistics | Iterable[tuple[Tensor, Targets]]:
    """Statistics as they are; anything else as checked pairs, those of an iterable when they come."""
    if isinstance(X, LabelStatistics):
        if Y is not None:
            raise TypeError("expected no Y beside LabelStatistics, which hold the labels")
        X.check_shape(*W.shape)
        X.check_rows()
        return X
    if isinstance(X, Tensor) or Y is not None:
        if Y is None:
            raise TypeError("expected Y beside X, got None")
        return [_check_rows(W, X, Y)]
    if not isinstance(X, Iterable):
        raise TypeError(
            f"expected X as a torch.Tensor, LabelStatistics or batches of pairs, got {describe(X)}"
        )
    return (_check_rows(W, *check_pair(batch, i)) for i, batch in enumerate(check_batches(X)))


def _check_rows(W: Tensor, X: object, Y: Tensor) -> tuple[Tensor, Targets]:
    q, l = W.shape
    check_features("X", X)
    assert isinstance(X, Tensor)
    if X.dtype != W.dtype:
        raise TypeError(f"expected X in the dtype of W, {W.dtype}, got {X.dtype}")
    if X.device != W.device:
        raise ValueError(f"expected X on the device of W, {W.device}, got {X.device}")
    if X.shape[1] != q:
        advice = ": pass W as linear.weight.T" if X.shape[1] == l else ""
        raise ValueError(f"expected X with {q} columns (the rows of W), got {tuple(X.shape)}{advice}")
    if X.shape[0] == 0:
        raise ValueError(f"expected X with at least one row, got shape {tuple(X.shape)}")
    return X, as_targets(Y, rows=X.shape[0], classes=l, device=X.device)


def _sum(
    data: LabelStatistics | Iterable[tuple[Tensor, Targets]],
    W: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
) -> tuple[ops.Sums, Tensor]:
    """The sums over all rows, and the denominator up to which it is rounding alone.

    ||X u_i|| of an unseen direction is the rounding error of the product and of u_i, sqrt(q) eps ||X||; its
    numerator is rounding error too.
    """
    share = W.shape[0] * torch.finfo(A.dtype).eps ** 2
    if isinstance(data, LabelStatistics):
        sums = data.sums(A, B, bias)
        return sums, share * sums.energy + data.unseen()
    total: ops.Sums | None = None
    # Batches are made as their loader is set, by a model under autocast for instance; only sums are ours.
    label_sums = full_precision(torch.no_grad()(ops.label_sums))
    labelled = False
    for X, Y in data:
        labelled = labelled or not isinstance(Y, Tensor) or Y.dim() == 2 or bool((Y >= 0).any())
        sums = label_sums(X, Y, A, B, bias)
        if not bool(torch.isfinite(torch.cat([*sums[:2], sums.energy.view(1)])).all()):
            _raise_not_finite(X, Y)
        total = sums if total is None else ops.Sums(*(a + b for a, b in zip(total, sums, strict=True)))
    if total is None:
        raise ValueError("expected at least one batch of features and labels, got none")
    if not labelled:
        raise ValueError("expected at least one row with a label, got none")
    return total, share * total.energy


def select_rank(
    S: Tensor | LIPPath,
    *,
    method: str = "energy",
    energy: float = 0.95,
    shape: tuple[int, int] | None = None,
    holdout: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
) -> int:
    """How many singular directions to keep.

    Args:
        S: (d,) singular values in any order, or a :class:`LIPPath`.
        method: "energy": the fewest values whose squares sum to the fraction ``energy`` of all;
            "gavish-donoho": those above the optimal hard threshold for unknown noise (Gavish and Donoho,
            arXiv:1305.5870, eq. 4), omega(beta) times the median singular value;
            "holdout": the k of the path whose weight agrees best with held-out labels, noisy as they are;
            of equals the largest, which changes least.
        energy: fraction in (0, 1], for "energy".
        shape: (l, q) of the matrix, for "gavish-donoho"; a path knows its own.
        holdout: features (n, q) and their labels, in any form :func:`lip` takes, for "holdout".
        bias: (l,) bias of the classifier, for "holdout".

    Returns:
        the rank, 0..d.

    Raises:
        TypeError: ``S`` is no floating-point vector; for "holdout", no path or no labels.
        ValueError: unknown method, energy outside (0, 1], no shape where one is needed, values that are not
            finite.
    """
    if method == "holdout":
        if not isinstance(S, LIPPath):
            raise TypeError(f"expected a LIPPath for method holdout, got {describe(S)}")
        scores = S.agreement(holdout, bias=bias)
        return max(S.ks, key=lambda k: (scores[k], k))
    if isinstance(S, LIPPath):
        shape, S = (len(S.V), len(S.U)), S.S
    if not isinstance(S, Tensor) or S.dim() != 1 or not S.is_floating_point():
        raise TypeError(
            f"expected singular values as a floating-point vector, got {describe(S)}: of a matrix M pass "
            "torch.linalg.svdvals(M)"
        )
    check_finite("S", S)
    if len(S) == 0:
        return 0
    values = S.detach().double().sort(descending=True).values
    if method == "energy":
        if not 0 < energy <= 1:
            raise ValueError(f"expected energy in (0, 1], got {energy}")
        cumulative = values.square().cumsum(0)
        # Strictly smaller: the value that reaches the fraction is still counted.
        return min(int((cumulative < energy * cumulative[-1]).sum()) + 1, len(S))
    if method == "gavish-donoho":
        if shape is None:
            raise ValueError("expected the shape of the matrix for gavish-donoho, got None")
        if len(S) and (not isinstance(shape, tuple | list) or len(shape) != 2 or min(shape) < 1):
            raise ValueError(f"expected shape as the (rows, columns) of a matrix, got {shape}")
        beta = min(shape) / max(shape)
        # Cubic fit of the threshold in the paper, accurate to 0.02.
        omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        # torch.median would take the lower of the two in the middle.
        return int((values > omega * values.quantile(0.5)).sum())
    raise ValueError(f"expected method to be 'energy', 'gavish-donoho' or 'holdout', got {method!r}")


def _check_bias(bias: Tensor, W: Tensor) -> None:
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        raise TypeError(f"expected bias as a floating-point vector, got {describe(bias)}")
    if tuple(bias.shape) != (W.shape[1],):
        raise ValueError(f"expected bias of shape ({W.shape[1]},), got {tuple(bias.shape)}")
    if bias.device != W.device:
        raise ValueError(f"expected bias on the device of W, {W.device}, got {bias.device}")
    check_finite("bias", bias)


def _raise_not_finite(X: Tensor, Y: Targets) -> None:
    """The sums are not finite: say whose fault it is."""
    check_finite("X", X)
    if isinstance(Y, Tensor):
        check_finite("Y", Y)
    else:
        check_finite("the values of Y", Y.values)
    raise ValueError(f"expected features whose squares can be summed in {compute_dtype(X)}, got an overflow")
