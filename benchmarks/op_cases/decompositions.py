"""Ops that decompose a matrix."""

import torch
from torch import Tensor

from benchmarks.gpu.weights import residual
from benchmarks.op_cases.head import Head, times
from benchmarks.op_cases.problem import FAILED, Problem, factors, unorthogonal
from lip_fast import ops
from lip_fast.backends.default.svd import finish_svd as default_finish_svd
from lip_fast.backends.default.svd import warm_svd as default_warm_svd
from lip_fast.bench.gates import distance

__all__ = ["finish_svd", "orthonormalize", "tail_svd", "warm_svd"]

_SVD = tuple[Tensor, Tensor, Tensor, Tensor]

# Of factors whose product is the matrix, and of their orthogonality: in float32 up to 2e-6 was measured.
_FACTORS, _FACTORS64 = 2e-5, 1e-12
# Of the triplets of a tail: up to 1e-5 was measured; with the values of their neighbours 3e-1 or more.
_TAIL = 1e-4
# Of triplets by the way of skinny factors: up to 1e-5 was measured, 1e-4 where those are square and of bad
# condition. Without the last direction they are 1e-2 off.
_TRIPLETS = 1e-3
_TRIPLETS64 = 1e-10
# Excess over the same power step in float64; a basis that was not updated leaves 1e-2 or more.
_EXCESS, _EXCESS64 = 2e-3, 1e-9
# Relative change of a small matrix since the one whose factors are the control.
_CHANGE = 1e-2


def _bound(X: Tensor, single: float, double: float) -> float:
    return double if X.dtype == torch.float64 else single


def orthonormalize(head: Head) -> Problem:
    """Y = Q R."""
    Y, l, m = head.Y, head.l, head.m
    normalized = Y / torch.linalg.vector_norm(Y, dim=0)

    def measure(factorisation: tuple[Tensor, Tensor]) -> float:
        Q, R = factorisation
        return max(distance(Q.double() @ R.double(), Y.double()), unorthogonal(Q))

    return Problem(
        call=lambda: ops.orthonormalize(Y),
        arguments=(Y,),
        measure=measure,
        bound=_bound(Y, _FACTORS, _FACTORS64),
        # Columns of unit length, but not orthogonal.
        control=unorthogonal(normalized),
        # Y is read, Q and R are written.
        size=Y.itemsize * m * (2 * l + m),
        # Half a Gram matrix, which is symmetric, and a triangular solve.
        flops=2 * l * m * m,
        library=lambda: torch.linalg.qr(Y),
    )


def warm_svd(head: Head) -> Problem:
    """Top triplets by one power step, measured by what they leave of the weight."""
    M, B, step, t, l, q = head.M, head.B, head.step.clone(), head.t, head.l, head.q
    fresh = head.m - t
    exact = default_warm_svd(M.double(), B.double(), step, fresh, 0)
    best = residual(M, *exact[:3])
    # The directions of the last step, with what the weight makes of them now.
    image = times(M, B)
    lengths = torch.linalg.vector_norm(image, dim=0)
    control = residual(M, image / lengths, lengths, B) / best - 1
    del exact, image

    def measure(found: _SVD) -> float:
        A, S, B, status = found
        if int(status):
            return FAILED
        return max(residual(M, A, S, B) / best - 1, unorthogonal(B))

    def library() -> _SVD:
        A, S, Bh = torch.linalg.svd(M.to(B.dtype), full_matrices=False)
        return A[:, :t], S[:t], Bh[:t].mT, head.step

    return Problem(
        call=lambda: ops.warm_svd(M, B, step, fresh=fresh, seed=0),
        arguments=(M, B, step, fresh, 0),
        measure=measure,
        bound=_bound(B, _EXCESS, _EXCESS64),
        control=control,
        # The weight and the basis are read, the triplets are written.
        size=M.itemsize * l * q + B.itemsize * t * (l + 2 * q + 1),
        # Two products; what is skinny or small comes to less than a tenth of them.
        flops=4 * l * q * head.m,
        library=library,
        step=step,
    )


def finish_svd(head: Head) -> Problem:
    """Top triplets from Y = M V and Z = M^T Y of a warm V."""
    M, X, t, l, q, m = head.M, head.probes, head.t, head.l, head.q, head.m
    V = ops.start_basis(head.B, head.step, fresh=m - t, seed=0)
    Y = times(M, V).to(V.dtype).mT.contiguous().mT
    Z = (Y.mT @ M).contiguous().mT
    A, S, B, _ = default_finish_svd(Y.double(), Z.double(), t)
    expected, short = factors(A, S, B, X), factors(A[:, :-1], S[:-1], B[:, :-1], X)

    def measure(found: _SVD) -> float:
        A, S, B, status = found
        return FAILED if int(status) else max(distance(factors(A, S, B, X), expected), unorthogonal(B))

    def library() -> _SVD:
        Q, R = torch.linalg.qr(Y)
        A, S, Bh = torch.linalg.svd(
            torch.linalg.solve_triangular(R.mT, Z.mT, upper=False), full_matrices=False
        )
        return Q @ A[:, :t], S[:t], Bh[:t].mT, head.step

    return Problem(
        call=lambda: ops.finish_svd(Y, Z, rank=t),
        arguments=(Y, Z, t),
        measure=measure,
        bound=_bound(Y, _TRIPLETS, _TRIPLETS64),
        control=distance(short, expected),
        # The products are read, the triplets are written.
        size=Y.itemsize * ((l + q) * (m + t) + t),
        # Half a Gram matrix of each, which are symmetric, and the directions of each.
        flops=(l + q) * m * m + 2 * (l + q) * m * t,
        library=library,
    )


def tail_svd(head: Head) -> Problem:
    """All singular values, and the directions below the kept ones.

    Orthonormal columns with M B = A diag(S) are singular vectors; that they are those of the tail shows in
    the values, whose squares make up the weight.
    """
    M, k, l, q, X = head.M, head.k, head.l, head.q, head.probes
    d = min(l, q)
    probes = head.random(d - k, X.shape[1]).double()
    energy = float(sum(each.double().square().sum() for each in M.split(1 << 16)))

    def triplets(A: Tensor, S: Tensor, B: Tensor, offset: int) -> float:
        """Distance of A diag(S) from M B, with the tail of the values ``offset`` places too early."""
        image = times(M, B.double() @ probes)
        tail = S.double()[k - offset : d - offset, None]
        return distance(A.double() @ (tail * probes), image)

    def measure(found: _SVD) -> float:
        A, S, B, status = found
        if int(status):
            return FAILED
        length = abs(float(S.double().square().sum()) / energy - 1)
        return max(triplets(A, S, B, 0), length, _skewed(A, probes), _skewed(B, probes))

    def library() -> _SVD:
        wide = M.to(head.skinny)
        A, S, Bh = torch.linalg.svd(wide, full_matrices=False)
        return A[:, k:], S, Bh[k:].mT, head.step

    A, S, B, _ = ops.tail_svd(M, rank=k)
    return Problem(
        call=lambda: ops.tail_svd(M, rank=k),
        arguments=(M, k),
        measure=measure,
        bound=_bound(M, _TAIL, _TRIPLETS64),
        control=triplets(A, S, B, 1),
        # The weight is read; values and the directions of both sides are written.
        size=M.itemsize * l * q + head.V.itemsize * ((l + q) * (d - k) + d),
        # Half a Gram matrix of the small side, its eigenvectors (Golub and Van Loan, 8.3), and those of the
        # large side.
        flops=l * q * d + 9 * d**3 + 2 * l * q * (d - k),
        library=library,
    )


def _skewed(Q: Tensor, probes: Tensor) -> float:
    """How far Q^T Q is from I, by its products with the probes."""
    Q = Q.double()
    return distance(Q.mT @ (Q @ probes), probes)
