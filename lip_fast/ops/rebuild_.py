"""Writing the weight from its factors."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import STORED
from lip_fast.ops.checks import (
    COMPUTED,
    SEEDS,
    bad_step,
    elsewhere,
    expected,
    not_a_matrix,
    not_columns_of_a_kind,
    wrong_dtype,
    wrong_shape,
)
from lip_fast.ops.op import Op

__all__ = ["check_written", "rebuild_"]


def check_written(
    M: Tensor, A: Tensor, s: Tensor, B: Tensor, ok: Tensor, step: Tensor, accumulate: bool, seed: int
) -> None:
    """Refuse factors and flags that do not fit the weight that is to be written from them."""
    device = M.device
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS or step.device != device:
        raise bad_step(step, seed, "M", device)
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if s.dim() != 1:
        raise expected("s of shape (t,)", s)
    t = s.shape[0]
    if A.dim() != 2 or A.dtype not in COMPUTED or A.shape[1] != t:
        raise not_columns_of_a_kind(A, B, t)
    if B.dim() != 2 or B.dtype != A.dtype or B.shape[1] != t:
        raise not_columns_of_a_kind(A, B, t)
    if M.shape != (A.shape[0], B.shape[0]):
        raise wrong_shape("M", M, (A.shape[0], B.shape[0]))
    if ok.dim():
        raise wrong_shape("ok", ok, ())
    if ok.dtype != torch.bool:
        raise wrong_dtype("ok in torch.bool", ok)
    for name, X in (("A", A), ("s", s), ("B", B), ("ok", ok)):
        if X.device != device:
            raise elsewhere(name, X, "M", device)


def _rounds_natively(M: Tensor, A: Tensor, *rest: object) -> bool:
    """On the host the kernel differs from the default one in its rounding alone."""
    return A.dtype == torch.float32 and (M.dtype == torch.bfloat16 or M.dtype == torch.float16)


_OP = Op(
    "rebuild_(Tensor(a!) M, Tensor A, Tensor s, Tensor B, Tensor ok, Tensor step, bool accumulate, int seed)"
    " -> Tensor",
    check=check_written,
    outputs=lambda M, A, s, B, ok, *how: torch.empty_like(ok),
    default="default.rebuild_",
    kernels=(
        Kernel("native.rebuild_", "cpu", can=_rounds_natively, reason="faster rounding to narrow formats"),
        Kernel(
            "native.rebuild_",
            "cuda",
            can=lambda M, A, *rest: A.dtype == torch.float32,
            reason="does not wait for the device to round",
        ),
        Kernel(
            "triton.rebuild_",
            can=lambda M, A, *rest: M.dtype in STORED and A.dtype == torch.float32,
            reason="writes the weight in one pass",
        ),
    ),
)


def rebuild_(
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    *,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """Write M = A diag(s) B^T, or with ``accumulate`` M += A diag(s) B^T, where ``ok``.

    Into bfloat16 and float16 the result is rounded stochastically, by bits of (seed, step).

    Args:
        M: (l, q) floating point, written in place; bit-unchanged where ``ok`` is False.
        A: (l, t) float32 or float64.
        s: (t,) in the dtype of ``A``.
        B: (q, t) in the dtype of ``A``.
        ok: () bool.
        step: () int64.
        accumulate: add to M rather than replace it.
        seed: of the rounding.

    Returns:
        () bool: whether it was written; not where float16 could not hold it.
    """
    written: Tensor = _OP(M, A, s, B, ok, step, accumulate, seed)
    # The ops bypass autograd, so a graph that saved M must be told that it changed.
    torch.autograd.graph.increment_version(M)
    return written
