"""Steps of a host in one call: products, small algebra and threads of our own.

They give the same bits for any number of threads. Vectors are as wide as the processor has them; where that
is less than 32 bytes, or without fused multiply-adds, a library multiplies faster.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.default import svd as by_library
from lip_fast.backends.native.library import MODULES, VECTOR_BYTES
from lip_fast.refitting import Refitting
from lip_fast.targets import IGNORE_INDEX
from lip_fast.validation import full_precision

__all__ = ["Split", "exact_step_", "projected_step_", "split", "truncated_step_", "warm_svd"]

# Bits of lip_fast.status; whether the weight was written; values limited; class indices out of range.
_Taken = tuple[int, bool, int, int]


def truncated_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    y: Tensor,
    bias: Tensor | None,
    following: Tensor,
    how: Refitting,
    fresh: int,
    step: int,
    seed: int,
) -> _Taken:
    """Decompose M, refit its tail to a batch and write M, all of it or nothing.

    Args:
        M: (l, q) float32, its rows contiguous.
        basis: (q, t) float32, contiguous: B of the last step.
        X: (n, q) float32.
        y: (n,) int64 class indices.
        bias: (l,) float32, or None.
        following: (q, t) float32, contiguous, written: B of this step.
        how: with a rank in 0..t.
        fresh: number of fresh columns; t + fresh <= min(l, q, 128).
        step: counter of the fresh columns.
        seed: their key.
    """
    (l, q), t = M.shape, basis.shape[1]
    S = M.new_empty(t)
    given = (M.data_ptr(), l, q, M.stride(0), basis.data_ptr(), how.rank, t, fresh, seed, step)
    options = (how.drop, how.clip, how.tolerance, torch.get_num_threads(), VECTOR_BYTES)
    operands, batch = _batch(X, y, bias)
    results = (0, S.data_ptr(), following.data_ptr())
    taken: _Taken = MODULES["cpu"].truncated_step(*given, *options, *batch, *results)
    del operands  # read until here
    if taken[1]:
        torch.autograd.graph.increment_version(M)
    return taken


class Split(NamedTuple):
    """What a step by products did, or found where it is no more than a decomposition."""

    status: int
    """Bits of lip_fast.status."""
    applied: bool
    """Whether the weight was written."""
    clipped: int
    masked: int
    gamma: float
    deeper: float
    s_1: float
    s_k: float
    """As of :class:`lip_fast.projected.Split`, from gamma on."""


def projected_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    y: Tensor,
    bias: Tensor | None,
    following: Tensor,
    how: Refitting,
    guards: int,
    fresh: int,
    step: int,
    seed: int,
    most_removed: float,
) -> Split:
    """Split M by products, refit its tail to a batch and write M, all of it or nothing.

    Args:
        M: (l, q) float32, its rows contiguous.
        basis: (q, k + r) float32, its columns contiguous: see :func:`lip_fast.projected.split`.
        X: (n, q) float32.
        y: (n,) int64 class indices.
        bias: (l,) float32, or None.
        following: (q, k + r) float32, its columns contiguous, written: the basis of the next step.
        how: with the rank k.
        guards: number of kept directions that are decomposed with the tail, below k.
        fresh: number of fresh columns; guards + r + fresh <= 128 and k + r + fresh <= min(l, q).
        step: counter of the fresh columns.
        seed: their key.
        most_removed: share of ||M||_F^2 beyond which nothing is removed, and nothing written.
    """
    l, q = M.shape
    r = basis.shape[1] - how.rank
    given = (M.data_ptr(), l, q, M.stride(0), basis.data_ptr(), how.rank, guards, r, fresh, seed, step)
    options = (how.drop, how.clip, how.tolerance, most_removed, torch.get_num_threads(), VECTOR_BYTES)
    operands, batch = _batch(X, y, bias)
    done = Split(*MODULES["cpu"].projected_step(*given, *options, *batch, *_NOWHERE, following.data_ptr()))
    del operands  # read until here
    if done.applied:
        torch.autograd.graph.increment_version(M)
    return done


_NOWHERE = (0, 0, 0, 0, 0)


def split(
    M: Tensor, basis: Tensor, k: int, guards: int, fresh: int, step: int, seed: int
) -> tuple[Split, tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor]:
    """Split M by products, as :func:`projected_step_` does, and leave M as it is.

    Returns:
        what was found; Q (l, k - guards), A (l, guards), A (l, r + fresh) and that of the rotated tail; Z
        (q, k - guards), C likewise, and B of the rotated tail; S (r + fresh,) of it; the next basis.
    """
    (l, q), r = M.shape, basis.shape[1] - k
    n, m = k - guards, r + fresh
    t = guards + m
    tp, mp = _padded(t), _padded(m)
    Q, left, Z, right, S = (
        M.new_empty(shape) for shape in ((l, _padded(n + tp)), (l, tp + mp), (n + t, q), (q, tp + mp), (m,))
    )
    following = torch.empty_like(basis)
    given = (M.data_ptr(), l, q, M.stride(0), basis.data_ptr(), k, guards, r, fresh, seed, step)
    options = (False, False, 0.0, 0.0, torch.get_num_threads(), VECTOR_BYTES)
    factors = (X.data_ptr() for X in (Q, left, Z, right, S))
    no_batch = (0, 0, 0, 0, IGNORE_INDEX, 0)
    found = Split(*MODULES["cpu"].projected_step(*given, *options, *no_batch, *factors, following.data_ptr()))
    tails = ((X[:, :guards], X[:, guards:t], X[:, tp : tp + m]) for X in (left, right))
    of_left, of_right = tails
    return found, (Q[:, :n], *of_left), (Z[:n].mT, *of_right), S, following


def _padded(columns: int) -> int:
    """As of padded() in csrc/cpu/room.h."""
    return -(-columns // 16) * 16


def exact_step_(
    M: Tensor,
    X: Tensor,
    y: Tensor,
    bias: Tensor | None,
    how: Refitting,
    tail: int,
) -> _Taken:
    """Decompose M exactly, refit ``tail`` directions to a batch and write M, or nothing.

    Args:
        M: (l, q) float32, its rows contiguous, with one small side.
        X: (n, q) float32.
        y: (n,) int64 class indices.
        bias: (l,) float32, or None.
        how: with a rank in 0..min(l, q) - tail.
        tail: number of directions refitted below those kept.
    """
    given = (M.data_ptr(), *M.shape, M.stride(0), how.rank, tail)
    options = (how.drop, how.clip, how.tolerance, VECTOR_BYTES)
    operands, batch = _batch(X, y, bias)
    taken: _Taken = MODULES["cpu"].exact_step(*given, *options, *batch)
    del operands  # read until here
    if taken[1]:
        torch.autograd.graph.increment_version(M)
    return taken


def _batch(X: Tensor, y: Tensor, bias: Tensor | None) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """The batch and the bias as the kernels read them, and what these are given of them."""
    # Of a view that says so the signs are others than those in memory.
    X = X.resolve_neg()
    if X.stride(1) != 1:
        X = X.contiguous()
    y, bias = y.contiguous(), None if bias is None else bias.contiguous()
    offset = 0 if bias is None else bias.data_ptr()
    return (X, y, bias), (X.data_ptr(), len(X), X.stride(0), y.data_ptr(), IGNORE_INDEX, offset)


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    (l, q), t = M.shape, basis.shape[1]
    if M.stride(1) != 1:
        M = M.contiguous()
    basis = basis.contiguous()
    A, S, B = M.new_empty(l, t), M.new_empty(t), M.new_empty(q, t)
    given = (M.data_ptr(), l, q, M.stride(0), basis.data_ptr(), t, t, fresh, seed, int(step))
    how = (False, False, 0.0, torch.get_num_threads(), VECTOR_BYTES)
    results = (A.data_ptr(), S.data_ptr(), B.data_ptr())
    status, *_ = MODULES["cpu"].truncated_step(*given, *how, 0, 0, 0, 0, IGNORE_INDEX, 0, *results)
    if status:
        # A library finds more, or tells why not: it takes Householder reflections and a full SVD where
        # squares do not resolve the columns.
        return full_precision(by_library.warm_svd)(M, basis, step, fresh, seed, tf32)
    return A, S, B.mT.contiguous().mT, torch.tensor(status)
