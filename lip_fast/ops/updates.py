# ruff: noqa: E501
"""An optimizer's update of a weight within the step, with the products of the power step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.one_read import is_cached
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.ops.checks import COMPUTED as _COMPUTE_DTYPES
from lip_fast.ops.op import Op
from lip_fast.ops.rebuild_ import check_written
from lip_fast.ops.sketch import check_sketch as _check_sketch


class AdamWState(NamedTuple):
    """What ``torch.optim.AdamW`` keeps of a weight: each (l, q), with the strides of the weight for speed."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None = None
    """Only with amsgrad."""


class AdamWRule(NamedTuple):
    """How ``torch.optim.AdamW`` updates a weight.

    ``lr`` and ``update_count`` (``state["step"]``, already increased for this step) are 0-d tensors on the
    device of the weight.
    """

    lr: Tensor
    update_count: Tensor
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    maximize: bool = False


class SGDRule(NamedTuple):
    """How ``torch.optim.SGD`` updates a weight; ``lr`` is a 0-d tensor on the device of the weight."""

    lr: Tensor
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


class Scaling(NamedTuple):
    """What ``torch.amp.GradScaler`` tells a fused optimizer: 0-d float32 tensors, or None.

    The gradient is divided by ``grad_scale``, in place; where ``found_inf`` is not 0, nothing is written.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


def _expect(condition: bool, expected: str, got: str) -> None:
    if not condition:
        raise ValueError(f"expected {expected}, got {got}")


def _shape(X: Tensor) -> str:
    return str(tuple(X.shape))


def _check_matrix(name: str, X: Tensor, dtypes: Sequence[torch.dtype] | None = None) -> None:
    _expect(X.dim() == 2, f"{name} to be a matrix", f"shape {_shape(X)}")
    if not X.is_floating_point():
        raise TypeError(f"expected {name} in a floating-point dtype, got {X.dtype}")
    if dtypes is not None and X.dtype not in dtypes:
        raise TypeError(f"expected {name} in one of {tuple(dtypes)}, got {X.dtype}")


def _takes_update(M: Tensor, grad: Tensor | None, state: Sequence[Tensor | None], *skinny: Tensor) -> bool:
    """Formats that the kernels of the updates load, and a state that is laid out as the weight is."""
    held = [X for X in state if X is not None]
    return (
        all(X.dtype in STORED for X in (M, *held))
        and (grad is None or grad.dtype in STORED)
        and all(X.stride() == M.stride() for X in held)
        and all(X.dtype == torch.float32 for X in skinny)
    )


def _can_adamw_sketch(
    M: Tensor, grad: Tensor, m: Tensor, v: Tensor, u: Tensor | None, V: Tensor, *rest: Any
) -> bool:
    return _takes_update(M, grad, (m, v, u), V) and V.shape[1] <= MAX_COLUMNS


def _can_adamw_project(M: Tensor, m: Tensor, v: Tensor, u: Tensor | None, Y: Tensor, *rest: Any) -> bool:
    return _takes_update(M, None, (m, v, u), Y) and Y.shape[1] <= MAX_COLUMNS


def _can_adamw_rebuild(M: Tensor, m: Tensor, v: Tensor, u: Tensor | None, A: Tensor, *rest: Any) -> bool:
    return _takes_update(M, None, (m, v, u), A)


def _can_sgd_sketch(M: Tensor, grad: Tensor, buffer: Tensor | None, V: Tensor, *rest: Any) -> bool:
    return _takes_update(M, grad, (buffer,), V) and V.shape[1] <= MAX_COLUMNS


def _can_sgd_rebuild(M: Tensor, grad: Tensor, buffer: Tensor | None, A: Tensor, *rest: Any) -> bool:
    return _takes_update(M, grad, (buffer,), A)


def _single(*tensors: Tensor | None) -> bool:
    return all(X is None or X.dtype == torch.float32 for X in tensors)


def _can_adamw_one_read_(*arguments: Any) -> bool:
    max_exp_avg_sq = arguments[4]
    return max_exp_avg_sq is None and _single(*arguments[:10])


def _can_sgd_one_read_(*arguments: Any) -> bool:
    return _single(*arguments[:7])


def _pays_adamw_one_read_(M: Tensor, *rest: Any) -> bool:
    return not is_cached(M) and _can_adamw_one_read_(M, *rest)


def _pays_sgd_one_read_(M: Tensor, *rest: Any) -> bool:
    return not is_cached(M) and _can_sgd_one_read_(M, *rest)


# an optimizer's update within the step -------------------------------------------------------------------
#
# Three ops an optimizer, which together read and write a large weight as seldom as can be: the update with
# the first product of the power step, the second product, and the write. Until the last, the updated weight
# M' need not exist: M' is a function of M and the updated state, computed where it is needed.

_NO_SCALING = Scaling()


def fuses_updates(device: torch.device) -> bool:
    """Whether kernels of ours take the updates below; elsewhere torch's step comes before that of LIP."""
    return backends.backend_of("adamw_sketch_", device.type) != "default"


def reads_once(M: Tensor) -> bool:
    """Whether one kernel takes the update of a float32 weight and both products."""
    return backends.backend_of("adamw_one_read_", M.device.type) == "native" and not is_cached(M)


def _check_update(
    M: Tensor, like_weight: dict[str, Tensor | None], scalars: dict[str, Tensor | None]
) -> None:
    _check_matrix("M", M)
    for name, X in like_weight.items():
        if X is None:
            continue
        _check_matrix(name, X)
        _expect(X.shape == M.shape, f"{name} of shape {_shape(M)}", _shape(X))
        _expect(X.device == M.device, f"{name} on {M.device}, where M is", f"{X.device}")
    for name, x in scalars.items():
        if x is None:
            continue
        _expect(x.dim() == 0, f"{name} of shape ()", _shape(x))
        _expect(x.device == M.device, f"{name} on {M.device}, where M is", f"{x.device}")
        if not x.is_floating_point():
            raise TypeError(f"expected {name} in a floating-point dtype, got {x.dtype}")


def _check_adamw(
    M: Tensor,
    state: AdamWState,
    rule: AdamWRule,
    scaling: Scaling,
    grad: Tensor | None = None,
) -> None:
    _check_update(
        M,
        {"grad": grad, **state._asdict()},
        {"lr": rule.lr, "update_count": rule.update_count, **scaling._asdict()},
    )
    for name, beta in (("beta1", rule.beta1), ("beta2", rule.beta2)):
        _expect(0 <= beta < 1, f"{name} in [0, 1)", f"{beta}")


def _check_sgd(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    rule: SGDRule,
    scaling: Scaling,
) -> None:
    _check_update(M, {"grad": grad, "momentum_buffer": momentum_buffer}, {"lr": rule.lr, **scaling._asdict()})
    needed = rule.momentum != 0
    _expect(
        needed == (momentum_buffer is not None),
        f"{'a' if needed else 'no'} momentum_buffer with momentum {rule.momentum}",
        "none" if needed else "one",
    )
    _expect(
        not rule.nesterov or (needed and rule.dampening == 0),
        "momentum and no dampening with nesterov",
        f"momentum {rule.momentum} and dampening {rule.dampening}",
    )


def _check_projected(M: Tensor, Y: Tensor) -> None:
    _check_matrix("Y", Y, _COMPUTE_DTYPES)
    _expect(Y.shape[0] == M.shape[0], f"Y with {M.shape[0]} rows (the rows of M)", _shape(Y))
    _expect(Y.device == M.device, f"Y on {M.device}, where M is", f"{Y.device}")


def _check_written(M: Tensor, A: Tensor, s: Tensor, B: Tensor, ok: Tensor, step: Tensor, seed: int) -> None:
    check_written(M, A, s, B, ok, step, False, seed)


def _columns(like: Tensor, rows: int) -> Tensor:
    return like.new_empty(like.shape[1], rows).mT


def _fake_adamw_sketch_(
    M: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    V: Tensor,
    lr: Tensor,
    update_count: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    write: bool,
) -> Tensor:
    state = AdamWState(exp_avg, exp_avg_sq, max_exp_avg_sq)
    rule = AdamWRule(lr, update_count, beta1, beta2, eps, weight_decay, maximize)
    _check_adamw(M, state, rule, Scaling(grad_scale, found_inf), grad)
    _check_sketch(M, V)
    return _columns(V, M.shape[0])


_ADAMW_SKETCH_ = Op(
    "adamw_sketch_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!)? max_exp_avg_sq,"
    " Tensor V, Tensor lr, Tensor update_count, Tensor? grad_scale, Tensor? found_inf, float beta1,"
    " float beta2, float eps, float weight_decay, bool maximize, bool write) -> Tensor",
    check=_fake_adamw_sketch_,  # type: ignore[arg-type]
    outputs=_fake_adamw_sketch_,
    default="default.adamw:adamw_sketch_",
    kernels=(
        Kernel(
            "triton.adamw_sketch_", can=_can_adamw_sketch, reason="one pass over the weight and its state"
        ),
    ),
)


def adamw_sketch_(
    M: Tensor,
    grad: Tensor,
    state: AdamWState,
    V: Tensor,
    rule: AdamWRule,
    *,
    write: bool,
    scaling: Scaling = _NO_SCALING,
) -> Tensor:
    """AdamW's update of a weight and the first product of the power step, in one pass: Y = M' V.

    With g = grad / grad_scale (-g to maximize), rounded to the dtype of ``grad``, and n the update count::

        m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2        u = v, or max(u, v)
        M' = (1 - lr weight_decay) M - lr m / (1 - beta1^n) / (sqrt(u / (1 - beta2^n)) + eps)

    m, v and u are rounded to the dtypes of the state before M' is taken from them, so that M' is a function
    of M and the updated state. Where ``found_inf`` is not 0 nothing is written, and Y = M V.

    Args:
        M: (l, q) floating point. Written iff ``write``: M', rounded to nearest.
        grad: (l, q) floating point. Written iff there is a ``grad_scale``: the gradient without it.
        state: written.
        V: (q, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        write: whether M' is stored. If not, :func:`adamw_rebuild_` must follow.
        scaling: of the gradient.

    Returns:
        Y (l, m), its columns contiguous, in the dtype of ``V``: of M' as stored where it is, else of M'
        before it is rounded to the dtype of M.
    """
    _check_adamw(M, state, rule, scaling, grad)
    _check_sketch(M, V)
    Y: Tensor = _ADAMW_SKETCH_(M, grad, *state, V, rule.lr, rule.update_count, *scaling, *rule[2:], write)
    _increment_versions(M if write else None, grad if scaling.grad_scale is not None else None, *state)
    return Y


def _fake_adamw_project(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    update_count: Tensor,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    state = AdamWState(exp_avg, exp_avg_sq, max_exp_avg_sq)
    rule = AdamWRule(lr, update_count, beta1, beta2, eps, weight_decay)
    _check_adamw(M, state, rule, Scaling(None, found_inf))
    _check_projected(M, Y)
    return _columns(Y, M.shape[1])


_ADAMW_PROJECT = Op(
    "adamw_project(Tensor M, Tensor exp_avg, Tensor exp_avg_sq, Tensor? max_exp_avg_sq, Tensor Y, Tensor lr,"
    " Tensor update_count, Tensor? found_inf, float beta1, float beta2, float eps, float weight_decay)"
    " -> Tensor",
    check=_fake_adamw_project,  # type: ignore[arg-type]
    outputs=_fake_adamw_project,
    default="default.adamw:adamw_project",
    kernels=(
        Kernel(
            "triton.adamw_project", can=_can_adamw_project, reason="one pass over the weight and its state"
        ),
    ),
)


def adamw_project(
    M: Tensor, state: AdamWState, Y: Tensor, rule: AdamWRule, *, found_inf: Tensor | None = None
) -> Tensor:
    """Z = M'^T Y of a weight that :func:`adamw_sketch_` updated and did not write.

    Args:
        M: (l, q) floating point, as it was before the update.
        state: as updated.
        Y: (l, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        found_inf: as in the update: where it is not 0, M' = M.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    _check_adamw(M, state, rule, Scaling(None, found_inf))
    _check_projected(M, Y)
    Z: Tensor = _ADAMW_PROJECT(M, *state, Y, rule.lr, rule.update_count, found_inf, *rule[2:6])
    return Z


def _fake_adamw_rebuild_(
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
    state = AdamWState(exp_avg, exp_avg_sq, max_exp_avg_sq)
    rule = AdamWRule(lr, update_count, beta1, beta2, eps, weight_decay)
    _check_adamw(M, state, rule, Scaling(None, found_inf))
    _check_written(M, A, s, B, ok, step, seed)
    return torch.empty_like(ok)


_ADAMW_REBUILD_ = Op(
    "adamw_rebuild_(Tensor(a!) M, Tensor exp_avg, Tensor exp_avg_sq, Tensor? max_exp_avg_sq, Tensor A, Tensor s, Tensor B,"
    " Tensor ok, Tensor lr, Tensor update_count, Tensor step, Tensor? found_inf, float beta1, float beta2,"
    " float eps, float weight_decay, bool accumulate, int seed) -> Tensor",
    check=_fake_adamw_rebuild_,  # type: ignore[arg-type]
    outputs=_fake_adamw_rebuild_,
    default="default.adamw:adamw_rebuild_",
    kernels=(
        Kernel(
            "triton.adamw_rebuild_", can=_can_adamw_rebuild, reason="one pass over the weight and its state"
        ),
    ),
)


def adamw_rebuild_(
    M: Tensor,
    state: AdamWState,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    rule: AdamWRule,
    *,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
    found_inf: Tensor | None = None,
) -> Tensor:
    """Write the weight that :func:`adamw_sketch_` updated and did not write, once and for all.

    Where ``ok``: A diag(s) B^T, or with ``accumulate`` M' + A diag(s) B^T; stochastically rounded into
    bfloat16 and float16, by bits of (seed, step), as :func:`rebuild_` does. Elsewhere: M' rounded to nearest,
    the bits that the update alone would have written. Where ``found_inf`` is not 0, M stays as it is.

    Args:
        M: (l, q) floating point, as it was before the update; written in place.
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
    _check_adamw(M, state, rule, Scaling(None, found_inf))
    _check_written(M, A, s, B, ok, step, seed)
    written: Tensor = _ADAMW_REBUILD_(
        M, *state, A, s, B, ok, rule.lr, rule.update_count, step, found_inf, *rule[2:6], accumulate, seed
    )
    torch.autograd.graph.increment_version(M)
    return written


def _fake_sgd_sketch_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    write: bool,
) -> Tensor:
    rule = SGDRule(lr, momentum, dampening, weight_decay, nesterov, maximize)
    _check_sgd(M, grad, momentum_buffer, rule, Scaling(grad_scale, found_inf))
    _check_sketch(M, V)
    return _columns(V, M.shape[0])


_SGD_SKETCH_ = Op(
    "sgd_sketch_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor V, Tensor lr, Tensor? grad_scale,"
    " Tensor? found_inf, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
    " bool first, bool write) -> Tensor",
    check=_fake_sgd_sketch_,  # type: ignore[arg-type]
    outputs=_fake_sgd_sketch_,
    default="default.sgd:sgd_sketch_",
    kernels=(
        Kernel("triton.sgd_sketch_", can=_can_sgd_sketch, reason="one pass over the weight and its state"),
    ),
)


def sgd_sketch_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    rule: SGDRule,
    *,
    first: bool,
    write: bool,
    scaling: Scaling = _NO_SCALING,
) -> Tensor:
    """The update of SGD and the first product of the power step, in one pass: Y = M' V.

    With g = grad / grad_scale, rounded to the dtype of ``grad``::

        d = g (-g to maximize) + weight_decay M
        b = momentum b + (1 - dampening) d                    b = d in the first step
        M' = M - lr b                                         M - lr (d + momentum b) with nesterov

    (without momentum, M - lr d). b is rounded to the dtype of the buffer before M' is taken from it, so that
    M' is a function of M, the gradient and the updated buffer. Where ``found_inf`` is not 0 nothing is
    written, and Y = M V.

    Args:
        M: (l, q) floating point. Written iff ``write``: M', rounded to nearest.
        grad: (l, q) floating point. Written iff there is a ``grad_scale``: the gradient without it.
        momentum_buffer: (l, q) floating point, written; None without momentum.
        V: (q, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        first: the buffer holds nothing yet, and is not read.
        write: whether M' is stored. If not, :func:`sgd_rebuild_` must follow.
        scaling: of the gradient.

    Returns:
        Y (l, m), its columns contiguous, in the dtype of ``V``: of M' as stored where it is, else of M'
        before it is rounded to the dtype of M.
    """
    _check_sgd(M, grad, momentum_buffer, rule, scaling)
    _check_sketch(M, V)
    Y: Tensor = _SGD_SKETCH_(M, grad, momentum_buffer, V, rule.lr, *scaling, *rule[1:], first, write)
    _increment_versions(
        M if write else None, grad if scaling.grad_scale is not None else None, momentum_buffer
    )
    return Y


def _fake_sgd_project(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    found_inf: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    rule = SGDRule(lr, momentum, 0.0, weight_decay, nesterov, maximize)
    _check_sgd(M, grad, momentum_buffer, rule, Scaling(None, found_inf))
    _check_projected(M, Y)
    return _columns(Y, M.shape[1])


_SGD_PROJECT = Op(
    "sgd_project(Tensor M, Tensor grad, Tensor? momentum_buffer, Tensor Y, Tensor lr, Tensor? found_inf, float momentum,"
    " float weight_decay, bool nesterov, bool maximize) -> Tensor",
    check=_fake_sgd_project,  # type: ignore[arg-type]
    outputs=_fake_sgd_project,
    default="default.sgd:sgd_project",
    kernels=(
        Kernel("triton.sgd_project", can=_can_sgd_sketch, reason="one pass over the weight and its state"),
    ),
)


def sgd_project(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    Y: Tensor,
    rule: SGDRule,
    *,
    found_inf: Tensor | None = None,
) -> Tensor:
    """Z = M'^T Y of a weight that :func:`sgd_sketch_` updated and did not write.

    Args:
        M: (l, q) floating point, as it was before the update.
        grad: (l, q), as the update left it.
        momentum_buffer: as updated; None without momentum.
        Y: (l, m) float32 or float64, its columns contiguous for speed.
        rule: of the update.
        found_inf: as in the update: where it is not 0, M' = M.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    _check_sgd(M, grad, momentum_buffer, rule, Scaling(None, found_inf))
    _check_projected(M, Y)
    Z: Tensor = _SGD_PROJECT(
        M,
        grad,
        momentum_buffer,
        Y,
        rule.lr,
        found_inf,
        rule.momentum,
        rule.weight_decay,
        rule.nesterov,
        rule.maximize,
    )
    return Z


def _fake_sgd_rebuild_(
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
    rule = SGDRule(lr, momentum, 0.0, weight_decay, nesterov, maximize)
    _check_sgd(M, grad, momentum_buffer, rule, Scaling(None, found_inf))
    _check_written(M, A, s, B, ok, step, seed)
    return torch.empty_like(ok)


_SGD_REBUILD_ = Op(
    "sgd_rebuild_(Tensor(a!) M, Tensor grad, Tensor? momentum_buffer, Tensor A, Tensor s, Tensor B, Tensor ok, Tensor lr,"
    " Tensor step, Tensor? found_inf, float momentum, float weight_decay, bool nesterov, bool maximize,"
    " bool accumulate, int seed) -> Tensor",
    check=_fake_sgd_rebuild_,  # type: ignore[arg-type]
    outputs=_fake_sgd_rebuild_,
    default="default.sgd:sgd_rebuild_",
    kernels=(
        Kernel("triton.sgd_rebuild_", can=_can_sgd_rebuild, reason="one pass over the weight and its state"),
    ),
)


def sgd_rebuild_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    rule: SGDRule,
    *,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
    found_inf: Tensor | None = None,
) -> Tensor:
    """Write the weight that :func:`sgd_sketch_` updated and did not write, once and for all.

    What is written where is as in :func:`adamw_rebuild_`.

    Args:
        M: (l, q) floating point, as it was before the update; written in place.
        grad: (l, q), as the update left it.
        momentum_buffer: as updated; None without momentum.
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
    _check_sgd(M, grad, momentum_buffer, rule, Scaling(None, found_inf))
    _check_written(M, A, s, B, ok, step, seed)
    written: Tensor = _SGD_REBUILD_(
        M,
        grad,
        momentum_buffer,
        A,
        s,
        B,
        ok,
        rule.lr,
        step,
        found_inf,
        rule.momentum,
        rule.weight_decay,
        rule.nesterov,
        rule.maximize,
        accumulate,
        seed,
    )
    torch.autograd.graph.increment_version(M)
    return written


def _fake_adamw_one_read_(M: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    Y, V = _fake_adamw_sketch_(M, *arguments), arguments[4]
    return Y, _columns(V, M.shape[1])


_ADAMW_ONE_READ_ = Op(
    "adamw_one_read_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!)? max_exp_avg_sq,"
    " Tensor V, Tensor lr, Tensor update_count, Tensor? grad_scale, Tensor? found_inf, float beta1,"
    " float beta2, float eps, float weight_decay, bool maximize, bool write) -> (Tensor, Tensor)",
    check=_fake_adamw_one_read_,  # type: ignore[arg-type]
    outputs=_fake_adamw_one_read_,
    default="default.adamw_one_read_",
    kernels=(
        Kernel(
            "native.adamw_one_read_",
            "cuda",
            can=_can_adamw_one_read_,
            pays=_pays_adamw_one_read_,
            reason="reads a large weight and its state once",
        ),
    ),
)


def adamw_one_read_(
    M: Tensor,
    grad: Tensor,
    state: AdamWState,
    V: Tensor,
    rule: AdamWRule,
    *,
    write: bool,
    scaling: Scaling = _NO_SCALING,
) -> tuple[Tensor, Tensor]:
    """AdamW's update of a weight and both products of the power step: Y = M' V and Z = M'^T Y.

    A kernel that reads the weight and its state once gives Y and Z as :func:`sketch` does of M'. Elsewhere it
    is :func:`adamw_sketch_` and the second product.

    Args:
        M: as for :func:`adamw_sketch_`, and so are the others.
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
    _check_adamw(M, state, rule, scaling, grad)
    _check_sketch(M, V)
    products: tuple[Tensor, Tensor] = _ADAMW_ONE_READ_(
        M, grad, *state, V, rule.lr, rule.update_count, *scaling, *rule[2:], write
    )
    _increment_versions(M if write else None, grad if scaling.grad_scale is not None else None, *state)
    return products


def _fake_sgd_one_read_(M: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    Y, V = _fake_sgd_sketch_(M, *arguments), arguments[2]
    return Y, _columns(V, M.shape[1])


_SGD_ONE_READ_ = Op(
    "sgd_one_read_(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor V, Tensor lr, Tensor? grad_scale,"
    " Tensor? found_inf, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
    " bool first, bool write) -> (Tensor, Tensor)",
    check=_fake_sgd_one_read_,  # type: ignore[arg-type]
    outputs=_fake_sgd_one_read_,
    default="default.sgd_one_read_",
    kernels=(
        Kernel(
            "native.sgd_one_read_",
            "cuda",
            can=_can_sgd_one_read_,
            pays=_pays_sgd_one_read_,
            reason="reads a large weight and its state once",
        ),
    ),
)


def sgd_one_read_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    rule: SGDRule,
    *,
    first: bool,
    write: bool,
    scaling: Scaling = _NO_SCALING,
) -> tuple[Tensor, Tensor]:
    """The update of SGD and both products of the power step: Y = M' V and Z = M'^T Y.

    See :func:`adamw_one_read_`; elsewhere it is :func:`sgd_sketch_` and the second product.

    Args:
        M: as for :func:`sgd_sketch_`, and so are the others.
        grad: (l, q).
        momentum_buffer: (l, q), written; None without momentum.
        V: (q, m).
        rule: of the update.
        first: the buffer holds nothing yet, and is not read.
        write: whether M' is stored.
        scaling: of the gradient.

    Returns:
        Y (l, m) and Z (q, m) as :func:`adamw_one_read_` does.
    """
    _check_sgd(M, grad, momentum_buffer, rule, scaling)
    _check_sketch(M, V)
    products: tuple[Tensor, Tensor] = _SGD_ONE_READ_(
        M, grad, momentum_buffer, V, rule.lr, *scaling, *rule[1:], first, write
    )
    _increment_versions(
        M if write else None, grad if scaling.grad_scale is not None else None, momentum_buffer
    )
    return products


def _increment_versions(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)
