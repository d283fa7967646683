"""Label statistics: all that the features and labels of any number of rows say about a linear head."""

from typing import Any

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.targets import CSR, Targets

__all__ = ["LabelStatistics"]


class LabelStatistics:
    """C = [X, 1]^T Y and G = [X, 1]^T [X, 1], summed over batches.

    The rows enter LIP, ridge regression and their kin through these two matrices alone, so memory does not
    depend on the number of rows, and statistics of different batches or machines simply add.

    Args:
        q: number of features.
        l: number of classes.
        decay: None to weigh all rows alike, or the factor in (0, 1) by which older batches fade at each
            update.
        dtype: of the accumulators, float32 or float64. Products are taken in float32 (float64 for float64
            features).
        device: where the accumulators live.

    Attributes:
        C: (q + 1, l), the last row for the constant feature.
        G: (q + 1, q + 1).
    """

    def __init__(
        self,
        q: int,
        l: int,
        *,
        decay: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"expected dtype float32 or float64, got {dtype}")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"expected decay in (0, 1) or None, got {decay}")
        self.q, self.l, self.decay = q, l, decay
        self.C = torch.zeros(q + 1, l, dtype=dtype, device=device)
        self.G = torch.zeros(q + 1, q + 1, dtype=dtype, device=device)

    @torch.no_grad()
    def update_(self, batches: list[tuple[Tensor, Targets]]) -> Tensor:
        """Fade what is there by ``decay``, then add the rows of ``batches``, all or none.

        Args:
            batches: pairs of features (n, q) and checked labels (:func:`lip_fast.targets.as_targets`).

        Returns:
            () bool on the device: False where something was not finite; the statistics are then unchanged.
        """
        C, G = torch.zeros_like(self.C), torch.zeros_like(self.G)
        for X, Y in batches:
            _add_batch(C, G, X, Y)
        ok = torch.isfinite(G.diagonal()).all() & torch.isfinite(C).all()
        fade = 1.0 if self.decay is None else self.decay
        self.C = torch.where(ok, self.C * fade + C, self.C)
        self.G = torch.where(ok, self.G * fade + G, self.G)
        return ok

    def sums(self, A: Tensor, B: Tensor, bias: Tensor | None = None) -> ops.Sums:
        """The sums of :func:`lip_fast.ops.label_sums` over every row seen, from C and G.

        Args:
            A: (l, r) class-side directions.
            B: (q, r) feature-side directions.
            bias: (l,) bias of the classifier, or None.
        """
        A, B = A.to(self.C.dtype), B.to(self.C.dtype)
        C, G = self.C[:-1], self.G[:-1, :-1]
        numerator = torch.linalg.vecdot(B, C @ A, dim=0)
        if bias is not None:
            # sum_n (x_n . b_i) is b_i^T X^T 1.
            numerator = numerator - (self.G[:-1, -1] @ B) * (bias.to(A.dtype) @ A)
        denominator = torch.linalg.vecdot(B, G @ B, dim=0)
        masked = torch.zeros((), dtype=torch.int64, device=C.device)
        return ops.Sums(numerator.double(), denominator.double(), G.diagonal().sum().double(), masked)

    def state_dict(self) -> dict[str, Any]:
        """C and G."""
        return {"C": self.C.clone(), "G": self.G.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore C and G; ValueError where they are of another head."""
        for name in ("C", "G"):
            have, got = getattr(self, name), state_dict[name]
            if have.shape != got.shape:
                raise ValueError(f"expected {name} of shape {tuple(have.shape)}, got {tuple(got.shape)}")
        self.C = state_dict["C"].to(self.C)
        self.G = state_dict["G"].to(self.G)


# Entries of a sparse label matrix expanded at a time: bounds the copy of their feature rows.
_ENTRIES = 1 << 16


def _add_batch(C: Tensor, G: Tensor, X: Tensor, Y: Targets) -> None:
    X = X.to(torch.float64 if X.dtype == torch.float64 else torch.float32)
    X = torch.cat([X, X.new_ones(len(X), 1)], 1)
    if isinstance(Y, CSR):
        row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
        for i in range(0, len(row), _ENTRIES):
            entries = slice(i, i + _ENTRIES)
            weighted = X[row[entries]] * Y.values[entries, None].to(X.dtype)
            C += _segment_sum(weighted, Y.col[entries], C.shape[1]).mT
    elif Y.dim() == 2:
        C += X.mT @ Y.to(X.dtype)
    else:
        valid = (Y >= 0) & (Y < C.shape[1])
        X = X.masked_fill(~valid[:, None], 0)
        C += _segment_sum(X, torch.where(valid, Y, 0), C.shape[1]).mT
    G += X.mT @ X


def _segment_sum(X: Tensor, y: Tensor, segments: int) -> Tensor:
    """(segments, q): the sum of the rows of each class, in a fixed order, hence the same bits every time."""
    if X.device.type == "cpu":
        return X.new_zeros(segments, X.shape[1]).index_add_(0, y, X)
    # index_add_ adds in any order on an accelerator; sorted segments are summed one by one.
    y, order = torch.sort(y, stable=True)
    return torch.segment_reduce(X[order], "sum", lengths=torch.bincount(y, minlength=segments), axis=0)
