"""Random signs from a counter."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.ops.checks import SEEDS, bad_step, expected
from lip_fast.ops.op import Op

__all__ = ["fresh_columns"]


def _check(step: Tensor, rows: int, columns: int, seed: int) -> None:
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS:
        raise bad_step(step, seed, "it", step.device)
    if rows < 0 or columns < 0:
        raise expected("rows >= 0 and columns >= 0", f"{rows} and {columns}")


_OP = Op(
    "fresh_columns(Tensor step, int rows, int columns, int seed) -> Tensor",
    check=_check,
    outputs=lambda step, rows, columns, seed: step.new_empty((columns, rows), dtype=torch.float32).mT,
    default="default.fresh_columns",
    kernels=(
        Kernel("native.fresh_columns", "cpu", reason="faster than numpy"),
        Kernel("native.fresh_columns", "cuda", reason="does not wait for the device"),
        Kernel("triton.fresh_columns", reason="does not wait for the device"),
    ),
)


def fresh_columns(step: Tensor, rows: int, columns: int, *, seed: int) -> Tensor:
    """Random signs that look for directions the basis does not have.

    Entry (i, c) depends on (seed, step, i, c) alone: Philox4x32-10, the same bits in every backend, on every
    device and every rank of a sharded head.

    Args:
        step: () int64, the counter of the step; its low 32 bits are used.
        rows: number of rows, below 2^32.
        columns: number of columns.
        seed: key, 0..2^63 - 1.

    Returns:
        (rows, columns) float32 of +1 and -1, columns contiguous, on the device of ``step``.
    """
    return _OP(step, rows, columns, seed)
