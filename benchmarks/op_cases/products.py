"""Ops that multiply a weight, write it, or make the columns it is multiplied by."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.op_cases.head import Head, times
from benchmarks.op_cases.problem import FAILED, SETTLED, Problem, factors, narrowed, product_bound
from lip_fast import ops
from lip_fast.backends.default.fresh_columns import philox
from lip_fast.bench.gates import distance

__all__ = ["fresh_columns", "project", "rebuild_", "rebuilt_bound", "sketch", "start_basis"]

# Distance of a written weight from float64: 3e-3 and 4e-4 by stochastic rounding; without the update that
# comes before, or without the factors, it is 3e-2 or more.
_WRITTEN = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# What of the columns of a step is outside of the span of a basis, relative to them: in float32 3e-7.
_SPAN, _SPAN64 = 1e-5, 1e-12


def rebuilt_bound(head: Head) -> float:
    """How far a written weight may be from float64."""
    return _WRITTEN[head.dtype]


def _signs(step: int, rows: int, columns: int) -> Tensor:
    """What :func:`lip_fast.ops.fresh_columns` promises for seed 0, up to 32 columns."""
    counter = np.zeros((4, rows), dtype=np.uint64)
    counter[0], counter[1] = np.arange(rows), step
    words = torch.from_numpy(philox(counter, 0)[0].astype(np.int64))
    return (words[:, None] >> torch.arange(columns) & 1) * 2 - 1


def _changed(got: Tensor, expected: Tensor) -> float:
    """The share of entries that are not the same."""
    return float((got != expected).double().mean())


def fresh_columns(head: Head) -> Problem:
    """The same bits everywhere."""
    q, fresh, step = head.q, head.m - head.t, head.step.clone()
    expected = _signs(0, q, fresh).to(head.device)
    return Problem(
        call=lambda: ops.fresh_columns(step, q, fresh, seed=0),
        arguments=(step, q, fresh, 0),
        measure=lambda signs: _changed(signs, expected),
        bound=0.0,
        control=_changed(_signs(1, q, fresh).to(head.device), expected),
        size=4 * q * fresh,
        step=step,
    )


def start_basis(head: Head) -> Problem:
    """The last basis beside fresh columns: a kernel may give other columns of the same span."""
    B, q, t, fresh, step = head.B, head.q, head.t, head.m - head.t, head.step.clone()

    def beside(index: int) -> Tensor:
        return torch.cat([B, _signs(index, q, fresh).to(B)], 1)

    def measure(V: Tensor) -> float:
        Q = torch.linalg.qr(V.double())[0]
        return distance(Q @ (Q.mT @ expected), expected)

    expected = torch.nn.functional.normalize(beside(0).double(), dim=0)
    return Problem(
        call=lambda: ops.start_basis(B, step, fresh=fresh, seed=0),
        arguments=(B, step, fresh, 0),
        measure=measure,
        bound=_SPAN64 if B.dtype == torch.float64 else _SPAN,
        control=measure(beside(1)),
        # The basis is read and written, the signs are written.
        size=B.itemsize * q * (2 * t + fresh),
        step=step,
    )


def sketch(head: Head) -> Problem:
    """Y = M V and Z = M^T Y."""
    M, V, MV, MX, X = head.M, head.V, head.product, head.probed, head.probes
    l, q, m = head.l, head.q, head.m

    def measure(products: tuple[Tensor, Tensor]) -> float:
        Y, Z = (each.double() for each in products)
        return max(distance(Y, MV), distance(Z.mT @ X, Y.mT @ MX))

    return Problem(
        call=lambda: ops.sketch(M, V),
        arguments=(M, V),
        measure=measure,
        bound=product_bound(head),
        control=distance(times(M, narrowed(V)), MV),
        # The weight and V are read, Y and Z are written.
        size=M.itemsize * l * q + V.itemsize * m * (2 * q + l),
        flops=4 * l * q * m,
    )


def project(head: Head) -> Problem:
    """Z = M^T Y."""
    M, Y, MX, X = head.M, head.Y, head.probed, head.probes
    exact = Y.double().mT @ MX
    return Problem(
        call=lambda: ops.project(M, Y),
        arguments=(M, Y),
        measure=lambda Z: distance(Z.double().mT @ X, exact),
        bound=product_bound(head),
        control=distance(narrowed(Y).double().mT @ MX, exact),
        # The weight and Y are read, Z is written.
        size=M.itemsize * head.l * head.q + Y.itemsize * head.m * (head.l + head.q),
        flops=2 * head.l * head.q * head.m,
    )


def rebuild_(head: Head) -> Problem:
    """M += A diag(s) B^T, as a step that keeps the rest of the weight does."""
    M, A, s, B, X = head.M.clone(), head.A, head.s.clone(), head.B, head.probes
    exact = head.probed + factors(A, s, B, X)

    def measure(written: Tensor) -> float:
        return distance(times(M, X), exact) if bool(written) else FAILED

    return Problem(
        call=lambda: ops.rebuild_(M, A, s, B, ok=head.ok, step=head.step, accumulate=True, seed=0),
        arguments=(M, A, s, B, head.ok, head.step, True, 0),
        measure=measure,
        bound=rebuilt_bound(head),
        control=distance(head.probed, exact),
        # The weight is read and written, the factors are read.
        size=2 * M.itemsize * head.l * head.q + A.itemsize * head.t * (head.l + head.q + 1),
        flops=2 * head.l * head.q * head.t,
        written=((M, head.M),),
        settle=lambda: s.mul_(SETTLED),
    )
