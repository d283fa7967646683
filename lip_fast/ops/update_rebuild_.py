"""Writing a weight that is updated and not written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.ops.op import Op
from lip_fast.ops.rebuild_ import check_written
from lip_fast.ops.update_sketch_ import check_update, is_served_by_triton
from lip_fast.rules import Rule

__all__ = ["update_rebuild_"]


def _check(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    scalars: Sequence[Tensor],
    found_inf: Tensor | None,
    rule: str,
    settings: Sequence[float],
    accumulate: bool,
    seed: int,
) -> None:
    check_update(M, grad, state, scalars, None, found_inf, rule, settings)
    check_written(M, A, s, B, ok, step, accumulate, seed)


def _outputs(M: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(rest[5])  # ok


def _can_triton(M: Tensor, grad: Tensor, state: Sequence[Tensor], A: Tensor, *rest: object) -> bool:
    return is_served_by_triton(M, grad, state, A)


_OP = Op(
    "update_rebuild_(Tensor(a!) M, Tensor grad, Tensor[] state, Tensor A, Tensor s, Tensor B, Tensor ok,"
    " Tensor step, Tensor[] scalars, Tensor? found_inf, str rule, float[] settings, bool accumulate,"
    " int seed) -> Tensor",
    check=_check,
    outputs=_outputs,
    default="default.update:update_rebuild_",
    kernels=(
        Kernel("triton.update_rebuild_", can=_can_triton, reason="one pass over the weight and its state"),
    ),
)


def update_rebuild_(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    A: Tensor,
    s: Tensor,
    B: Tensor,
    rule: Rule,
    *,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
    found_inf: Tensor | None = None,
) -> Tensor:
    """Write the weight that :func:`lip_fast.ops.update_sketch_` updated and did not write, once and for all.

    Where ``ok``: A diag(s) B^T, or with ``accumulate`` M' + A diag(s) B^T; stochastically rounded into
    bfloat16 and float16, by bits of (seed, step), as :func:`lip_fast.ops.rebuild_` does. Elsewhere: M'
    rounded to nearest, the bits that the update alone would have written. Where ``found_inf`` is not 0, M
    stays as it is.

    Args:
        M: (l, q) floating point, as it was before the update; written in place.
        grad: (l, q), as the update left it.
        state: as updated.
        A: (l, t) float32 or float64.
        s: (t,) in the dtype of ``A``.
        B: (q, t) in the dtype of ``A``.
        rule: of the update.
        ok: () bool.
        step: () int64.
        accumulate: add to M' rather than replace it.
        seed: of the rounding.
        found_inf: as in the update.

    Returns:
        () bool: whether the factors were written; not where float16 could not hold their product.
    """
    how = (rule.scalars(), found_inf, rule.NAME, rule.settings(), accumulate, seed)
    written: Tensor = _OP(M, grad, list(state), A, s, B, ok, step, *how)
    torch.autograd.graph.increment_version(M)
    return written
