"""Write the weight: M = A diag(s) B^T, or M += A diag(s) B^T."""

from collections.abc import Callable

import torch
from torch import Tensor

from lip_fast import host

# Bits of a float32 mantissa that the narrow formats drop.
DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}


def rebuild_(
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
    rounded: Callable[..., Tensor] | None = None,
) -> Tensor:
    """In place, and only where ``ok``. See :func:`lip_fast.ops.rebuild_`.

    ``rounded`` rounds to a narrow format in place of :func:`stochastic_round`, with its arguments.
    """
    on_host = ok.device.type in host.READABLE
    if on_host and not bool(ok):
        return ok.clone()
    scaled = A * s
    if on_host and M.dtype == A.dtype:
        if accumulate:
            M.addmm_(scaled, B.mT)
        else:
            torch.mm(scaled, B.mT, out=M)
        return ok.clone()
    new = torch.addmm(M.to(A.dtype), scaled, B.mT) if accumulate else scaled @ B.mT
    if M.dtype in DROPPED_BITS:
        new = (rounded or stochastic_round)(new, M.dtype, step, seed)
        # Only float16 can overflow here: its range is far smaller than that of the sums.
        ok = ok & torch.isfinite(new).all()
    M.copy_(torch.where(ok, new.to(M.dtype), M))
    return ok.clone()


def stochastic_round(x: Tensor, dtype: torch.dtype, step: Tensor, seed: int) -> Tensor:
    """Round to a narrower format than float32 up or down with the probability that makes the mean exact.

    Rounding to nearest loses every update below half a unit of the last place of the weight (2^-9 of it in
    bfloat16); in the mean, stochastic rounding loses none. Values the format holds stay as they are.
    """
    bits = DROPPED_BITS[dtype]
    generator = torch.Generator(device=x.device)
    # One stream a step: resuming at a step draws the same bits.
    generator.manual_seed((seed * 0x9E3779B97F4A7C15 + int(step)) & 0x7FFFFFFFFFFFFFFF)
    noise = torch.randint(0, 1 << bits, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    # A float64 is rounded to nearest first: by 2^-24 of it, which is nothing beside 2^-8.
    rounded = (x.float().contiguous().view(torch.int32) + noise) & -(1 << bits)
    return rounded.view(torch.float32).to(dtype)
