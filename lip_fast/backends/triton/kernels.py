"""Which Triton kernels there are, what they can take, and where they are the better choice.

This table imports no kernel: each is imported, and Triton with it, by its first call.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel

__all__ = ["FILES", "KERNELS"]

# The modules of this folder that hold kernels, each with its CONFIGURATIONS.
FILES = (
    "adamw_project",
    "adamw_rebuild_",
    "adamw_sketch_",
    "class_sums",
    "fresh_columns",
    "gram",
    "label_sums",
    "project",
    "rebuild_",
    "sgd_project",
    "sgd_rebuild_",
    "sgd_sketch_",
)

# Formats of weights and features that kernels read.
_STORED = (torch.float32, torch.bfloat16, torch.float16)

# Widest tile of columns that the products of an update keep in registers.
_MAX_COLUMNS = 128


@functools.cache
def _load(file: str, name: str) -> Callable[..., Any]:
    run: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{file}"), name)
    return run


def _of(file: str, name: str | None = None) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return _load(file, name or file)(*arguments)

    return run


def _always(*arguments: Any) -> bool:
    return True


def _can_rebuild(M: Tensor, A: Tensor, *rest: Any) -> bool:
    return M.dtype in _STORED and A.dtype == torch.float32


def _can_project(M: Tensor, Y: Tensor) -> bool:
    return M.dtype in _STORED and Y.dtype == torch.float32 and Y.shape[1] <= _MAX_COLUMNS


def _can_label_sums(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    return X.dtype in _STORED and A.dtype == B.dtype == torch.float32


def _can_label_sums_csr(
    X: Tensor, crow: Tensor, col: Tensor, values: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> bool:
    return _can_label_sums(X, col, A, B, bias)


def _can_class_sums(X: Tensor, y: Tensor, classes: int) -> bool:
    # Indices are sorted as int32, and the rows that do not count have one of their own.
    return X.dtype in _STORED and classes < 2**31 - 1


def _can_gram(X: Tensor, counts: Tensor | None) -> bool:
    return X.dtype in _STORED


def _takes_update(M: Tensor, grad: Tensor | None, state: Sequence[Tensor | None], *skinny: Tensor) -> bool:
    """Formats that the kernels of the updates load, and a state that is laid out as the weight is."""
    held = [X for X in state if X is not None]
    return (
        all(X.dtype in _STORED for X in (M, *held))
        and (grad is None or grad.dtype in _STORED)
        and all(X.stride() == M.stride() for X in held)
        and all(X.dtype == torch.float32 for X in skinny)
    )


def _can_adamw_sketch(
    M: Tensor, grad: Tensor, m: Tensor, v: Tensor, u: Tensor | None, V: Tensor, *rest: Any
) -> bool:
    return _takes_update(M, grad, (m, v, u), V) and V.shape[1] <= _MAX_COLUMNS


def _can_adamw_project(M: Tensor, m: Tensor, v: Tensor, u: Tensor | None, Y: Tensor, *rest: Any) -> bool:
    return _takes_update(M, None, (m, v, u), Y) and Y.shape[1] <= _MAX_COLUMNS


def _can_adamw_rebuild(M: Tensor, m: Tensor, v: Tensor, u: Tensor | None, A: Tensor, *rest: Any) -> bool:
    return _takes_update(M, None, (m, v, u), A)


def _can_sgd_sketch(M: Tensor, grad: Tensor, buffer: Tensor | None, V: Tensor, *rest: Any) -> bool:
    return _takes_update(M, grad, (buffer,), V) and V.shape[1] <= _MAX_COLUMNS


def _can_sgd_rebuild(M: Tensor, grad: Tensor, buffer: Tensor | None, A: Tensor, *rest: Any) -> bool:
    return _takes_update(M, grad, (buffer,), A)


_UPDATES: dict[str, Callable[..., bool]] = {
    "adamw_sketch_": _can_adamw_sketch,
    "adamw_project": _can_adamw_project,
    "adamw_rebuild_": _can_adamw_rebuild,
    "sgd_sketch_": _can_sgd_sketch,
    # Its Y is where V is in the sketch.
    "sgd_project": _can_sgd_sketch,
    "sgd_rebuild_": _can_sgd_rebuild,
}

KERNELS: dict[str, Kernel] = {
    "fresh_columns": Kernel(_of("fresh_columns"), _always, _always, "does not wait for the device"),
    "label_sums": Kernel(_of("label_sums"), _can_label_sums, _can_label_sums, "reads the features once"),
    "label_sums_csr": Kernel(
        _of("label_sums", "label_sums_csr"),
        _can_label_sums_csr,
        _can_label_sums_csr,
        "reads the features once",
    ),
    "class_sums": Kernel(
        _of("class_sums"), _can_class_sums, _can_class_sums, "reads the features once, where they lie"
    ),
    "gram": Kernel(_of("gram"), _can_gram, _can_gram, "half the products, in float32 on the tensor cores"),
    "project": Kernel(
        _of("project"), _can_project, _can_project, "in float32 on the tensor cores, the same bits each time"
    ),
    "rebuild_": Kernel(_of("rebuild_"), _can_rebuild, _can_rebuild, "writes the weight in one pass"),
    **{
        op: Kernel(_of(op), can, can, "one pass over the weight and its state")
        for op, can in _UPDATES.items()
    },
}
