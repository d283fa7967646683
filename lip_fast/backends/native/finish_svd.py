"""The end of a power step, without a look from the host.

All conditioning is handled on small matrices in float32, never in TF32: Cholesky QR twice on either side and
one-sided Jacobi between (csrc/core/warm_svd.h).
"""

import torch
from torch import Tensor

from lip_fast.backends.native.front_door import address, module_and_stream


def finish_svd(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (l, rank), S (rank,), B (q, rank), status (). See :func:`lip_fast.ops.finish_svd`."""
    (l, m), q, device = Y.shape, len(Z), Y.device
    module, stream = module_and_stream(device)
    # The solver reads columns; a copy where they are not contiguous.
    Y, Z = Y.mT.contiguous().mT, Z.mT.contiguous().mT
    values = module.warm_workspace(l, q, m)
    workspace = Y.new_empty(values)
    A, S, Bt = Y.new_empty(l, rank), Y.new_empty(rank), Y.new_empty(rank, q)
    status = Y.new_empty((), dtype=torch.int64)
    module.warm_svd(
        l,
        q,
        m,
        rank,
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
