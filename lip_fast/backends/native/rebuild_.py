"""Write the weight; into narrow formats rounded by bits of a counter, the same on every device."""

import torch
from torch import Tensor

from lip_fast.backends.default.rebuild_ import DROPPED_BITS, rebuild_with
from lip_fast.backends.native.front_door import address, module_and_stream


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

    def rounded(new: Tensor) -> Tensor:
        new = new.contiguous()
        module, stream = module_and_stream(new.device)
        module.round(
            address("the new weight", new, M.shape, new.dtype, M.device),
            *M.shape,
            DROPPED_BITS[M.dtype],
            address("step", step, (), torch.int64, M.device),
            seed,
            stream,
        )
        return new.to(M.dtype)

    return rebuild_with(rounded, M, A, s, B, ok, accumulate)
