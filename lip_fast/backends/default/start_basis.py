"""The columns of a power step: the last basis and fresh random signs."""

import torch
from torch import Tensor

from lip_fast.backends.default.fresh_columns import fresh_columns


def start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """V (q, t + fresh). See :func:`lip_fast.ops.start_basis`."""
    signs = fresh_columns(step, basis.shape[0], fresh, seed).to(basis.dtype)
    # Tall factors are kept with their columns contiguous: to append some is then to copy two blocks.
    return torch.cat([basis.mT, signs.mT]).mT
