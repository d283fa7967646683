"""Write the weight that SGD updated: A diag(s) B^T, or M' + A diag(s) B^T, or M' alone.

M, grad and momentum_buffer (l, q) in float32, bfloat16 or float16; A (l, t), s (t,), B (q, t) in float32. A
flag on the device chooses. Grid: tiles of M. Into float16 a first pass looks whether all entries fit.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.sgd_update import sgd_recompute
from lip_fast.backends.triton.update import (
    DROPPED_BITS,
    POINTERS,
    REGISTERS,
    TILE,
    TILE_WARPS,
    finish_tile,
    is_unset,
    offsets,
    product_tile,
    rebuild_forms,
    run_rebuild,
    signature,
    strides,
)


@triton.jit(do_not_specialize=["seed"])
def sgd_rebuild_kernel(
    M, grad, momentum_buffer, A, s, B, written, lr, step, found_inf, seed,
    l, q, t, M_s0, M_s1, grad_s0, grad_s1, A_s0, A_s1, B_s0, B_s1, momentum, weight_decay, sign, largest,
    NESTEROV: tl.constexpr, ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, CHECK: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of M; with CHECK it is looked at, and not written."""
    tiles = tl.cdiv(q, BLOCK_Q)
    first_column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_Q
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = first_column + tl.arange(0, BLOCK_Q)
    there = (rows[:, None] < l) & (columns[None, :] < q)
    where = offsets(rows, columns, M_s0, M_s1)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    # The old weight and the state are not read where the factors replace them.
    needed = there
    if not ACCUMULATE:
        needed = there & is_unset(written, BLOCK_L, BLOCK_Q)
    updated = sgd_recompute(
        M, grad, momentum_buffer, where, offsets(rows, columns, grad_s0, grad_s1), needed,
        tl.load(lr).to(tl.float32), momentum, weight_decay, sign, NESTEROV, apply,
    )  # fmt: skip
    product = product_tile(
        A, s, B, rows, columns, l, q, t, A_s0, A_s1, B_s0, B_s1, BLOCK_L, BLOCK_Q, BLOCK_T, PRECISION
    )
    finish_tile(
        M, where, there, updated, product, rows, first_column, written, apply, step, seed, largest,
        ACCUMULATE, DROPPED, CHECK, BLOCK_L, BLOCK_Q,
    )  # fmt: skip


@functools.cache
def _form(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    accumulate: bool,
    guarded: bool,
    check: bool = False,
    buffered: bool = True,
    nesterov: bool = False,
) -> Configuration:
    """For dtypes of weight, gradient and buffer."""
    weight, gradient, state = (POINTERS[dtype] for dtype in dtypes)
    pointers = {"M": weight, "grad": gradient, "momentum_buffer": state}
    pointers |= dict.fromkeys(("A", "s", "B", "lr", "found_inf"), "*fp32")
    pointers |= {"written": "*i1", "step": "*i64", "seed": "i64"}
    absent = {
        name: None for name, there in (("momentum_buffer", buffered), ("found_inf", guarded)) if not there
    }
    return Configuration(
        sgd_rebuild_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q t M_s0 grad_s0 A_s1 B_s1",
            "momentum weight_decay sign largest",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "grad_s1", "A_s0", "B_s0"), 1),
            "NESTEROV": nesterov,
            "ACCUMULATE": accumulate,
            "DROPPED": DROPPED_BITS.get(dtypes[0], 0),
            "CHECK": check,
            **TILE,
        },
        num_warps=TILE_WARPS,
        registers=REGISTERS,
    )


CONFIGURATIONS = [
    *rebuild_forms(_form),
    *rebuild_forms(functools.partial(_form, nesterov=True))[2:],
    _form((torch.float32, torch.float32, torch.float32), True, False, buffered=False),
]


def sgd_rebuild_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    lr: Tensor,
    step: Tensor,
    found_inf: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place. See :func:`lip_fast.ops.sgd_rebuild_`."""

    def form(check: bool) -> Configuration:
        return _form(
            (M.dtype, grad.dtype, M.dtype if momentum_buffer is None else momentum_buffer.dtype),
            accumulate,
            found_inf is not None,
            check,
            momentum_buffer is not None,
            nesterov,
        )

    return run_rebuild(
        form,
        M,
        A,
        s,
        B,
        ok,
        step,
        found_inf,
        seed,
        grad=grad,
        momentum_buffer=momentum_buffer,
        lr=lr,
        **strides("grad", grad),
        momentum=momentum,
        weight_decay=weight_decay,
        sign=-1.0 if maximize else 1.0,
    )
