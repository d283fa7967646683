"""How the one-read kernels of the updates want what they read to lie in memory."""

import torch
from torch import Tensor

from lip_fast.backends.native.front_door import address


def lies_alike(M: Tensor, *others: Tensor) -> bool:
    """Whether every array is laid out as M is, with rows one after the other on 16-byte boundaries."""
    rows_apart: int = M.stride(0)
    return (
        M.stride(1) == 1
        and rows_apart % 4 == 0
        and rows_apart >= M.shape[1]
        and all(X.stride() == M.stride() and X.data_ptr() % 16 == 0 for X in (M, *others))
    )


def scalar(name: str, x: Tensor | None, device: torch.device) -> int:
    """The address of one float32 value, 0 where there is none."""
    return 0 if x is None else address(name, x, (), torch.float32, device)
