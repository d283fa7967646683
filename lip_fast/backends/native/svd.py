"""Truncated decompositions by one warm-started power step, and their parts, without a look from the host.

All conditioning is handled on small matrices in float32, never in TF32: Cholesky QR twice on either side and
one-sided Jacobi between (csrc/core/warm_svd.h).
"""

import torch
from torch import Tensor

from lip_fast.backends.native.fresh_columns import write_fresh_columns
from lip_fast.backends.native.library import MODULES, addresses, stream_of
from lip_fast.backends.native.sketch import sketch


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int, tf32: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    return finish_svd(*sketch(M, start_basis(basis, step, fresh, seed), tf32), basis.shape[1])


def start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """V (q, t + fresh), orthonormal: the last basis, and what fresh signs have beside it.

    See :func:`lip_fast.ops.start_basis`.
    """
    q, t = basis.shape
    m, device = t + fresh, basis.device
    module = MODULES[device.type]
    Vt = basis.new_empty(m, q)
    Vt[:t] = basis.mT
    write_fresh_columns(Vt[t:], step, seed)
    # Of the other side of the matrix there is nothing to keep yet.
    values = module.warm_workspace(0, q, m)
    workspace = basis.new_empty(values)
    module.orthonormal_start(Vt.data_ptr(), 0, q, m, workspace.data_ptr(), values, stream_of(device))
    return Vt.mT


def finish_svd(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, rank), S (rank,), B (q, rank), status (). See :func:`lip_fast.ops.finish_svd`."""
    (l, m), q, device = Y.shape, len(Z), Y.device
    module = MODULES[device.type]
    # The solver reads columns; a copy where they are not contiguous.
    Yt, Zt = Y.mT.contiguous(), Z.mT.contiguous()
    values = module.warm_workspace(l, q, m)
    workspace = Y.new_empty(values)
    A, S, Bt = Y.new_empty(l, rank), Y.new_empty(rank), Y.new_empty(rank, q)
    status = Y.new_empty((), dtype=torch.int64)
    given = addresses(Yt, Zt, A, S, Bt, status, workspace)
    module.warm_svd(l, q, m, rank, *given, values, stream_of(device))
    return A, S, Bt.mT, status
