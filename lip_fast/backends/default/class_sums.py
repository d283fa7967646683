"""Sums of the rows of each class, in a fixed order."""

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.rounding import compute_dtype
from lip_fast.targets import indices_in_range


def class_sums(X: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (l, q) and counts (l,). See :func:`lip_fast.ops.class_sums`."""
    X = X.to(compute_dtype(X))
    if X.device.type in host.READABLE:
        if indices_in_range(y, classes):
            return _added(X, y, classes)
        # Rows that do not count have a class of their own: masking them would copy the features.
        sums, counts = _added(X, _marked(y, classes), classes + 1)
        return sums[:classes], counts[:classes]
    # index_add_ adds in any order on an accelerator; sorted segments are summed one by one. bincount, and the
    # check of the lengths that unsafe leaves out, would wait for the device. Rows that do not count come last
    # and are in no segment.
    y, order = torch.sort(_marked(y, classes), stable=True)
    starts = torch.searchsorted(y, torch.arange(classes + 1, device=y.device))
    counts = starts.diff()
    return torch.segment_reduce(X[order], "sum", lengths=counts, axis=0, unsafe=True), counts


def _added(X: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    sums = X.new_zeros(classes, X.shape[1]).index_add_(0, y, X)
    return sums, torch.bincount(y, minlength=classes)


def _marked(y: Tensor, classes: int) -> Tensor:
    return torch.where((y >= 0) & (y < classes), y, classes)
