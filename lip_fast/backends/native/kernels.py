"""Which native kernels there are, what they can take, and where they are the better choice."""

from typing import Any

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.adamw_one_read_ import adamw_one_read_
from lip_fast.backends.native.finish_svd import finish_svd
from lip_fast.backends.native.fresh_columns import fresh_columns
from lip_fast.backends.native.label_sums import label_sums
from lip_fast.backends.native.rebuild_ import rebuild_
from lip_fast.backends.native.refit import refit
from lip_fast.backends.native.sgd_one_read_ import sgd_one_read_
from lip_fast.backends.native.sketch import is_cached, sketch
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.backends.native.start_basis import start_basis
from lip_fast.backends.native.tail_svd import tail_svd
from lip_fast.backends.native.warm_svd import warm_svd

__all__ = ["KERNELS", "MAX_COLUMNS"]

# Widest small problem of the solver: kMaxColumns in csrc/core/small_svd.h.
MAX_COLUMNS = 128
# Small sides up to this are decomposed faster by one thread of our own than by LAPACK: 10 x 512 in a fifth of
# the time, 24 x 512 about even.
_SMALL_SIDE = 24
# Likewise square matrices from a cold start: m = 8 in half the time of torch.linalg.svd, m = 16 about even.
_SMALL_SQUARE = 16

# Products X B of up to so many multiplications are taken faster by one thread in one call than by BLAS in the
# middle of ten small operations: 128 rows of 512 features and 5 directions in a fifth of the time, 16 times
# that about even.
_SMALL_PRODUCT = 1 << 22


def _always(*arguments: Any) -> bool:
    return True


def _can_refit(S: Tensor, numerator: Tensor, denominator: Tensor, energy: Tensor, *rest: Any) -> bool:
    return S.dtype in (torch.float32, torch.float64) and all(
        X.dtype == torch.float64 for X in (numerator, denominator, energy)
    )


def _can_rebuild(M: Tensor, A: Tensor, *rest: Any) -> bool:
    return A.dtype == torch.float32


def _can_small_svd(T: Tensor, start: Tensor | None) -> bool:
    return T.shape[-1] <= MAX_COLUMNS and (T.dtype == torch.float32 or T.device.type == "cpu")


def _pays_small_svd(T: Tensor, start: Tensor | None) -> bool:
    return T.shape[-1] <= _SMALL_SQUARE


def _can_label_sums(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    single = X.dtype == A.dtype == B.dtype == torch.float32
    return (
        single and Y.dim() == 1 and Y.dtype == torch.int64 and (bias is None or bias.dtype == torch.float32)
    )


def _pays_label_sums(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    return X.numel() * A.shape[1] <= _SMALL_PRODUCT and _can_label_sums(X, Y, A, B, bias)


def _can_tail_svd(M: Tensor, rank: int) -> bool:
    return M.dtype != torch.float64 and min(M.shape) <= _SMALL_SIDE


def _can_warm_svd(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int) -> bool:
    t = basis.shape[1]
    return basis.dtype == torch.float32 and M.dtype != torch.float64 and 1 <= t <= MAX_COLUMNS - fresh


def _can_start_basis(basis: Tensor, step: Tensor, fresh: int, seed: int) -> bool:
    return basis.dtype == torch.float32 and 1 <= basis.shape[1] <= MAX_COLUMNS - fresh


def _can_finish_svd(Y: Tensor, Z: Tensor, rank: int) -> bool:
    return Y.dtype == torch.float32 and rank >= 1 and Y.shape[1] <= MAX_COLUMNS


def _can_sketch(M: Tensor, V: Tensor) -> bool:
    return V.dtype == torch.float32


def _single(*tensors: Tensor | None) -> bool:
    return all(X is None or X.dtype == torch.float32 for X in tensors)


def _can_adamw_one_read(*arguments: Any) -> bool:
    max_exp_avg_sq = arguments[4]
    return max_exp_avg_sq is None and _single(*arguments[:10])


def _can_sgd_one_read(*arguments: Any) -> bool:
    return _single(*arguments[:7])


def _pays_adamw_one_read(M: Tensor, *rest: Any) -> bool:
    return not is_cached(M) and _can_adamw_one_read(M, *rest)


def _pays_sgd_one_read(M: Tensor, *rest: Any) -> bool:
    return not is_cached(M) and _can_sgd_one_read(M, *rest)


_NO_WAIT = "does not wait for the device"
_ONE_READ = "reads a large weight and its state once"

KERNELS: dict[str, dict[str, Kernel]] = {
    "cpu": {
        "fresh_columns": Kernel(fresh_columns, _always, _always, "faster than numpy"),
        "small_svd": Kernel(
            small_svd, _can_small_svd, _pays_small_svd, f"faster than LAPACK up to m = {_SMALL_SQUARE}"
        ),
        "tail_svd": Kernel(
            tail_svd, _can_tail_svd, _can_tail_svd, f"faster than LAPACK up to a side of {_SMALL_SIDE}"
        ),
        "warm_svd": Kernel(warm_svd, _can_warm_svd, None, "BLAS and LAPACK are faster"),
        "start_basis": Kernel(start_basis, _can_start_basis, None, "the step on CPU is one of the library"),
        "finish_svd": Kernel(finish_svd, _can_finish_svd, None, "BLAS and LAPACK are faster"),
        "label_sums": Kernel(
            label_sums, _can_label_sums, _pays_label_sums, "one call for small batches of class indices"
        ),
        "refit": Kernel(refit, _can_refit, _can_refit, "one call for a loop in Python"),
        "rebuild_": Kernel(rebuild_, _can_rebuild, _can_rebuild, "faster rounding to narrow formats"),
    },
    "cuda": {
        "fresh_columns": Kernel(fresh_columns, _always, _always, _NO_WAIT),
        "sketch": Kernel(sketch, _can_sketch, _can_sketch, "reads a large weight once"),
        "adamw_one_read_": Kernel(
            adamw_one_read_,
            _can_adamw_one_read,
            _pays_adamw_one_read,
            _ONE_READ,
        ),
        "sgd_one_read_": Kernel(sgd_one_read_, _can_sgd_one_read, _pays_sgd_one_read, _ONE_READ),
        "small_svd": Kernel(
            small_svd, _can_small_svd, _can_small_svd, f"{_NO_WAIT}, up to m = {MAX_COLUMNS}"
        ),
        "warm_svd": Kernel(
            warm_svd, _can_warm_svd, _can_warm_svd, f"{_NO_WAIT}, up to {MAX_COLUMNS} columns"
        ),
        "start_basis": Kernel(start_basis, _can_start_basis, _can_start_basis, _NO_WAIT),
        "finish_svd": Kernel(
            finish_svd, _can_finish_svd, _can_finish_svd, f"{_NO_WAIT}, up to {MAX_COLUMNS} columns"
        ),
        "refit": Kernel(refit, _can_refit, _can_refit, _NO_WAIT),
        "rebuild_": Kernel(rebuild_, _can_rebuild, _can_rebuild, f"{_NO_WAIT} to round"),
    },
}
