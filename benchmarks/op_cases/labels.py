"""Ops of features and labels."""

import torch
from torch import Tensor

from benchmarks.op_cases.head import Head, times
from benchmarks.op_cases.problem import FAILED, Problem
from lip_fast import ops
from lip_fast.bench.gates import distance
from lip_fast.targets import CSR

__all__ = ["class_sums", "gram", "label_sums", "label_sums_csr", "refit"]

# Sums of products, relative to all of them: at most 3e-7 measured in float32, and 1e-5 of the energy of half
# a million values. A Gram matrix that lacks a row is 3e-3 off or more, sums of labels in another order 1.
_SUMS, _SUMS64 = 1e-4, 1e-12
# Labels of a candidate set.
_CANDIDATES = 3


def _bound(head: Head) -> float:
    return _SUMS64 if head.dtype == torch.float64 else _SUMS


def _features(head: Head, n: int) -> Tensor:
    return head.random(n, head.q).to(head.dtype)


def _classes(head: Head, n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(head.l, (n,), generator=g).to(head.device)


def _tail(head: Head) -> tuple[Tensor, Tensor]:
    """The directions that are refitted, as the step hands them over."""
    return head.A[:, head.k :], head.B[:, head.k :]


def _measure(sums: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(distance(got, wanted) for got, wanted in zip(sums, expected, strict=True))


def label_sums(head: Head, n: int) -> Problem:
    """The sums of a batch with a class index a row."""
    X, y, (A, B) = _features(head, n), _classes(head, n), _tail(head)
    P = times(X, B)
    numerator = (P * A[y]).sum(0)
    expected = (numerator, P.square().sum(0), X.double().square().sum())
    return Problem(
        call=lambda: ops.label_sums(X, y, A, B),
        arguments=(X, y, A, B, None),
        measure=lambda sums: _measure(sums[:3], expected),
        bound=_bound(head),
        control=distance((P * A[y.roll(1)]).sum(0), numerator),
        # Features, labels, the rows of A that they name, and B are read.
        size=X.itemsize * n * head.q + 8 * n + A.itemsize * head.r * (min(n, head.l) + head.q),
        flops=2 * n * head.q * head.r,
    )


def label_sums_csr(head: Head, n: int) -> Problem:
    """The sums of a batch with a set of candidates a row."""
    X, (A, B) = _features(head, n), _tail(head)
    crow = torch.arange(0, _CANDIDATES * n + 1, _CANDIDATES, device=head.device)
    col, values = _classes(head, _CANDIDATES * n), torch.ones(_CANDIDATES * n, device=head.device)
    P = times(X, B)

    def projected(shift: int) -> Tensor:
        return (P * A[col.roll(shift)].double().unflatten(0, (n, _CANDIDATES)).sum(1)).sum(0)

    expected = (projected(0), P.square().sum(0), X.double().square().sum())
    Y = CSR(crow, col, values)
    return Problem(
        call=lambda: ops.label_sums(X, Y, A, B),
        arguments=(X, *Y, A, B, None),
        measure=lambda sums: _measure(sums[:3], expected),
        bound=_bound(head),
        control=distance(projected(_CANDIDATES), expected[0]),
        # Features, where the rows begin, an index and a value for each label, rows of A, and B are read.
        size=X.itemsize * n * head.q
        + 8 * (n + 1)
        + _CANDIDATES * n * 12
        + A.itemsize * head.r * (min(_CANDIDATES * n, head.l) + head.q),
        flops=2 * n * head.q * head.r,
    )


def class_sums(head: Head, n: int) -> Problem:
    """The sum of the rows of each class."""
    X, y, l = _features(head, n), _classes(head, n), head.l
    counts = torch.bincount(y, minlength=l)
    XP = times(X, head.probes)

    def summed(y: Tensor) -> Tensor:
        return torch.zeros(l, XP.shape[1], dtype=XP.dtype, device=XP.device).index_add_(0, y, XP)

    exact = summed(y)

    def measure(found: tuple[Tensor, Tensor]) -> float:
        if not torch.equal(found[1], counts):
            return FAILED
        return distance(times(found[0], head.probes), exact)

    return Problem(
        call=lambda: ops.class_sums(X, y, l),
        arguments=(X, y, l),
        measure=measure,
        bound=_bound(head),
        control=distance(summed(y.roll(1)), exact),
        # Features and indices are read, sums and counts are written.
        size=X.itemsize * n * head.q + 8 * n + head.V.itemsize * l * head.q + 8 * l,
        flops=n * head.q,
    )


def gram(head: Head, n: int) -> Problem:
    """X^T X."""
    X = _features(head, n)
    XP = times(X, head.probes)
    exact = times(X.mT, XP)
    return Problem(
        call=lambda: ops.gram(X),
        arguments=(X, None),
        measure=lambda G: distance(times(G, head.probes), exact),
        bound=_bound(head),
        # The last row left out.
        control=distance(times(X[:-1].mT, XP[:-1]), exact),
        # Features are read, products are written.
        size=X.itemsize * n * head.q + head.V.itemsize * head.q**2,
        # Half of all products: they are symmetric.
        flops=n * head.q**2,
    )


def refit(head: Head) -> Problem:
    """Singular values from sums that ask for other ones, the first of them for more than is allowed."""
    S, k, r = head.s, head.k, head.r
    denominator = torch.linspace(1, 2, r, dtype=torch.float64, device=head.device)
    wanted = torch.linspace(0.3, 0.9, r, dtype=torch.float64, device=head.device)
    wanted[0] = -100
    zero = torch.zeros((), dtype=torch.int64, device=head.device)
    sums = ops.Sums(wanted * denominator, denominator, 2 * denominator.sum(), zero)
    limit = float(S[k - 1])
    expected = wanted.clamp(-limit, limit)

    def measure(found: tuple[Tensor, Tensor, Tensor]) -> float:
        s, ok, clipped = found
        return distance(s, expected) if bool(ok) and int(clipped) == 1 else FAILED

    return Problem(
        call=lambda: ops.refit(S, sums, head.ok, rank=k, tolerance=1e-6, clip=True),
        arguments=(S, *sums[:3], head.ok, k, 1e-6, True),
        measure=measure,
        # One division.
        bound=_SUMS64 if S.dtype == torch.float64 else 1e-6,
        control=distance(S[k:], expected),
        # Values and sums are read, the refitted values are written.
        size=S.itemsize * (len(S) + r) + 8 * (2 * r + 1),
        flops=r,
    )
