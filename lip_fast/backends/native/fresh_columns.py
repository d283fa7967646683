"""Fresh test columns: Philox in C++ or CUDA, the step read where it lies."""

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES, stream_of


def fresh_columns(step: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float32 of +-1. See :func:`lip_fast.ops.fresh_columns`."""
    out = step.new_empty((columns, rows), dtype=torch.float32)
    write_fresh_columns(out, step, seed)
    return out.mT


def write_fresh_columns(out: Tensor, step: Tensor, seed: int) -> None:
    """Fill ``out`` (columns, rows), contiguous, the transpose of what the op returns."""
    columns, rows = out.shape
    module = MODULES[out.device.type]
    module.fresh_columns(out.data_ptr(), rows, columns, step.data_ptr(), seed, stream_of(out.device))
