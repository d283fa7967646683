"""Which kernel serves which op: decided once, when the ops are defined.

This is the only module that reads the environment. ``LIP_FAST_BACKEND`` forces a backend for all it can do;
unset or ``auto`` takes, op by op and device by device, the one that is there and was faster when measured, or
the one that alone does not wait for the device.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lip_fast.backends.default.fresh_columns import fresh_columns
from lip_fast.backends.default.label_sums import label_sums, label_sums_csr
from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.backends.default.rebuild_ import rebuild_
from lip_fast.backends.default.refit import refit
from lip_fast.backends.default.sketch import sketch
from lip_fast.backends.default.small_svd import small_svd
from lip_fast.backends.default.tail_svd import tail_svd
from lip_fast.backends.default.warm_svd import warm_svd
from lip_fast.backends.native import library
from lip_fast.backends.native.front_door import on_its_device
from lip_fast.backends.native.kernels import KERNELS as NATIVE

__all__ = ["BACKENDS", "Served", "environment", "forced", "register", "served"]

BACKENDS = ("default", "native")

_DEFAULT: dict[str, Callable[..., Any]] = {
    "fresh_columns": fresh_columns,
    "orthonormalize": orthonormalize,
    "sketch": sketch,
    "small_svd": small_svd,
    "warm_svd": warm_svd,
    "tail_svd": tail_svd,
    "label_sums": label_sums,
    "label_sums_csr": label_sums_csr,
    "refit": refit,
    "rebuild_": rebuild_,
}
_LIBRARIES = {"cpu": library.cpu, "cuda": library.cuda}


class Served(NamedTuple):
    """Who serves an op on a device, and why."""

    op: str
    device: str
    backend: str
    reason: str


def forced() -> str:
    """What ``LIP_FAST_BACKEND`` asks for; "auto" where nothing."""
    return os.environ.get("LIP_FAST_BACKEND", "auto")


def environment() -> dict[str, str]:
    """The variables that are set and change what runs or how fast, for a report."""
    others = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith("LIP_FAST_") or name in others}


def register(namespace: str) -> None:
    """Register the kernels of every op of ``namespace``.

    Raises:
        RuntimeError: ``LIP_FAST_BACKEND`` names a backend that is not known or not there.
    """
    choice = forced()
    if choice not in ("auto", *BACKENDS):
        raise RuntimeError(f"LIP_FAST_BACKEND must be one of {_known()}, got {choice!r}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if choice == "native" and not all(_LIBRARIES[device]() for device in devices):
        raise RuntimeError(
            f"LIP_FAST_BACKEND is 'native', but the native kernels are not all there: {library.problems()}. "
            f"Install with LIP_FAST_EXT=require to see why they are not built, or choose one of {_known()}"
        )
    for op, kernel in _DEFAULT.items():
        # "default" is one kernel for every device that has none of its own.
        torch.library.register_kernel(f"{namespace}::{op}", "default", kernel)
    if choice == "default":
        return
    for device, kernels in NATIVE.items():
        if _LIBRARIES[device]() is None:
            continue
        for op, native in kernels.items():
            takes = native.can if choice == "native" else native.pays
            if takes is not None:
                run = native.run
                if device == "cuda":
                    run, takes = on_its_device(run), _where_served(takes)
                chosen = _either(run, takes, _DEFAULT[op])
                torch.library.register_kernel(f"{namespace}::{op}", device, chosen)


def served() -> list[Served]:
    """Every op on every device that is there."""
    choice, rows = forced(), []
    for device, load in _LIBRARIES.items():
        if device == "cuda" and not torch.cuda.is_available():
            continue
        there = load() is not None
        for op in _DEFAULT:
            kernel = NATIVE[device].get(op)
            if choice == "default":
                row = Served(op, device, "default", "LIP_FAST_BACKEND=default")
            elif kernel is None:
                row = Served(op, device, "default", "no native kernel")
            elif not there:
                row = Served(op, device, "default", "the native kernels are not there")
            elif choice == "native":
                row = Served(op, device, "native", "LIP_FAST_BACKEND=native")
            else:
                row = Served(op, device, "default" if kernel.pays is None else "native", kernel.reason)
            rows.append(row)
    return rows


def _known() -> str:
    return ", ".join(["auto", *BACKENDS])


def _where_served(takes: Callable[..., bool]) -> Callable[..., bool]:
    """Only on devices that the CUDA module holds code for."""
    return lambda first, *rest: library.serves(first.device.index) and takes(first, *rest)


def _either(
    run: Callable[..., Any], takes: Callable[..., bool], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    def chosen(*arguments: Any) -> Any:
        return run(*arguments) if takes(*arguments) else otherwise(*arguments)

    return chosen
