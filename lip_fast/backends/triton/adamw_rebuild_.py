"""Write the weight that AdamW updated: A diag(s) B^T, or M' + A diag(s) B^T, or M' alone.

M, exp_avg and the squares (l, q) in float32, bfloat16 or float16; A (l, t), s (t,), B (q, t) in float32. A
flag on the device chooses. Grid: tiles of M. Into float16 a first pass looks whether all entries fit.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.adamw_update import adamw_recompute, adamw_scalars, log
from lip_fast.backends.triton.configuration import Configuration
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
)


@triton.jit(do_not_specialize=["seed"])
def adamw_rebuild_kernel(
    M, exp_avg, squares, A, s, B, written, lr, update_count, step, found_inf, seed,
    l, q, t, M_s0, M_s1, A_s0, A_s1, B_s0, B_s1, log_beta1, log_beta2, eps, weight_decay, largest,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, CHECK: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of M; with CHECK it is looked at, and not written."""
    tiles = tl.cdiv(q, BLOCK_Q)
    first_column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_Q
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = first_column + tl.arange(0, BLOCK_Q)
    there = (rows[:, None] < l) & (columns[None, :] < q)
    where = offsets(rows, columns, M_s0, M_s1)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    step_size, correction, shrinkage = adamw_scalars(lr, update_count, log_beta1, log_beta2, weight_decay)
    # The old weight and the state are not read where the factors replace them.
    needed = there
    if not ACCUMULATE:
        needed = there & is_unset(written, BLOCK_L, BLOCK_Q)
    updated = adamw_recompute(
        M, exp_avg, squares, where, needed, step_size, correction, shrinkage, eps, apply
    )
    product = product_tile(
        A, s, B, rows, columns, l, q, t, A_s0, A_s1, B_s0, B_s1, BLOCK_L, BLOCK_Q, BLOCK_T, PRECISION
    )
    finish_tile(
        M, where, there, updated, product, rows, first_column, written, apply, step, seed, largest,
        ACCUMULATE, DROPPED, CHECK, BLOCK_L, BLOCK_Q,
    )  # fmt: skip


@functools.cache
def _form(
    dtypes: tuple[torch.dtype, torch.dtype], accumulate: bool, guarded: bool, check: bool = False
) -> Configuration:
    """For dtypes of weight and state."""
    pointers = {"M": POINTERS[dtypes[0]], "exp_avg": POINTERS[dtypes[-1]], "squares": POINTERS[dtypes[-1]]}
    pointers |= dict.fromkeys(("A", "s", "B", "lr", "update_count", "found_inf"), "*fp32")
    pointers |= {"written": "*i1", "step": "*i64", "seed": "i64"}
    absent = {} if guarded else {"found_inf": None}
    return Configuration(
        adamw_rebuild_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q t M_s0 A_s1 B_s1",
            "log_beta1 log_beta2 eps weight_decay largest",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "A_s0", "B_s0"), 1),
            "ACCUMULATE": accumulate,
            "DROPPED": DROPPED_BITS.get(dtypes[0], 0),
            "CHECK": check,
            **TILE,
        },
        num_warps=TILE_WARPS,
        registers=REGISTERS,
    )


CONFIGURATIONS = [*rebuild_forms(_form)]


def adamw_rebuild_(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    lr: Tensor,
    update_count: Tensor,
    step: Tensor,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place. See :func:`lip_fast.ops.adamw_rebuild_`."""
    form = functools.partial(_form, (M.dtype, exp_avg.dtype), accumulate, found_inf is not None)
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
        exp_avg=exp_avg,
        squares=exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq,
        lr=lr,
        update_count=update_count,
        log_beta1=log(beta1),
        log_beta2=log(beta2),
        eps=eps,
        weight_decay=weight_decay,
    )
