"""An optimizer's update of a weight with the first product of the power step.

Updates of a large weight are ops of the step, for it to be read and written as seldom as can be: the update
with one or both products, the second product, and the write. Until the last, the updated weight M' need not
exist: it is a function of M, the gradient and the updated state (:mod:`lip_fast.rules`), computed where it is
needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.ops.checks import elsewhere, expected, not_a_matrix, wrong_dtype, wrong_shape
from lip_fast.ops.op import Op
from lip_fast.ops.sketch import check_sketch
from lip_fast.rules import Rule, rule_of

__all__ = [
    "NO_SCALING",
    "Scaling",
    "check_update",
    "fuses_updates",
    "is_served_by_triton",
    "update_sketch_",
    "versions",
]


class Scaling(NamedTuple):
    """What ``torch.amp.GradScaler`` tells a fused optimizer: 0-d float32 tensors, or None.

    The gradient is divided by ``grad_scale``, in place; where ``found_inf`` is not 0, nothing is written.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


NO_SCALING = Scaling()


def fuses_updates(device: torch.device) -> bool:
    """Whether kernels of ours take updates on ``device``; elsewhere torch's step comes before that of LIP."""
    return backends.backend_of("update_sketch_", device.type) != "default"


def check_update(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    scalars: Sequence[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    rule: str,
    settings: Sequence[float],
) -> None:
    """Refuse a gradient, a state, or a rule and its scalars that do not fit the weight or each other."""
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    how, device = rule_of(rule, scalars, settings), M.device
    if not how.NEEDED <= len(state) <= len(how.STATE):
        names = ", ".join(how.STATE)
        raise expected(f"{how.NEEDED} to {len(how.STATE)} tensors of state ({names})", len(state))
    for name, X in (("grad", grad), *zip(how.STATE, state, strict=False)):
        if X.dim() != 2 or not X.is_floating_point():
            raise not_a_matrix(name, X)
        if X.shape != M.shape:
            raise wrong_shape(name, X, M.shape)
        if X.device != device:
            raise elsewhere(name, X, "M", device)
    named = zip((*how.SCALARS, "grad_scale", "found_inf"), (*scalars, grad_scale, found_inf), strict=True)
    for name, x in named:
        if x is None:
            continue
        if x.dim():
            raise wrong_shape(name, x, ())
        if x.device != device:
            raise elsewhere(name, x, "M", device)
        if not x.is_floating_point():
            raise wrong_dtype(f"{name} in a floating-point dtype", x)
    how.check(state)


def is_served_by_triton(M: Tensor, grad: Tensor, state: Sequence[Tensor], skinny: Tensor) -> bool:
    """Whether the kernels load these formats, and the state is laid out as the weight is."""
    strides = M.stride()
    return (
        M.dtype in STORED
        and grad.dtype in STORED
        and skinny.dtype == torch.float32
        and all(X.dtype in STORED and X.stride() == strides for X in state)
    )


def versions(M: Tensor | None, grad: Tensor | None, state: Sequence[Tensor]) -> None:
    """Tell autograd of what was written: a graph that saved one of them must not go on with it."""
    for tensor in (M, grad, *state):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


def _check(M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, *how: Any) -> None:
    check_update(M, grad, state, *how[:-1])
    check_sketch(M, V)


def _outputs(M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, *rest: object) -> Tensor:
    return V.new_empty(V.shape[1], M.shape[0]).mT


def _can_triton(M: Tensor, grad: Tensor, state: Sequence[Tensor], V: Tensor, *rest: object) -> bool:
    return V.shape[1] <= MAX_COLUMNS and is_served_by_triton(M, grad, state, V)


_OP = Op(
    "update_sketch_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)[] state, Tensor V, Tensor[] scalars,"
    " Tensor? grad_scale, Tensor? found_inf, str rule, float[] settings, bool write) -> Tensor",
    check=_check,
    outputs=_outputs,
    default="default.update:update_sketch_",
    kernels=(
        Kernel("triton.update_sketch_", can=_can_triton, reason="one pass over the weight and its state"),
    ),
)


def update_sketch_(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    V: Tensor,
    rule: Rule,
    *,
    write: bool,
    scaling: Scaling = NO_SCALING,
) -> Tensor:
    """An optimizer's update of a weight and the first product of the power step, in one pass: Y = M' V.

    The gradient is grad / grad_scale, rounded to the dtype of ``grad``. The state is rounded to its dtypes
    before M' is taken from it, so that M' is a function of what is stored. Where ``found_inf`` is not 0
    nothing is written, and Y = M V.

    Args:
        M: (l, q) floating point. Written iff ``write``: M', rounded to nearest.
        grad: (l, q) floating point. Written iff there is a ``grad_scale``: the gradient without it.
        state: what the rule keeps of the weight, in the order of its ``STATE``: each (l, q) floating point,
            with the strides of the weight for speed; written.
        V: (q, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        write: whether M' is stored. If not, :func:`lip_fast.ops.update_rebuild_` must follow.
        scaling: of the gradient.

    Returns:
        Y (l, m), its columns contiguous, in the dtype of ``V``: of M' as stored where it is, else of M'
        before it is rounded to the dtype of M.
    """
    state = list(state)
    Y: Tensor = _OP(M, grad, state, V, rule.scalars(), *scaling, rule.NAME, rule.settings(), write)
    versions(M if write else None, None if scaling.grad_scale is None else grad, state)
    return Y
