"""The operations of the step: schema, checks, fake and public function of each.

Layout: M (l, q) is the weight as ``nn.Linear`` holds it, A (l, t) holds class-side and B (q, t) feature-side
singular vectors in columns, so that M ~ A diag(S) B^T. Flags, counts and the status word
(:mod:`lip_fast.status`) are 0-d tensors on the device of their operands, so that a kernel need not stop for
the host. Kernels live in :mod:`lip_fast.backends` and
trust their caller; the checks here are run by the public function and, while tracing, by the fake.

None of the ops is differentiable: they run inside an optimizer step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.targets import CSR, Targets

__all__ = [
    "adamw_one_read_",
    "adamw_project",
    "adamw_rebuild_",
    "adamw_sketch_",
    "class_sums",
    "finish_svd",
    "fresh_columns",
    "gram",
    "label_sums",
    "orthonormalize",
    "project",
    "rebuild_",
    "refit",
    "sgd_one_read_",
    "sgd_project",
    "sgd_rebuild_",
    "sgd_sketch_",
    "sketch",
    "small_svd",
    "start_basis",
    "tail_svd",
    "warm_svd",
]

_NAMESPACE = "lip_fast"
_COMPUTE_DTYPES = (torch.float32, torch.float64)


class SVD(NamedTuple):
    """M ~ A diag(S) B^T, and why it cannot be used, as bits of :mod:`lip_fast.status`: 0 where it can."""

    A: Tensor
    S: Tensor
    B: Tensor
    status: Tensor


class SmallSVD(NamedTuple):
    """T = U diag(S) V^T of each matrix, the sweeps it took, and its status word."""

    U: Tensor
    S: Tensor
    V: Tensor
    sweeps: Tensor
    status: Tensor


class Sums(NamedTuple):
    """What the labels say of r directions: s_i* = numerator_i / denominator_i."""

    numerator: Tensor
    denominator: Tensor
    energy: Tensor
    masked: Tensor


class ClassSums(NamedTuple):
    """The sum of the rows of each class, and how many they are."""

    sums: Tensor
    counts: Tensor


class Refit(NamedTuple):
    """Refitted singular values, whether they can be used, and how many were limited."""

    s: Tensor
    ok: Tensor
    clipped: Tensor


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


def _define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    torch.library.define(f"{_NAMESPACE}::{name}", schema)
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake)


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


def _check_factors(A: Tensor, B: Tensor, r: int) -> None:
    _check_matrix("A", A, _COMPUTE_DTYPES)
    _check_matrix("B", B, (A.dtype,))
    _expect(
        A.shape[1] == r and B.shape[1] == r,
        f"A and B with {r} columns",
        f"{_shape(A)} and {_shape(B)}",
    )


# fresh_columns ------------------------------------------------------------------------------------------


def _check_step(step: Tensor, seed: int) -> None:
    if step.dtype != torch.int64:
        raise TypeError(f"expected a step in torch.int64, got {step.dtype}")
    _expect(step.dim() == 0, "a step of shape ()", _shape(step))
    _expect(0 <= seed < 1 << 63, "a seed in 0..2^63 - 1", f"{seed}")


def _check_fresh_columns(step: Tensor, rows: int, columns: int, seed: int) -> None:
    _check_step(step, seed)
    _expect(rows >= 0 and columns >= 0, "rows >= 0 and columns >= 0", f"{rows} and {columns}")


def _fake_fresh_columns(step: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    _check_fresh_columns(step, rows, columns, seed)
    return step.new_empty((columns, rows), dtype=torch.float32).mT


_define("fresh_columns", "(Tensor step, int rows, int columns, int seed) -> Tensor", _fake_fresh_columns)


def fresh_columns(step: Tensor, rows: int, columns: int, *, seed: int) -> Tensor:
    """Random signs that look for directions the basis does not have.

    Entry (i, c) depends on (seed, step, i, c) alone: Philox4x32-10, the same bits in every backend, on every
    device and every rank of a sharded head.

    Args:
        step: () int64, the counter of the step; its low 32 bits are used.
        rows: number of rows, below 2^32.
        columns: number of columns.
        seed: key, 0..2^63 - 1.

    Returns:
        (rows, columns) float32 of +1 and -1, columns contiguous, on the device of ``step``.
    """
    _check_fresh_columns(step, rows, columns, seed)
    return _fresh_columns(step, rows, columns, seed)


# orthonormalize -----------------------------------------------------------------------------------------


def _fake_orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    _check_matrix("Y", Y, _COMPUTE_DTYPES)
    n, m = Y.shape
    d = min(n, m)
    return Y.new_empty(d, n).mT, Y.new_empty(d, m)


_define("orthonormalize", "(Tensor Y) -> (Tensor, Tensor)", _fake_orthonormalize)


def orthonormalize(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Thin factorisation Y = Q R with orthonormal Q, whatever the rank of Y.

    CholeskyQR in float64 for float32 columns; Householder QR for float64 or nearly dependent ones.

    Args:
        Y: (n, m) float32 or float64, finite.

    Returns:
        Q (n, min(n, m)), its columns contiguous, and R (min(n, m), m), in the dtype of ``Y``; Q^T Q = I to
        about 1e-6 in float32.
    """
    _check_matrix("Y", Y, _COMPUTE_DTYPES)
    return _orthonormalize(Y)


# warm_svd -----------------------------------------------------------------------------------------------


def _check_warm_svd(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int) -> None:
    _check_step(step, seed)
    _check_matrix("M", M)
    _check_matrix("basis", basis, _COMPUTE_DTYPES)
    _expect(
        basis.shape[0] == M.shape[1],
        f"a basis with {M.shape[1]} rows (the columns of M)",
        f"{_shape(basis)}",
    )
    m = basis.shape[1] + fresh
    _expect(
        fresh >= 1 and m <= min(M.shape),
        f"at least one fresh column and at most {min(M.shape)} columns in all",
        f"{basis.shape[1]} columns of the basis and {fresh} fresh ones",
    )


def _fake_warm_svd(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_warm_svd(M, basis, step, fresh, seed)
    (l, q), t = M.shape, basis.shape[1]
    status = M.new_empty((), dtype=torch.int64)
    return basis.new_empty(l, t), basis.new_empty(t), basis.new_empty(t, q).mT, status


_define(
    "warm_svd",
    "(Tensor M, Tensor basis, Tensor step, int fresh, int seed) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_warm_svd,
)


def warm_svd(M: Tensor, basis: Tensor, step: Tensor, *, fresh: int, seed: int) -> SVD:
    """Top singular triplets of a slowly changing matrix, by one power step from the last basis.

    With V = [basis, fresh random signs]: Y = M V = Q R, Z = M^T Q = P T, T = U S V_T^T, A = Q V_T, B = P U.
    One step an update keeps the truncation error within 1e-3 of the optimum; the fresh columns find
    directions that the basis is blind to.

    Args:
        M: (l, q) floating point.
        basis: (q, t) float32 or float64: B of the last step. Its span matters, not its order.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= min(l, q).
        seed: key of the fresh columns.

    Returns:
        A (l, t), S (t,) descending and B (q, t), its columns contiguous, in the dtype of ``basis``; status
        () int64, not 0 where M is not finite, the small decomposition failed, or ``max |B^T B - I|`` > 1e-4:
        the factors are then not to be used.
    """
    _check_warm_svd(M, basis, step, fresh, seed)
    return SVD(*_warm_svd(M, basis, step, fresh, seed))


# sketch -------------------------------------------------------------------------------------------------


def _check_sketch(M: Tensor, V: Tensor) -> None:
    _check_matrix("M", M)
    _check_matrix("V", V, _COMPUTE_DTYPES)
    _expect(V.shape[0] == M.shape[1], f"V with {M.shape[1]} rows (the columns of M)", _shape(V))
    _expect(V.device == M.device, f"V on {M.device}, where M is", f"{V.device}")


def _fake_sketch(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    _check_sketch(M, V)
    (l, q), m = M.shape, V.shape[1]
    return V.new_empty(m, l).mT, V.new_empty(m, q).mT


_define("sketch", "(Tensor M, Tensor V) -> (Tensor, Tensor)", _fake_sketch)


def sketch(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of a power step, Y = M V and Z = M^T Y.

    A kernel that reads M once from memory rounds M and V to TF32 and gives Y as rounded to TF32 too, so that
    Z = M^T Y holds to float32 for the Y it returns and the M it read.

    Args:
        M: (l, q) floating point.
        V: (q, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Y (l, m) and Z (q, m), their columns contiguous, in the dtype of ``V``.
    """
    _check_sketch(M, V)
    products: tuple[Tensor, Tensor] = _sketch(M, V)
    return products


# the parts of warm_svd ----------------------------------------------------------------------------------
#
# For a step whose products are taken by something else, such as the update of the weight.


def _check_start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> None:
    _check_step(step, seed)
    _check_matrix("basis", basis, _COMPUTE_DTYPES)
    q, t = basis.shape
    _expect(
        fresh >= 1 and t + fresh <= q,
        f"at least one fresh column and at most {q} columns in all",
        f"{t} columns of the basis and {fresh} fresh ones",
    )


def _fake_start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    _check_start_basis(basis, step, fresh, seed)
    q, t = basis.shape
    return basis.new_empty(t + fresh, q).mT


_define("start_basis", "(Tensor basis, Tensor step, int fresh, int seed) -> Tensor", _fake_start_basis)


def start_basis(basis: Tensor, step: Tensor, *, fresh: int, seed: int) -> Tensor:
    """The columns V that a warm-started power step multiplies M by: the last basis, and fresh columns.

    Args:
        basis: (q, t) float32 or float64: B of the last step.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= q.
        seed: key of the fresh columns.

    Returns:
        V (q, t + fresh), its columns contiguous, in the dtype of ``basis``.
    """
    _check_start_basis(basis, step, fresh, seed)
    V: Tensor = _start_basis(basis, step, fresh, seed)
    return V


def _fake_project(M: Tensor, Y: Tensor) -> Tensor:
    _check_matrix("M", M)
    _check_projected(M, Y)
    return _columns(Y, M.shape[1])


_define("project", "(Tensor M, Tensor Y) -> Tensor", _fake_project)


def project(M: Tensor, Y: Tensor) -> Tensor:
    """The second product of a power step, Z = M^T Y.

    Args:
        M: (l, q) floating point.
        Y: (l, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    _check_matrix("M", M)
    _check_projected(M, Y)
    Z: Tensor = _project(M, Y)
    return Z


def _check_finish_svd(Y: Tensor, Z: Tensor, rank: int) -> None:
    _check_matrix("Y", Y, _COMPUTE_DTYPES)
    _check_matrix("Z", Z, (Y.dtype,))
    _expect(Z.device == Y.device, f"Z on {Y.device}, where Y is", f"{Z.device}")
    m = Y.shape[1]
    _expect(Z.shape[1] == m, f"Z with {m} columns, as many as Y", _shape(Z))
    _expect(m <= min(len(Y), len(Z)), f"at most {min(len(Y), len(Z))} columns", f"{m}")
    _expect(0 <= rank <= m, f"rank in 0..{m}", f"{rank}")


def _fake_finish_svd(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_finish_svd(Y, Z, rank)
    status = Y.new_empty((), dtype=torch.int64)
    return Y.new_empty(len(Y), rank), Y.new_empty(rank), Y.new_empty(rank, len(Z)).mT, status


_define("finish_svd", "(Tensor Y, Tensor Z, int rank) -> (Tensor, Tensor, Tensor, Tensor)", _fake_finish_svd)


def finish_svd(Y: Tensor, Z: Tensor, *, rank: int) -> SVD:
    """Top singular triplets of M from Y = M V and Z = M^T Y: Rayleigh-Ritz on the span of Y.

    With Y = Q R: M^T Q = Z R^-1 = P T, T = U S V_T^T, A = Q V_T, B = P U; M itself is not needed.

    Args:
        Y: (l, m) float32 or float64, m <= min(l, q).
        Z: (q, m) in the dtype of ``Y``.
        rank: number of triplets, 0..m.

    Returns:
        As :func:`warm_svd`: A (l, rank), S (rank,) descending, B (q, rank) and status ().
    """
    _check_finish_svd(Y, Z, rank)
    return SVD(*_finish_svd(Y, Z, rank))


# small_svd ----------------------------------------------------------------------------------------------


def _check_small_svd(T: Tensor, start: Tensor | None) -> None:
    if T.dtype not in _COMPUTE_DTYPES:
        raise TypeError(f"expected T in one of {_COMPUTE_DTYPES}, got {T.dtype}")
    _expect(
        T.dim() >= 2 and T.shape[-1] == T.shape[-2] and T.shape[-1] > 0,
        "T of shape (..., m, m) with m >= 1",
        _shape(T),
    )
    if start is not None:
        _expect(start.shape == T.shape, f"a start of shape {_shape(T)}", _shape(start))
        _expect(start.dtype == T.dtype, f"a start in {T.dtype}", str(start.dtype))
        _expect(start.device == T.device, f"a start on {T.device}, where T is", f"{start.device}")


def _fake_small_svd(T: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_small_svd(T, start)
    counts = T.new_empty(T.shape[:-2], dtype=torch.int64)
    return T.new_empty(T.shape), T.new_empty(T.shape[:-1]), T.new_empty(T.shape), counts, counts.clone()


_define("small_svd", "(Tensor T, Tensor? start) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _fake_small_svd)


def small_svd(T: Tensor, start: Tensor | None = None) -> SmallSVD:
    """SVD of small square matrices, without waiting for the device where the native solver serves it.

    One-sided Jacobi (Demmel and Veselic, 1992) for m <= 128: a CUDA block a matrix.

    Args:
        T: (..., m, m) float32 or float64.
        start: (..., m, m) orthogonal and near V, such as V of the last, similar T: fewer sweeps.

    Returns:
        U (..., m, m), S (..., m) descending and V (..., m, m); sweeps (...) int64, 0 from a solver that has
        none; status (...) int64, the word of :mod:`lip_fast.status`. Of a singular T, columns of U may be 0.
    """
    _check_small_svd(T, start)
    return SmallSVD(*_small_svd(T, start))


# tail_svd -----------------------------------------------------------------------------------------------


def _check_tail_svd(M: Tensor, rank: int) -> None:
    _check_matrix("M", M)
    _expect(0 <= rank <= min(M.shape), f"rank in 0..{min(M.shape)}", f"{rank}")


def _fake_tail_svd(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_tail_svd(M, rank)
    (l, q), d = M.shape, min(M.shape)
    M = M.new_empty(0, dtype=M.dtype if M.dtype == torch.float64 else torch.float32)
    status = M.new_empty((), dtype=torch.int64)
    return M.new_empty(l, d - rank), M.new_empty(d), M.new_empty(q, d - rank), status


_define("tail_svd", "(Tensor M, int rank) -> (Tensor, Tensor, Tensor, Tensor)", _fake_tail_svd)


def tail_svd(M: Tensor, *, rank: int) -> SVD:
    """All singular values, and the singular vectors below the top ``rank``, exactly.

    Args:
        M: (l, q) floating point; d = min(l, q).
        rank: number of leading directions whose vectors are not wanted.

    Returns:
        A (l, d - rank), S (d,) and B (q, d - rank) in float64 for a float64 ``M``, else in float32, where
        the vectors of values up to 1e-6 s_1 may be zero columns of the larger side: there is no direction to
        speak of; status () int64, not 0 where M is not finite or the solver failed.
    """
    _check_tail_svd(M, rank)
    return SVD(*_tail_svd(M, rank))


# label_sums ---------------------------------------------------------------------------------------------


def _check_label_sums(
    X: Tensor, rows: int, A: Tensor, B: Tensor, bias: Tensor | None, Y: Tensor | None = None
) -> None:
    _check_matrix("X", X)
    _check_factors(A, B, A.shape[1])
    _expect(B.shape[0] == X.shape[1], f"B with {X.shape[1]} rows", _shape(B))
    _expect(rows == X.shape[0], f"labels of {X.shape[0]} rows", f"{rows} rows")
    if Y is not None and Y.dim() == 1 and Y.dtype != torch.int64:
        raise TypeError(f"expected class indices in torch.int64, got {Y.dtype}")
    if bias is not None:
        _expect(bias.shape == A.shape[:1], f"a bias of shape ({A.shape[0]},)", _shape(bias))


def _fake_sums(X: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r = A.shape[1]
    X = X.new_empty(0, dtype=torch.float64)
    return X.new_empty(r), X.new_empty(r), X.new_empty(()), X.new_empty((), dtype=torch.int64)


def _fake_label_sums(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_label_sums(X, Y.shape[0], A, B, bias, Y)
    return _fake_sums(X, A)


def _fake_label_sums_csr(
    X: Tensor, crow: Tensor, col: Tensor, values: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_label_sums(X, crow.shape[0] - 1, A, B, bias)
    return _fake_sums(X, A)


_define(
    "label_sums",
    "(Tensor X, Tensor Y, Tensor A, Tensor B, Tensor? bias) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_label_sums,
)
_define(
    "label_sums_csr",
    "(Tensor X, Tensor crow, Tensor col, Tensor values, Tensor A, Tensor B, Tensor? bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_label_sums_csr,
)


def label_sums(X: Tensor, Y: Targets, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Sums:
    """The sums of label ambiguity purification (arXiv:2505.16159) over a batch, in one pass over X.

    ::

        numerator_i   = sum_n (x_n . b_i) ((y_n - bias) . a_i)
        denominator_i = sum_n (x_n . b_i)^2

    W_k a_i = 0 below the kept directions, so the residual Y - X W_k of the paper can be replaced by Y; X^T Y
    and X^T X are never formed, nor is the label matrix of class indices or candidate sets.

    Args:
        X: (n, q) features, floating point.
        Y: labels: (n,) int64 class indices (rows with an index outside 0..l-1 do not count), (n, l) dense,
            or a candidate matrix as :class:`lip_fast.targets.CSR`.
        A: (l, r) float32 or float64.
        B: (q, r) in the dtype of ``A``; products are taken in it.
        bias: (l,) or None.

    Returns:
        numerator (r,), denominator (r,) and energy = ||X||_F^2 () in float64; masked () int64, the number of
        class indices that were out of range and not the ignored index -100.
    """
    if isinstance(Y, CSR):
        _check_label_sums(X, Y.crow.shape[0] - 1, A, B, bias)
        return Sums(*_label_sums_csr(X, *Y, A, B, bias))
    _check_label_sums(X, Y.shape[0], A, B, bias, Y)
    return Sums(*_label_sums(X, Y, A, B, bias))


# class_sums and gram -------------------------------------------------------------------------------------
#
# What label statistics are made of, for class indices: a column of ones beside the features adds the counts,
# and the sums of the sums.


def sums_in_place(X: Tensor) -> bool:
    """Whether kernels of ours read the features where they lie, in their own format, however many rows."""
    return X.dtype != torch.float64 and backends.backend_of("gram", X.device.type) != "default"


def _product_dtype(X: Tensor) -> torch.dtype:
    return torch.float64 if X.dtype == torch.float64 else torch.float32


def _check_class_sums(X: Tensor, y: Tensor, classes: int) -> None:
    _check_matrix("X", X)
    _expect(y.shape == X.shape[:1], f"class indices of shape ({X.shape[0]},)", _shape(y))
    if y.dtype != torch.int64:
        raise TypeError(f"expected class indices in torch.int64, got {y.dtype}")
    _expect(y.device == X.device, f"class indices on {X.device}, where X is", f"{y.device}")
    _expect(classes >= 0, "classes >= 0", f"{classes}")


def _fake_class_sums(X: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    _check_class_sums(X, y, classes)
    return X.new_empty((classes, X.shape[1]), dtype=_product_dtype(X)), y.new_empty(classes)


_define("class_sums", "(Tensor X, Tensor y, int classes) -> (Tensor, Tensor)", _fake_class_sums)


def class_sums(X: Tensor, y: Tensor, classes: int) -> ClassSums:
    """The sum of the rows of each class: Y^T X of the label matrix Y that is never formed.

    In a fixed order: the same inputs give the same bits.

    Args:
        X: (n, q) features, floating point.
        y: (n,) int64 class indices; rows with an index outside 0..classes - 1 do not count, whatever they
            hold.
        classes: l.

    Returns:
        sums (l, q), in float64 for float64 features, else added up and returned in float32; counts (l,)
        int64. A class without rows has zeros.
    """
    _check_class_sums(X, y, classes)
    return ClassSums(*_class_sums(X, y, classes))


def _check_gram(X: Tensor, counts: Tensor | None) -> None:
    _check_matrix("X", X)
    if counts is None:
        return
    _expect(counts.shape == X.shape[:1], f"counts of shape ({X.shape[0]},)", _shape(counts))
    if counts.dtype != torch.bool:
        raise TypeError(f"expected counts in torch.bool, got {counts.dtype}")
    _expect(counts.device == X.device, f"counts on {X.device}, where X is", f"{counts.device}")


def _fake_gram(X: Tensor, counts: Tensor | None) -> Tensor:
    _check_gram(X, counts)
    return X.new_empty((X.shape[1], X.shape[1]), dtype=_product_dtype(X))


_define("gram", "(Tensor X, Tensor? counts) -> Tensor", _fake_gram)


def gram(X: Tensor, counts: Tensor | None = None) -> Tensor:
    """The products of the features with each other, X^T X.

    Args:
        X: (n, q) features, floating point.
        counts: (n,) bool, which rows count; the others may hold anything. None: all of them.

    Returns:
        G (q, q) in float64 for float64 features, else in float32. A kernel of ours gives it symmetric to the
        bit, the library to rounding.
    """
    _check_gram(X, counts)
    G: Tensor = _gram(X, counts)
    return G


# refit --------------------------------------------------------------------------------------------------


def _check_refit(
    S: Tensor, numerator: Tensor, denominator: Tensor, energy: Tensor, ok: Tensor, rank: int
) -> None:
    for name, X in (("S", S), ("a numerator", numerator), ("a denominator", denominator)):
        _expect(X.dim() == 1, f"{name} of shape (n,)", _shape(X))
    for name, X in (("energy", energy), ("ok", ok)):
        _expect(X.dim() == 0, f"{name} of shape ()", _shape(X))
    r = numerator.shape[0]
    _expect(denominator.shape == (r,), f"a denominator of shape ({r},)", _shape(denominator))
    _expect(
        0 <= rank and rank + r <= S.shape[0],
        f"rank + {r} refitted values within the {S.shape[0]} singular values",
        f"rank {rank}",
    )


def _fake_refit(
    S: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    energy: Tensor,
    ok: Tensor,
    rank: int,
    tolerance: float,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_refit(S, numerator, denominator, energy, ok, rank)
    s = S.new_empty(numerator.shape[0])
    return s, torch.empty_like(ok), S.new_empty((), dtype=torch.int64)


_define(
    "refit",
    "(Tensor S, Tensor numerator, Tensor denominator, Tensor energy, Tensor ok, int rank, float tolerance,"
    " bool clip) -> (Tensor, Tensor, Tensor)",
    _fake_refit,
)


def refit(S: Tensor, sums: Sums, ok: Tensor, *, rank: int, tolerance: float, clip: bool) -> Refit:
    """Singular values refitted to the labels, with the guards of training.

    s_i* = numerator_i / denominator_i for the r directions below ``rank``, except where the batch puts no
    more than 1e-6 of its energy on the direction, or s_i <= tolerance s_1: those keep s_i.

    Args:
        S: (t,) singular values, descending.
        sums: of the directions rank..rank+r-1.
        ok: () bool, whether the step can still be taken.
        rank: number of kept directions.
        tolerance: relative size below which a direction is none, usually max(l, q) eps.
        clip: limit s_i* to [-s_rank, s_rank] ([-s_1, s_1] where rank = 0): one small batch can ask for
            several s_1, which the next step would keep as principal.

    Returns:
        s (r,) in the dtype of ``S``; ok () bool, False too where a sum is not finite or the values are too
        large to be multiplied out; clipped () int64, how many were limited.
    """
    _check_refit(S, sums.numerator, sums.denominator, sums.energy, ok, rank)
    return Refit(*_refit(S, sums.numerator, sums.denominator, sums.energy, ok, rank, tolerance, clip))


# rebuild_ -----------------------------------------------------------------------------------------------


def _check_rebuild(M: Tensor, A: Tensor, s: Tensor, B: Tensor, step: Tensor, seed: int) -> None:
    _check_step(step, seed)
    _expect(step.device == M.device, f"a step on {M.device}, where M is", f"{step.device}")
    _check_matrix("M", M)
    _check_factors(A, B, s.shape[0])
    expected = (A.shape[0], B.shape[0])
    _expect(tuple(M.shape) == expected, f"M of shape {expected}", _shape(M))


def _fake_rebuild_(
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    _check_rebuild(M, A, s, B, step, seed)
    return torch.empty_like(ok)


_define(
    "rebuild_",
    "(Tensor(a!) M, Tensor A, Tensor s, Tensor B, Tensor ok, Tensor step, bool accumulate, int seed)"
    " -> Tensor",
    _fake_rebuild_,
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
    _check_rebuild(M, A, s, B, step, seed)
    written: Tensor = _rebuild_(M, A, s, B, ok, step, accumulate, seed)
    # The ops bypass autograd, so a graph that saved M must be told that it changed.
    torch.autograd.graph.increment_version(M)
    return written


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
    return backends.reads_once(M)


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
    _check_rebuild(M, A, s, B, step, seed)
    _expect(ok.dim() == 0, "ok of shape ()", _shape(ok))
    for name, X in (("A", A), ("ok", ok)):
        _expect(X.device == M.device, f"{name} on {M.device}, where M is", f"{X.device}")


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


_define(
    "adamw_sketch_",
    "(Tensor(a!) M, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!)? max_exp_avg_sq,"
    " Tensor V, Tensor lr, Tensor update_count, Tensor? grad_scale, Tensor? found_inf, float beta1,"
    " float beta2, float eps, float weight_decay, bool maximize, bool write) -> Tensor",
    _fake_adamw_sketch_,
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
    Y: Tensor = _adamw_sketch_(M, grad, *state, V, rule.lr, rule.update_count, *scaling, *rule[2:], write)
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


_define(
    "adamw_project",
    "(Tensor M, Tensor exp_avg, Tensor exp_avg_sq, Tensor? max_exp_avg_sq, Tensor Y, Tensor lr,"
    " Tensor update_count, Tensor? found_inf, float beta1, float beta2, float eps, float weight_decay)"
    " -> Tensor",
    _fake_adamw_project,
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
    Z: Tensor = _adamw_project(M, *state, Y, rule.lr, rule.update_count, found_inf, *rule[2:6])
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


_define(
    "adamw_rebuild_",
    "(Tensor(a!) M, Tensor exp_avg, Tensor exp_avg_sq, Tensor? max_exp_avg_sq, Tensor A, Tensor s, Tensor B,"
    " Tensor ok, Tensor lr, Tensor update_count, Tensor step, Tensor? found_inf, float beta1, float beta2,"
    " float eps, float weight_decay, bool accumulate, int seed) -> Tensor",
    _fake_adamw_rebuild_,
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
    written: Tensor = _adamw_rebuild_(
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


_define(
    "sgd_sketch_",
    "(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor V, Tensor lr, Tensor? grad_scale,"
    " Tensor? found_inf, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
    " bool first, bool write) -> Tensor",
    _fake_sgd_sketch_,
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
    Y: Tensor = _sgd_sketch_(M, grad, momentum_buffer, V, rule.lr, *scaling, *rule[1:], first, write)
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


_define(
    "sgd_project",
    "(Tensor M, Tensor grad, Tensor? momentum_buffer, Tensor Y, Tensor lr, Tensor? found_inf, float momentum,"
    " float weight_decay, bool nesterov, bool maximize) -> Tensor",
    _fake_sgd_project,
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
    Z: Tensor = _sgd_project(
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


_define(
    "sgd_rebuild_",
    "(Tensor(a!) M, Tensor grad, Tensor? momentum_buffer, Tensor A, Tensor s, Tensor B, Tensor ok, Tensor lr,"
    " Tensor step, Tensor? found_inf, float momentum, float weight_decay, bool nesterov, bool maximize,"
    " bool accumulate, int seed) -> Tensor",
    _fake_sgd_rebuild_,
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
    written: Tensor = _sgd_rebuild_(
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


_define(
    "adamw_one_read_",
    "(Tensor(a!) M, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!)? max_exp_avg_sq,"
    " Tensor V, Tensor lr, Tensor update_count, Tensor? grad_scale, Tensor? found_inf, float beta1,"
    " float beta2, float eps, float weight_decay, bool maximize, bool write) -> (Tensor, Tensor)",
    _fake_adamw_one_read_,
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
    products: tuple[Tensor, Tensor] = _adamw_one_read_(
        M, grad, *state, V, rule.lr, rule.update_count, *scaling, *rule[2:], write
    )
    _increment_versions(M if write else None, grad if scaling.grad_scale is not None else None, *state)
    return products


def _fake_sgd_one_read_(M: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    Y, V = _fake_sgd_sketch_(M, *arguments), arguments[2]
    return Y, _columns(V, M.shape[1])


_define(
    "sgd_one_read_",
    "(Tensor(a!) M, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor V, Tensor lr, Tensor? grad_scale,"
    " Tensor? found_inf, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
    " bool first, bool write) -> (Tensor, Tensor)",
    _fake_sgd_one_read_,
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
    products: tuple[Tensor, Tensor] = _sgd_one_read_(
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


backends.register(_NAMESPACE)

# Bound once: the attribute look-ups of torch.ops cost as much as a small kernel.
_fresh_columns = torch.ops.lip_fast.fresh_columns.default
_orthonormalize = torch.ops.lip_fast.orthonormalize.default
_warm_svd = torch.ops.lip_fast.warm_svd.default
_tail_svd = torch.ops.lip_fast.tail_svd.default
_label_sums = torch.ops.lip_fast.label_sums.default
_label_sums_csr = torch.ops.lip_fast.label_sums_csr.default
_class_sums = torch.ops.lip_fast.class_sums.default
_gram = torch.ops.lip_fast.gram.default
_refit = torch.ops.lip_fast.refit.default
_sketch = torch.ops.lip_fast.sketch.default
_small_svd = torch.ops.lip_fast.small_svd.default
_start_basis = torch.ops.lip_fast.start_basis.default
_project = torch.ops.lip_fast.project.default
_finish_svd = torch.ops.lip_fast.finish_svd.default
_rebuild_ = torch.ops.lip_fast.rebuild_.default
_adamw_sketch_ = torch.ops.lip_fast.adamw_sketch_.default
_adamw_project = torch.ops.lip_fast.adamw_project.default
_adamw_rebuild_ = torch.ops.lip_fast.adamw_rebuild_.default
_sgd_sketch_ = torch.ops.lip_fast.sgd_sketch_.default
_sgd_project = torch.ops.lip_fast.sgd_project.default
_sgd_rebuild_ = torch.ops.lip_fast.sgd_rebuild_.default
_adamw_one_read_ = torch.ops.lip_fast.adamw_one_read_.default
_sgd_one_read_ = torch.ops.lip_fast.sgd_one_read_.default
