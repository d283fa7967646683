"""Write the weight; into narrow formats rounded by bits of a counter, the same on every device."""

import torch
from torch import Tensor

from lip_fast.backends.default import rebuild_ as default
from lip_fast.backends.native.library import MODULES, stream_of


def rebuild_(
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place, and only where ``ok``. See :func:`lip_fast.ops.rebuild_`."""
    return default.rebuild_(M, A, s, B, ok, step, accumulate, seed, _rounded)


def _rounded(new: Tensor, dtype: torch.dtype, step: Tensor, seed: int) -> Tensor:
    new = new.float().contiguous()
    rows, columns = new.shape
    module, stream = MODULES[new.device.type], stream_of(new.device)
    module.round(new.data_ptr(), rows, columns, default.DROPPED_BITS[dtype], step.data_ptr(), seed, stream)
    return new.to(dtype)
