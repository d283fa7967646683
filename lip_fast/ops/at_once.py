"""A step of LIP on a host in one call: what four ops do one after another.

Not ops themselves: nothing traces them, and the checks and results of four ops cost more than a small step.
What they are given was checked where it was observed, and where the weight was looked up.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.library import MOST_AT_ONCE, decomposes_at_once, fits_at_once, wide_vectors
from lip_fast.refitting import Refitting
from lip_fast.targets import CSR, Targets

__all__ = [
    "EXACT",
    "PROJECTED",
    "SPLIT",
    "TRUNCATED",
    "Found",
    "Step",
    "exact_step_",
    "projected_step_",
    "split",
    "truncated_step_",
]

TRUNCATED = Kernel("native.at_once:truncated_step_", "cpu")
PROJECTED = Kernel("native.at_once:projected_step_", "cpu")
SPLIT = Kernel("native.at_once:split", "cpu")
EXACT = Kernel("native.at_once:exact_step_", "cpu")


class Step(NamedTuple):
    """What a step did that wrote the weight."""

    basis: Tensor | None
    """(q, t) of the next step; None where it takes none."""
    clipped: int
    masked: int
    told: tuple[float, float] | None = None
    """gamma and ``deeper`` of :class:`lip_fast.projected.Split`, of a step by products."""

    @property
    def ok(self) -> bool:
        """As of other reports of a step: what is not so is not taken in one call."""
        return True


def truncated_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    Y: Targets,
    bias: Tensor | None,
    how: Refitting,
    *,
    fresh: int,
    step: int,
    seed: int,
) -> Step | None:
    """:func:`warm_svd`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        basis: (q, t) of the last step.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of the t directions that are followed, and of deeper ones.
        fresh: number of fresh columns.
        step: their counter.
        seed: their key.

    Returns:
        None where nothing was written: the operands are not those of one call (float32 on a host, rows
        contiguous, class indices, up to 128 columns), or there is a reason against the step.
    """
    y = _indices(M, X, Y, bias)
    if (
        y is None
        or not _serves("warm_svd", "at_once")
        or basis.dtype != torch.float32
        or not fits_at_once(basis.shape[1], fresh)
    ):
        return None
    basis = basis.contiguous()
    following = torch.empty_like(basis)
    taken = TRUNCATED.run(M, basis, X, y, bias, following, how, fresh, step, seed)
    _, applied, clipped, masked = taken
    return Step(following, clipped, masked) if applied else None


def projected_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    Y: Targets,
    bias: Tensor | None,
    how: Refitting,
    *,
    guards: int,
    fresh: int,
    step: int,
    seed: int,
    most_removed: float,
) -> Step | None:
    """:func:`lip_fast.projected.split`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        basis: (q, k + r) of the last step.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of its directions, of which k are kept.
        guards: number of kept directions that are decomposed with the tail.
        fresh: number of fresh columns at most.
        step: their counter.
        seed: their key.
        most_removed: share of ||M||_F^2 beyond which nothing is removed, and nothing written.

    Returns:
        None where nothing was written: see :func:`truncated_step_`; more directions than the guards are kept.
    """
    y = _indices(M, X, Y, bias)
    if y is None or not _splits(M, basis, how.rank, guards, fresh):
        return None
    basis = _by_columns(basis)
    following = torch.empty_like(basis)
    fresh = min(fresh, min(M.shape) - basis.shape[1])
    done = PROJECTED.run(M, basis, X, y, bias, following, how, guards, fresh, step, seed, most_removed)
    return Step(following, done.clipped, done.masked, (done.gamma, done.deeper)) if done.applied else None


class Found(NamedTuple):
    """The blocks of a weight that :class:`lip_fast.projected.Split` has, and its numbers."""

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    S: Tensor
    s_1: float
    s_k: float
    gamma: float
    deeper: float
    basis: Tensor


def split(
    M: Tensor, basis: Tensor, k: int, *, guards: int, fresh: int, step: Tensor, seed: int
) -> Found | None:
    """:func:`lip_fast.projected.split` of a weight.

    Args:
        M: (l, q) the weight.
        basis: (q, k + r) of the last step.
        k: number of kept directions.
        guards: so many of these are decomposed with the tail.
        fresh: number of fresh columns at most.
        step: () int64, their counter.
        seed: their key.

    Returns:
        None where the operands are not those of one call, and where what was found cannot be used.
    """
    if not (M.dtype == torch.float32 and _on_host_by_rows(M) and _splits(M, basis, k, guards, fresh)):
        return None
    fresh = min(fresh, min(M.shape) - basis.shape[1])
    done, left, right, S, following = SPLIT.run(M, _by_columns(basis), k, guards, fresh, int(step), seed)
    if done.status:
        return None
    return Found(left, right, S, done.s_1, done.s_k, done.gamma, done.deeper, following)


def exact_step_(
    M: Tensor, X: Tensor, Y: Targets, bias: Tensor | None, how: Refitting, *, tail: int
) -> Step | None:
    """:func:`tail_svd`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of its directions.
        tail: number of directions refitted below those kept.

    Returns:
        None where nothing was written: see :func:`truncated_step_`; the small side is of at most 64.
    """
    y = _indices(M, X, Y, bias)
    if y is None or not decomposes_at_once(min(M.shape)) or not _serves("tail_svd", "tail_svd"):
        return None
    _, applied, clipped, masked = EXACT.run(M, X, y, bias, how, tail)
    return Step(None, clipped, masked) if applied else None


def _indices(M: Tensor, X: Tensor, Y: Targets, bias: Tensor | None) -> Tensor | None:
    """Labels that are class indices; None of others, and of operands that one call does not take."""
    if isinstance(Y, CSR) or Y.dim() != 1 or not M.dtype == X.dtype == torch.float32:
        return None
    return Y if _on_host_by_rows(M) and (bias is None or bias.dtype == torch.float32) else None


def _on_host_by_rows(M: Tensor) -> bool:
    return M.device.type == "cpu" and M.stride(1) == 1


def _splits(M: Tensor, basis: Tensor, k: int, guards: int, fresh: int) -> bool:
    """Whether a step by products with this basis is one call here, and is faster so."""
    tail = basis.shape[1] - k
    fits = 0 < guards < k and tail > 0 and guards + tail + fresh <= MOST_AT_ONCE
    return fits and basis.dtype == torch.float32 and wide_vectors() and _serves("warm_svd", "at_once")


def _by_columns(basis: Tensor) -> Tensor:
    """The basis with its columns contiguous, as a step by products leaves it."""
    return basis if basis.mT.is_contiguous() else basis.mT.contiguous().mT


@cache
def _serves(op: str, file: str) -> bool:
    """Whether the kernels that a step consists of are those that serve its decomposition on a host."""
    return [candidate.kernel.file for candidate in backends.candidates(op, "cpu")] == [file]
