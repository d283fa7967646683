"""The forms labels come in, checked once and brought to three: indices, dense, CSR."""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import host

__all__ = ["CSR", "IGNORE_INDEX", "Targets", "as_targets", "check_indices", "indices_in_range"]

# Class index of rows that carry no label, as in torch.nn.CrossEntropyLoss.
IGNORE_INDEX = -100


class CSR(NamedTuple):
    """A sparse label matrix (n, l): row i has columns col[crow[i]:crow[i+1]] with those values."""

    crow: Tensor
    col: Tensor
    values: Tensor


Targets = Tensor | CSR


def as_targets(Y: Tensor, *, rows: int, classes: int, device: torch.device) -> Targets:
    """Check labels against the features they belong to.

    Args:
        Y: (rows,) int64 class indices, -100 for rows without a label; or a (rows, classes) label matrix,
            dense or sparse (COO, CSR), of any real dtype: 0/1, candidate sets, or soft labels.
        rows: number of feature rows.
        classes: number of classes l.
        device: device of the features.

    Returns:
        the indices or the dense matrix as they came, or the sparse matrix as :class:`CSR`.

    Raises:
        TypeError: ``Y`` is no tensor, or of a dtype that is no label.
        ValueError: shape or device do not fit, or, on CPU, a class index is out of range.
    """
    if not isinstance(Y, Tensor):
        raise TypeError(
            f"expected labels as a torch.Tensor, got {type(Y).__name__}: pass torch.as_tensor(labels)"
        )
    if Y.device != device:
        raise ValueError(f"expected labels on {device}, where the features are, got {Y.device}")
    if Y.dim() == 1 and Y.layout == torch.strided:
        if Y.dtype != torch.int64:
            advice = "soft labels are a matrix (rows, classes); " if Y.is_floating_point() else ""
            raise TypeError(
                f"expected class indices as int64, got {Y.dtype}: {advice}of class indices pass labels.long()"
            )
        if Y.shape[0] != rows:
            raise ValueError(f"expected {rows} class indices, one a feature row, got {Y.shape[0]}")
        if Y.device.type in host.READABLE:
            check_indices(Y, classes)
        return Y
    if tuple(Y.shape) != (rows, classes):
        advice = ": pass labels.squeeze(1)" if tuple(Y.shape) == (rows, 1) else ""
        raise ValueError(
            f"expected labels of shape ({rows},) or ({rows}, {classes}), got {tuple(Y.shape)}{advice}"
        )
    if Y.is_complex():
        raise TypeError(f"expected a label matrix of a real dtype, got {Y.dtype}")
    if Y.layout == torch.strided:
        return Y
    if Y.layout == torch.sparse_coo:
        if Y.dense_dim():
            raise TypeError(
                f"expected a sparse label matrix of numbers, got {Y.dense_dim()} dense dimensions"
            )
        Y = Y.coalesce()
        row, col = Y.indices()
        crow = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        torch.cumsum(torch.bincount(row, minlength=rows), 0, out=crow[1:])
        return CSR(crow, col, Y.values())
    if Y.layout == torch.sparse_csr:
        col = Y.col_indices().long()
        # torch does not look at them, and what reads past the classes is the step.
        if col.device.type in host.READABLE and not indices_in_range(col, classes):
            raise ValueError(f"expected columns of a label matrix in 0..{classes - 1}, got others")
        return CSR(Y.crow_indices().long(), col, Y.values())
    raise TypeError(f"expected labels dense, sparse COO or sparse CSR, got layout {Y.layout}")


def indices_in_range(y: Tensor, classes: int) -> bool:
    """Whether every class index is in 0..classes-1. Waits for the device."""
    if not len(y):
        return True
    least, most = torch.aminmax(y)
    return 0 <= int(least) and int(most) < classes


def check_indices(y: Tensor, classes: int) -> None:
    """Raise ValueError where a class index is neither in 0..classes-1 nor -100. Waits for the device."""
    if indices_in_range(y, classes):
        return
    wrong = ((y < 0) | (y >= classes)) & (y != IGNORE_INDEX)
    if bool(wrong.any()):
        position = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected class indices in 0..{classes - 1} (or {IGNORE_INDEX} for no label), "
            f"got {int(y[position])} at row {position}"
        )
