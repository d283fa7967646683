"""Which kernel serves which op: decided once, when the ops are defined.

This is the only module that reads the environment. ``LIP_FAST_BACKEND`` forces a backend; unset or ``auto``
takes the fastest that is there.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from lip_fast.backends.default.fresh_columns import fresh_columns
from lip_fast.backends.default.label_sums import label_sums, label_sums_csr
from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.backends.default.rebuild_ import rebuild_
from lip_fast.backends.default.refit import refit
from lip_fast.backends.default.tail_svd import tail_svd
from lip_fast.backends.default.warm_svd import warm_svd

_KERNELS: dict[str, dict[str, Callable[..., Any]]] = {
    "default": {
        "fresh_columns": fresh_columns,
        "orthonormalize": orthonormalize,
        "warm_svd": warm_svd,
        "tail_svd": tail_svd,
        "label_sums": label_sums,
        "label_sums_csr": label_sums_csr,
        "refit": refit,
        "rebuild_": rebuild_,
    }
}


def register(namespace: str) -> None:
    """Register one kernel for every op of ``namespace``.

    Raises:
        RuntimeError: ``LIP_FAST_BACKEND`` names a backend that is not there.
    """
    forced = os.environ.get("LIP_FAST_BACKEND", "auto")
    if forced != "auto" and forced not in _KERNELS:
        known = ", ".join(["auto", *_KERNELS])
        raise RuntimeError(f"LIP_FAST_BACKEND must be one of {known}, got {forced!r}")
    for op, kernel in _KERNELS["default"].items():
        # "default" is one kernel for every device.
        torch.library.register_kernel(f"{namespace}::{op}", "default", kernel)
