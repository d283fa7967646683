"""Truncated SVD by one warm-started power step, without a look from the host.

All conditioning is handled on small matrices in float32, never in TF32: Cholesky QR twice on either side and
one-sided Jacobi between (csrc/core/warm_svd.h).
"""

import torch
from torch import Tensor

from lip_fast.backends.native.fresh_columns import write_fresh_columns
from lip_fast.backends.native.front_door import address, module_and_stream
from lip_fast.backends.native.sketch import sketch


def warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, t), S (t,), B (q, t), status (). See :func:`lip_fast.ops.warm_svd`."""
    (l, q), t = M.shape, basis.shape[1]
    m, device = t + fresh, M.device
    module, stream = module_and_stream(device)
    Vt = basis.new_empty(m, q)
    Vt[:t] = basis.mT
    write_fresh_columns(Vt[t:], step, seed)
    values = module.warm_workspace(l, q, m)
    workspace = basis.new_empty(values)
    module.orthonormal_start(
        address("V", Vt, (m, q), torch.float32, device), l, q, m, workspace.data_ptr(), values, stream
    )
    Y, Z = sketch(M, Vt.mT)
    A, S, Bt = basis.new_empty(l, t), basis.new_empty(t), basis.new_empty(t, q)
    status = basis.new_empty((), dtype=torch.int64)
    module.warm_svd(
        l,
        q,
        m,
        t,
        address("Y", Y, (l, m), torch.float32, device, columns=True),
        address("Z", Z, (q, m), torch.float32, device, columns=True),
        A.data_ptr(),
        S.data_ptr(),
        Bt.data_ptr(),
        status.data_ptr(),
        workspace.data_ptr(),
        values,
        stream,
    )
    return A, S, Bt.mT, status
