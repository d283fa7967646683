"""The 2r sums of the refit in one pass over the features, without X^T Y, X^T X or a label matrix of indices.

::

    P = X B,  numerator_i = sum_n P_ni (T_ni - shift_i),  denominator_i = sum_n P_ni^2,  energy = ||X||_F^2

X (n, q) float32, bfloat16 or float16; A (l, r), B (q, r) float32; any strides. T = Y A (n, r) is gathered for
class indices, added up entry by entry for rows of a CSR matrix, and a second product for dense labels;
shift = A^T bias (r,) or none. Products, and sums over the 32 or 64 rows of a tile, are taken in float32, as
those of the other backends are. Tiles are added up in float64: at 2^-53 each, a million of them round less
than the sum over one tile does, so that the error does not grow with n.

Grid: runs of row tiles times blocks of directions. Each program writes its partial sums to a row of a buffer,
which a second pass adds up in a fixed order: the same inputs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.update import offsets, signature, strides
from lip_fast.targets import IGNORE_INDEX

# Forms of the labels, as the kernel's FORM counts them.
_INDICES, _DENSE, _CSR = 0, 1, 2
# Programs over the rows: a few for each multiprocessor of the largest devices, and no longer buffer.
_RUNS = 512


@triton.jit
def _dense_targets(Y, A, row, column, n, l, r, Y_s0, Y_s1, A_s0, A_s1,
                   N: tl.constexpr, R: tl.constexpr, K: tl.constexpr):  # fmt: skip
    """Y A (N, R) of one tile of dense labels."""
    targets = tl.zeros((N, R), tl.float32)
    for first in range(0, l, K):
        k = first + tl.arange(0, K)
        y = tl.load(
            Y + offsets(row, k, Y_s0, Y_s1),
            mask=(row[:, None] < n) & (k[None, :] < l),
            other=0,
        )
        a = tl.load(
            A + offsets(k, column, A_s0, A_s1),
            mask=(k[:, None] < l) & (column[None, :] < r),
            other=0.0,
        )
        targets = tl.dot(y.to(tl.float32), a, targets, input_precision="tf32x3")
    return targets


@triton.jit(do_not_specialize=["tiles"])
def label_sums_kernel(
    X, Y, crow, values, A, B, shift, out, n, q, l, r, tiles,
    X_s0, X_s1, Y_s0, Y_s1, A_s0, A_s1, B_s0, B_s1, values_stride,
    FORM: tl.constexpr, SHIFTED: tl.constexpr, IGNORED: tl.constexpr,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Partial sums of ``tiles`` tiles of N rows and R directions.

    Y is the class indices (n,), the dense labels (n, l), or the columns of the entries of a CSR matrix, whose
    rows begin at ``crow``, as FORM is 0, 1 or 2. A row of ``out`` is r numerators, r denominators, the energy
    and the number of masked indices.
    """
    run = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * R + tl.arange(0, R)
    out += run * (2 * r + 2)
    numerator = tl.zeros((R,), tl.float64)
    denominator = tl.zeros((R,), tl.float64)
    energy = tl.zeros((1,), tl.float64)
    masked = tl.zeros((1,), tl.float64)
    for tile in range(tiles):
        row = (run * tiles + tile) * N + tl.arange(0, N)
        counts = row < n
        if FORM == 0:
            index = tl.load(Y + row * Y_s0, mask=counts, other=IGNORED)
            within = (index >= 0) & (index < l)
            wrong = counts & (within == 0) & (index != IGNORED)
            masked += tl.sum(wrong.to(tl.float64), 0)
            counts = counts & within
        P = tl.zeros((N, R), tl.float32)
        for first in range(0, q, K):
            k = first + tl.arange(0, K)
            # Rows that do not count are not read: they may hold anything.
            x = tl.load(
                X + offsets(row, k, X_s0, X_s1),
                mask=counts[:, None] & (k[None, :] < q),
                other=0.0,
            ).to(tl.float32)
            b = tl.load(
                B + offsets(k, column, B_s0, B_s1),
                mask=(k[:, None] < q) & (column[None, :] < r),
                other=0.0,
            )
            # Float32 to a few units of the last place; one TF32 product would move s_i* by 5e-5 of s_1.
            P = tl.dot(x, b, P, input_precision="tf32x3")
            energy += tl.sum(tl.sum(x * x, 1), 0).to(tl.float64)
        if FORM == 0:
            targets = tl.load(
                A + offsets(index, column, A_s0, A_s1),
                mask=counts[:, None] & (column[None, :] < r),
                other=0.0,
            )
        elif FORM == 1:
            targets = _dense_targets(Y, A, row, column, n, l, r, Y_s0, Y_s1, A_s0, A_s1, N, R, K)
        else:
            begin = tl.load(crow + row, mask=counts, other=0)
            length = tl.load(crow + row + 1, mask=counts, other=0) - begin
            targets = tl.zeros((N, R), tl.float32)
            for entry in range(0, tl.max(length, 0)):
                there = entry < length
                index = tl.load(Y + begin + entry, mask=there, other=0)
                within = there & (index >= 0) & (index < l)
                masked += tl.sum((there & (within == 0)).to(tl.float64), 0)
                value = tl.load(values + (begin + entry) * values_stride, mask=within, other=0)
                a = tl.load(
                    A + offsets(index, column, A_s0, A_s1),
                    mask=within[:, None] & (column[None, :] < r),
                    other=0.0,
                )
                targets += value.to(tl.float32)[:, None] * a
        if SHIFTED:
            targets -= tl.load(shift + column, mask=column < r, other=0.0)[None, :]
        numerator += tl.sum(P * targets, 0).to(tl.float64)
        denominator += tl.sum(P * P, 0).to(tl.float64)
    tl.store(out + column, numerator, mask=column < r)
    tl.store(out + r + column, denominator, mask=column < r)
    # Every block of directions has read all of X; the first one speaks for it.
    once = tl.arange(0, 1) + tl.program_id(1) == 0
    tl.store(out + 2 * r + tl.arange(0, 1), energy, mask=once)
    tl.store(out + 2 * r + 1 + tl.arange(0, 1), masked, mask=once)


@triton.jit
def label_totals_kernel(
    out, numerator, denominator, energy, masked, runs, r, U: tl.constexpr, C: tl.constexpr
):
    """Add up the rows of ``out`` in a fixed order, C columns a program, U rows at a time."""
    column = tl.program_id(0) * C + tl.arange(0, C)
    total = tl.zeros((C,), tl.float64)
    for first in range(0, runs, U):
        run = (first + tl.arange(0, U)).to(tl.int64)
        there = (run[:, None] < runs) & (column[None, :] < 2 * r + 2)
        total += tl.sum(tl.load(out + run[:, None] * (2 * r + 2) + column[None, :], mask=there, other=0.0), 0)
    tl.store(numerator + column, total, mask=column < r)
    tl.store(denominator + column - r, total, mask=(column >= r) & (column < 2 * r))
    tl.store(energy + column - 2 * r, total, mask=column == 2 * r)
    tl.store(masked + column - 2 * r - 1, total.to(tl.int64), mask=column == 2 * r + 1)


# Rows N of a tile by the directions R that a program takes: with 16 features at a time 120 to 250 registers a
# thread, where twice as many rows or features spill. 16 is the least that a product takes; more than 64
# directions read X once for each 64.
_ROWS = {16: 64, 32: 32, 64: 32}
_FEATURES_AT_A_TIME = 16
# As many as there are: ptxas would spill some for a third or fourth program on a multiprocessor.
_REGISTERS = 255


def _form(
    features: str, labels: str, values: str | None, form: int, shifted: bool, block: int
) -> Configuration:
    used = {} if values is None else {"crow": "*i64", "values": values}
    pointers = {"X": features, "Y": labels, **used, "A": "*fp32", "B": "*fp32", "out": "*fp64"}
    if shifted:
        pointers["shift"] = "*fp32"
    # As the step has them: features by rows, factors by columns.
    unit = dict.fromkeys(("X_s1", "Y_s1", "A_s0", "B_s0", "values_stride"), 1)
    absent = {name: None for name in ("crow", "values", "shift") if name not in pointers}
    flags = {"FORM": form, "SHIFTED": shifted, "IGNORED": IGNORE_INDEX}
    tile = {"N": _ROWS[block], "R": block, "K": _FEATURES_AT_A_TIME}
    return Configuration(
        label_sums_kernel,
        signature(pointers, "n q l r tiles X_s0 Y_s0 A_s1 B_s1"),
        {**flags, **absent, **unit, **tile},
        registers=_REGISTERS,
    )


_TOTALS = Configuration(
    label_totals_kernel,
    signature(
        dict.fromkeys(("out", "numerator", "denominator", "energy"), "*fp64") | {"masked": "*i64"}, "runs r"
    ),
    {"U": 64, "C": 16},
)
# The blocks with every form of the labels; of the dtypes those that training has.
CONFIGURATIONS = [
    _TOTALS,
    *(
        _form(features, labels, values, form, shifted, block)
        for block in _ROWS
        for features in ("*fp32", "*bf16")
        for labels, values, form, shifted in (
            ("*i64", None, _INDICES, False),
            ("*i64", None, _INDICES, True),
            ("*fp32", None, _DENSE, True),
            ("*i64", "*fp32", _CSR, True),
        )
    ),
]


def label_sums(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class indices (n,) or dense labels (n, l). See :func:`lip_fast.ops.label_sums`."""
    return _sums(_INDICES if Y.dim() == 1 else _DENSE, X, None, Y, None, A, B, bias)


def label_sums_csr(
    X: Tensor, crow: Tensor, col: Tensor, values: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels as a CSR matrix (n, l). See :func:`lip_fast.ops.label_sums`."""
    return _sums(_CSR, X, crow.contiguous(), col.contiguous(), values, A, B, bias)


def _sums(
    form: int,
    X: Tensor,
    crow: Tensor | None,
    Y: Tensor,
    values: Tensor | None,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, q), (l, r) = X.shape, A.shape
    block = next((block for block in _ROWS if block >= r), max(_ROWS))
    tile = {"N": _ROWS[block], "R": block, "K": _FEATURES_AT_A_TIME}
    row_tiles = triton.cdiv(n, tile["N"])
    tiles = max(triton.cdiv(row_tiles, _RUNS), 1)
    # An empty batch is one empty run, and no directions are one empty block: the energy is still wanted.
    runs = max(triton.cdiv(row_tiles, tiles), 1)
    out = X.new_empty((runs, 2 * r + 2), dtype=torch.float64)
    constants = {"FORM": form, "SHIFTED": bias is not None, "IGNORED": IGNORE_INDEX, **tile}
    Configuration(label_sums_kernel, {}, constants, registers=_REGISTERS).launch(
        (runs, max(triton.cdiv(r, block), 1)),
        X=X,
        Y=Y,
        crow=crow,
        values=values,
        A=A,
        B=B,
        shift=None if bias is None else bias.to(A.dtype) @ A,
        out=out,
        **{"n": n, "q": q, "l": l, "r": r, "tiles": tiles},
        **strides("X", X),
        Y_s0=Y.stride(0),
        Y_s1=Y.stride(1) if form == _DENSE else 0,
        **strides("A", A),
        **strides("B", B),
        values_stride=0 if values is None else values.stride(0),
    )
    numerator, denominator = out.new_empty(r), out.new_empty(r)
    energy, masked = out.new_empty(()), out.new_empty((), dtype=torch.int64)
    _TOTALS.launch(
        (triton.cdiv(2 * r + 2, _TOTALS.constexprs["C"]),),
        out=out,
        numerator=numerator,
        denominator=denominator,
        energy=energy,
        masked=masked,
        runs=runs,
        r=r,
    )
    return numerator, denominator, energy, masked
