"""Refitted singular values in one kernel, without a look from the host."""

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES, stream_of


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
    device, (r,), (t,) = S.device, numerator.shape, S.shape
    S, numerator, denominator = S.contiguous(), numerator.contiguous(), denominator.contiguous()
    s = S.new_empty(r)
    sound = torch.empty_like(ok)
    clipped = S.new_empty((), dtype=torch.int64)
    module = MODULES[device.type]
    kernel = module.refit_float64 if S.dtype == torch.float64 else module.refit_float32
    kernel(
        S.data_ptr(),
        t,
        numerator.data_ptr(),
        denominator.data_ptr(),
        r,
        energy.data_ptr(),
        ok.data_ptr(),
        rank,
        tolerance,
        clip,
        s.data_ptr(),
        sound.data_ptr(),
        clipped.data_ptr(),
        0 if device.type == "cpu" else stream_of(device),
    )
    return s, sound, clipped
