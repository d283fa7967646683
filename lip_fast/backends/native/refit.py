"""Refitted singular values in one kernel, without a look from the host."""

import torch
from torch import Tensor

from lip_fast.backends.native.front_door import address, module_and_stream


def refit(
    S: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    energy: Tensor,
    ok: Tensor,
    rank: int,
    tolerance: float,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """s (r,), ok (), clipped (). See :func:`lip_fast.ops.refit`."""
    device, r, t = S.device, len(numerator), len(S)
    S, numerator, denominator = S.contiguous(), numerator.contiguous(), denominator.contiguous()
    S, numerator, denominator = S.contiguous(), numerator.contiguous(), denominator.contiguous()
    s = S.new_empty(r)
    sound = torch.empty_like(ok)
    clipped = S.new_empty((), dtype=torch.int64)
    module, stream = module_and_stream(device)
    kernel = module.refit_float64 if S.dtype == torch.float64 else module.refit_float32
    kernel(
        address("S", S, (t,), S.dtype, device),
        t,
        address("numerator", numerator, (r,), torch.float64, device),
        address("denominator", denominator, (r,), torch.float64, device),
        r,
        address("energy", energy, (), torch.float64, device),
        address("ok", ok, (), torch.bool, device),
        rank,
        tolerance,
        clip,
        s.data_ptr(),
        sound.data_ptr(),
        clipped.data_ptr(),
        stream,
    )
    return s, sound, clipped
