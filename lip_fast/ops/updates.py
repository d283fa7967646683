"""An optimizer's update of a weight as a part of the power step.

Updates of a large weight are ops of the step, for it to be read and written as seldom as can be: the update
with one or both products, the second product, and the write. Until the last, the updated weight M' need not
exist: it is a function of M, the gradient and the updated state (:mod:`lip_fast.rules`), computed where it is
needed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.one_read import is_cached
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.ops.checks import elsewhere, expected, not_a_matrix, wrong_dtype, wrong_shape
from lip_fast.ops.op import Op
from lip_fast.ops.products import check_product
from lip_fast.ops.rebuild_ import check_written
from lip_fast.rules import Updated

__all__ = [
    "fuses_updates",
    "update_one_read_",
    "update_project",
    "update_rebuild_",
    "update_sketch_",
]

_TAKEN = "Tensor(a!) M, Tensor(b!) grad, Tensor(c!)[] state"
_HOW = "Tensor[] scalars, Tensor? grad_scale, Tensor? found_inf, str rule, float[] settings"
_ONE_PASS = "one pass over the weight and its state"


def fuses_updates(device: torch.device) -> bool:
    """Whether kernels of ours take updates on ``device``; elsewhere torch's step comes before that of LIP."""
    return backends.backend_of("update_sketch_", device.type) != "default"


class _UpdateOp(Op):
    """An op that begins with the operands of an :class:`Updated`, which its functions take as one."""

    def taking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: function(Updated.of(*operands[:8]), *operands[8:])

    def __call__(self, updated: Updated, *rest: Any) -> Any:
        self.check(updated, *rest)
        return self.run(*updated.operands(), *rest)


def _check(updated: Updated) -> None:
    M, how, state, scaling = updated.M, updated.rule, updated.state, updated.scaling
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    device = M.device
    if not how.NEEDED <= len(state) <= len(how.STATE):
        names = ", ".join(how.STATE)
        raise expected(f"{how.NEEDED} to {len(how.STATE)} tensors of state ({names})", len(state))
    for name, X in (("grad", updated.grad), *zip(how.STATE, state, strict=False)):
        if X.dim() != 2 or not X.is_floating_point():
            raise not_a_matrix(name, X)
        if X.shape != M.shape:
            raise wrong_shape(name, X, M.shape)
        if X.device != device:
            raise elsewhere(name, X, "M", device)
    named = zip((*how.SCALARS, *scaling._fields), (*how.scalars(), *scaling), strict=True)
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


def _checked(check: Callable[..., None]) -> Callable[..., None]:
    """The check of an op: of the updated weight, and with ``check`` of how the other operands fit it."""

    def both(updated: Updated, *rest: Any) -> None:
        _check(updated)
        check(updated.M, *rest)

    return both


def _sketch(updated: Updated, V: Tensor, write: bool) -> Tensor:
    return V.new_empty(V.shape[1], updated.M.shape[0]).mT


def _project(updated: Updated, Y: Tensor, *rest: Any) -> Tensor:
    return Y.new_empty(Y.shape[1], updated.M.shape[1]).mT


def _can_triton(updated: Updated, skinny: Tensor, *rest: Any) -> bool:
    """Whether the kernels load these formats, and the state is laid out as the weight is."""
    M = updated.M
    strides = M.stride()
    return (
        M.dtype in STORED
        and updated.grad.dtype in STORED
        and skinny.dtype == torch.float32
        and all(X.dtype in STORED and X.stride() == strides for X in updated.state)
    )


def _can_triton_product(updated: Updated, skinny: Tensor, *rest: Any) -> bool:
    return skinny.shape[1] <= MAX_COLUMNS and _can_triton(updated, skinny)


def _can_native(updated: Updated, V: Tensor, write: bool) -> bool:
    given = (updated.M, updated.grad, *updated.state, V, *updated.rule.scalars(), *updated.scaling)
    return all(X is None or X.dtype == torch.float32 for X in given)


_SKETCH = _UpdateOp(
    f"update_sketch_({_TAKEN}, {_HOW}, Tensor V, bool write) -> Tensor",
    check=_checked(lambda M, V, write: check_product(M, "V", V, 1)),
    outputs=_sketch,
    default="default.update:update_sketch_",
    kernels=(Kernel("triton.update_sketch_", can=_can_triton_product, reason=_ONE_PASS),),
)
_ONE_READ = _UpdateOp(
    f"update_one_read_({_TAKEN}, {_HOW}, Tensor V, bool write) -> (Tensor, Tensor)",
    check=_checked(lambda M, V, write: check_product(M, "V", V, 1)),
    outputs=lambda *how: (_sketch(*how), _project(*how)),
    default="default.update:update_one_read_",
    kernels=(
        Kernel(
            "native.update_one_read_",
            "cuda",
            can=_can_native,
            pays=lambda updated, *how: not is_cached(updated.M) and _can_native(updated, *how),
            reason="reads a large weight and its state once",
        ),
    ),
)
_PROJECT = _UpdateOp(
    f"update_project(Tensor M, Tensor grad, Tensor[] state, {_HOW}, Tensor Y) -> Tensor",
    check=_checked(lambda M, Y: check_product(M, "Y", Y, 0)),
    outputs=_project,
    default="default.update:update_project",
    kernels=(Kernel("triton.project:update_project", can=_can_triton_product, reason=_ONE_PASS),),
)
_REBUILD = _UpdateOp(
    f"update_rebuild_(Tensor(a!) M, Tensor grad, Tensor[] state, {_HOW}, Tensor A, Tensor s, Tensor B,"
    " Tensor ok, Tensor step, bool accumulate, int seed) -> Tensor",
    check=_checked(check_written),
    outputs=lambda updated, A, s, B, ok, *how: torch.empty_like(ok),
    default="default.update:update_rebuild_",
    kernels=(Kernel("triton.rebuild_:update_rebuild_", can=_can_triton, reason=_ONE_PASS),),
)


def update_sketch_(updated: Updated, V: Tensor, *, write: bool) -> Tensor:
    """An optimizer's update of a weight and the first product of the power step, in one pass: Y = M' V.

    The gradient is grad / grad_scale, rounded to the dtype of ``grad``. The state is rounded to its dtypes
    before M' is taken from it, so that M' is a function of what is stored. Where ``found_inf`` is not 0
    nothing is written, and Y = M V.

    Args:
        updated: the weight as it is before the update. Its M is written iff ``write``: M', rounded to
            nearest; its gradient iff there is a ``grad_scale``: without it; its state always.
        V: (q, m) float32 or float64, its columns contiguous for speed.
        write: whether M' is stored. If not, :func:`update_rebuild_` must follow.

    Returns:
        Y (l, m), its columns contiguous, in the dtype of ``V``: of M' as stored where it is, else of M'
        before it is rounded to the dtype of M.
    """
    Y: Tensor = _SKETCH(updated, V, write)
    _tell_autograd(updated, write)
    return Y


def update_one_read_(updated: Updated, V: Tensor, *, write: bool) -> tuple[Tensor, Tensor]:
    """An optimizer's update of a weight and both products of the power step: Y = M' V and Z = M'^T Y.

    A kernel that reads the weight and its state once gives Y and Z as :func:`lip_fast.ops.sketch` does of M'.
    Elsewhere it is :func:`update_sketch_` and the second product.

    Args:
        updated: as for :func:`update_sketch_`, and so are the others.
        V: (q, m).
        write: whether M' is stored.

    Returns:
        Y (l, m) and Z (q, m), their columns contiguous, in the dtype of ``V``: of M' as stored where it is,
        else of M' before it is rounded to the dtype of M.
    """
    products: tuple[Tensor, Tensor] = _ONE_READ(updated, V, write)
    _tell_autograd(updated, write)
    return products


def update_project(updated: Updated, Y: Tensor) -> Tensor:
    """Z = M'^T Y of a weight that :func:`update_sketch_` updated and did not write.

    Args:
        updated: as the update left it.
        Y: (l, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    return _PROJECT(updated, Y)


def update_rebuild_(
    updated: Updated,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    *,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """Write the weight that :func:`update_sketch_` updated and did not write, once and for all.

    Where ``ok``: A diag(s) B^T, or with ``accumulate`` M' + A diag(s) B^T; stochastically rounded into
    bfloat16 and float16, by bits of (seed, step), as :func:`lip_fast.ops.rebuild_` does. Elsewhere: M'
    rounded to nearest, the bits that the update alone would have written. Where ``found_inf`` is not 0, M
    stays as it is.

    Args:
        updated: as the update left it; its M is written in place.
        A: (l, t) float32 or float64.
        s: (t,) in the dtype of ``A``.
        B: (q, t) in the dtype of ``A``.
        ok: () bool.
        step: () int64.
        accumulate: add to M' rather than replace it.
        seed: of the rounding.

    Returns:
        () bool: whether the factors were written; not where float16 could not hold their product.
    """
    written: Tensor = _REBUILD(updated, A, s, B, ok, step, accumulate, seed)
    torch.autograd.graph.increment_version(updated.M)
    return written


def _tell_autograd(updated: Updated, write: bool) -> None:
    """Of what was written: a graph that saved one of them must not go on with it."""
    written = [updated.M] * write + [updated.grad] * (updated.scaling.grad_scale is not None)
    for tensor in (*written, *updated.state):
        torch.autograd.graph.increment_version(tensor)
