"""An optimizer's update of a weight with both products of the power step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.one_read import is_cached
from lip_fast.ops.op import Op
from lip_fast.ops.sketch import check_sketch
from lip_fast.ops.update_sketch_ import NO_SCALING, Scaling, check_update, versions
from lip_fast.rules import Rule

__all__ = ["reads_once", "update_one_read_"]


def reads_once(M: Tensor) -> bool:
    """Whether one kernel takes the update of a float32 weight ``M`` and both products."""
    return backends.backend_of("update_one_read_", M.device.type) == "native" and not is_cached(M)


def _check(M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, *how: Any) -> None:
    check_update(M, grad, state, *how[:-1])
    check_sketch(M, V)


def _outputs(
    M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, *rest: object
) -> tuple[Tensor, Tensor]:
    (l, q), m = M.shape, V.shape[1]
    return V.new_empty(m, l).mT, V.new_empty(m, q).mT


def _can_native(
    M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, scalars: Sequence[Tensor], *how: Any
) -> bool:
    grad_scale, found_inf = how[:2]
    given = (M, grad, *state, V, *scalars, grad_scale, found_inf)
    return all(X is None or X.dtype == torch.float32 for X in given)


def _pays_native(M: Tensor, *rest: Any) -> bool:
    return not is_cached(M) and _can_native(M, *rest)


_OP = Op(
    "update_one_read_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)[] state, Tensor V, Tensor[] scalars,"
    " Tensor? grad_scale, Tensor? found_inf, str rule, float[] settings, bool write) -> (Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.update:update_one_read_",
    kernels=(
        Kernel(
            "native.update_one_read_",
            "cuda",
            can=_can_native,
            pays=_pays_native,
            reason="reads a large weight and its state once",
        ),
    ),
)


def update_one_read_(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    V: Tensor,
    rule: Rule,
    *,
    write: bool,
    scaling: Scaling = NO_SCALING,
) -> tuple[Tensor, Tensor]:
    """An optimizer's update of a weight and both products of the power step: Y = M' V and Z = M'^T Y.

    A kernel that reads the weight and its state once gives Y and Z as :func:`lip_fast.ops.sketch` does of M'.
    Elsewhere it is :func:`lip_fast.ops.update_sketch_` and the second product.

    Args:
        M: as for :func:`lip_fast.ops.update_sketch_`, and so are the others.
        grad: (l, q).
        state: written.
        V: (q, m).
        rule: of the update.
        write: whether M' is stored.
        scaling: of the gradient.

    Returns:
        Y (l, m) and Z (q, m), their columns contiguous, in the dtype of ``V``: of M' as stored where it is,
        else of M' before it is rounded to the dtype of M.
    """
    state = list(state)
    products: tuple[Tensor, Tensor] = _OP(
        M, grad, state, V, rule.scalars(), *scaling, rule.NAME, rule.settings(), write
    )
    versions(M if write else None, None if scaling.grad_scale is None else grad, state)
    return products
