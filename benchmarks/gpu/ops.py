"""Every op at every shape: the dispatched call beside each of its kernels."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.op_cases import op_case
from benchmarks.op_rows import LARGE_SHAPES, SHAPES, op_rows
from lip_fast.bench.cases import Maker

__all__ = ["cases"]

# The formats that weights are trained in on a GPU.
_DTYPES = ("float32", "bfloat16")
# Rows of features whose statistics are taken: one batch of a loader of embeddings.
_ROWS = 8192
# An exact decomposition of more values takes longer than all the rest.
_MOST_EXACT = 1 << 25
# Of the copies that the floors are measured with, as in the other parts.
_COPIED, _DRY_COPIED = 1 << 29, 1 << 16


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the ops, small weights first: what time they leave goes to the large ones."""
    shapes = ((60, 40),) if dry else (*SHAPES, *LARGE_SHAPES)
    largest = max(l * q for l, q in shapes)
    rows = op_rows(shapes, _DTYPES, rows=60 if dry else _ROWS, most_exact=_MOST_EXACT, most_narrow=largest)
    for row in rows:
        yield row.key, partial(op_case, row, device, copied=_DRY_COPIED if dry else _COPIED)
