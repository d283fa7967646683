"""The columns of a power step, orthonormal: the last basis, and what fresh random signs have beside it."""

import torch
from torch import Tensor

from lip_fast.backends.native.fresh_columns import write_fresh_columns
from lip_fast.backends.native.front_door import address, module_and_stream


def start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """V (q, t + fresh). See :func:`lip_fast.ops.start_basis`."""
    q, t = basis.shape
    m, device = t + fresh, basis.device
    module, stream = module_and_stream(device)
    Vt = basis.new_empty(m, q)
    Vt[:t] = basis.mT
    write_fresh_columns(Vt[t:], step, seed)
    # Of the other side of the matrix there is nothing to keep yet.
    values = module.warm_workspace(0, q, m)
    workspace = basis.new_empty(values)
    module.orthonormal_start(
        address("V", Vt, (m, q), torch.float32, device), 0, q, m, workspace.data_ptr(), values, stream
    )
    return Vt.mT
