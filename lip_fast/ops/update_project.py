"""The second product of a power step of a weight that is updated and not written."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import MAX_COLUMNS
from lip_fast.ops.op import Op
from lip_fast.ops.project import check_project
from lip_fast.ops.update_sketch_ import check_update, is_served_by_triton
from lip_fast.rules import Rule

__all__ = ["update_project"]


def _check(
    M: Tensor, grad: Tensor, state: Sequence[Tensor], Y: Tensor, scalars: Sequence[Tensor], *how: Any
) -> None:
    found_inf, rule, settings = how
    check_update(M, grad, state, scalars, None, found_inf, rule, settings)
    check_project(M, Y)


def _outputs(M: Tensor, grad: Tensor, state: Sequence[Tensor], Y: Tensor, *rest: object) -> Tensor:
    return Y.new_empty(Y.shape[1], M.shape[1]).mT


def _can_triton(M: Tensor, grad: Tensor, state: Sequence[Tensor], Y: Tensor, *rest: object) -> bool:
    return Y.shape[1] <= MAX_COLUMNS and is_served_by_triton(M, grad, state, Y)


_OP = Op(
    "update_project(Tensor M, Tensor grad, Tensor[] state, Tensor Y, Tensor[] scalars, Tensor? found_inf,"
    " str rule, float[] settings) -> Tensor",
    check=_check,
    outputs=_outputs,
    default="default.update:update_project",
    kernels=(
        Kernel(
            "triton.project:update_project",
            can=_can_triton,
            reason="one pass over the weight and its state",
        ),
    ),
)


def update_project(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    Y: Tensor,
    rule: Rule,
    *,
    found_inf: Tensor | None = None,
) -> Tensor:
    """Z = M'^T Y of a weight that :func:`lip_fast.ops.update_sketch_` updated and did not write.

    Args:
        M: (l, q) floating point, as it was before the update.
        grad: (l, q), as the update left it.
        state: as updated.
        Y: (l, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        found_inf: as in the update: where it is not 0, M' = M.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    Z: Tensor = _OP(M, grad, list(state), Y, rule.scalars(), found_inf, rule.NAME, rule.settings())
    return Z
