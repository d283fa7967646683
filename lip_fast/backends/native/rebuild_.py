"""Write the weight; into narrow formats rounded by bits of a counter, the same on every device."""

import functools

import torch
from torch import Tensor

from lip_fast.backends.default import rebuild_ as default
from lip_fast.backends.native.library import MODULES, stream_of


def _rounded(new: Tensor, dtype: torch.dtype, step: Tensor, seed: int) -> Tensor:
    new = new.float().contiguous()
    rows, columns = new.shape
    module, stream = MODULES[new.device.type], stream_of(new.device)
    module.round(new.data_ptr(), rows, columns, default.DROPPED_BITS[dtype], step.data_ptr(), seed, stream)
    return new.to(dtype)


rebuild_ = functools.partial(default.rebuild_, rounded=_rounded)
