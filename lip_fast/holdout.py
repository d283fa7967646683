"""Held-out rows with labels that may be wrong: what candidates are chosen by."""

import torch
from torch import Tensor

from lip_fast.targets import CSR, Targets, as_targets
from lip_fast.validation import check_features, check_finite, describe

__all__ = ["check_holdout", "label_agreement", "row_agreement"]


def check_holdout(
    holdout: tuple[Tensor, Tensor] | None, *, q: int, l: int, device: torch.device
) -> tuple[Tensor, Targets]:
    """Features (n, q) and checked labels of a hold-out.

    Raises:
        TypeError: not a pair, or of a wrong type or dtype.
        ValueError: shapes or device do not fit, no rows, or features that are not finite.
    """
    if not isinstance(holdout, tuple | list) or len(holdout) != 2:
        raise TypeError(
            f"expected a hold-out as a pair (features, labels) of tensors, got {describe(holdout)}"
        )
    X, Y = holdout
    check_features("hold-out features", X)
    if X.shape[1] != q or X.shape[0] == 0:
        raise ValueError(f"expected hold-out features of shape (n >= 1, {q}), got {tuple(X.shape)}")
    if X.device != device:
        raise ValueError(f"expected the hold-out on {device}, got {X.device}")
    check_finite("hold-out features", X)
    targets = as_targets(Y, rows=len(X), classes=l, device=device)
    if isinstance(targets, CSR):
        check_finite("hold-out labels", targets.values)
    elif targets.dim() == 2:
        check_finite("hold-out labels", targets)
    elif not bool((targets >= 0).any()):
        raise ValueError("expected a hold-out with at least one labelled row, got none")
    return X, targets


def label_agreement(logits: Tensor, Y: Targets) -> float:
    """Mean label weight of the predicted class: accuracy for indices, share within candidate sets.

    Args:
        logits: (n, l).
        Y: labels of the rows; rows with a negative index do not count.
    """
    return float(row_agreement(logits, Y).mean())


def row_agreement(logits: Tensor, Y: Targets) -> Tensor:
    """Label weight of the predicted class (labelled rows,) in float64; arguments as above."""
    predicted = logits.argmax(1)
    if isinstance(Y, CSR):
        row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
        hits = torch.where(Y.col == predicted[row], Y.values, 0).double()
        return torch.zeros(len(predicted), dtype=torch.float64, device=hits.device).index_add_(0, row, hits)
    if Y.dim() == 2:
        return Y.gather(1, predicted[:, None])[:, 0].double()
    labelled = Y >= 0
    return (predicted == Y)[labelled].double()
