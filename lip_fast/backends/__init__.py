"""Which kernel serves which op: decided once, when the ops are defined.

This is the only module that reads the environment. ``LIP_FAST_BACKEND`` forces a backend for all it can do;
unset or ``auto`` takes, op by op and device by device, the one that is there and was faster when measured, or
the one that alone does not wait for the device.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lip_fast.backends import triton
from lip_fast.backends.default.adamw import adamw_project, adamw_rebuild_, adamw_sketch_
from lip_fast.backends.default.adamw_one_read_ import adamw_one_read_
from lip_fast.backends.default.class_sums import class_sums
from lip_fast.backends.default.finish_svd import finish_svd
from lip_fast.backends.default.fresh_columns import fresh_columns
from lip_fast.backends.default.gram import gram
from lip_fast.backends.default.label_sums import label_sums, label_sums_csr
from lip_fast.backends.default.orthonormalize import orthonormalize
from lip_fast.backends.default.project import project
from lip_fast.backends.default.rebuild_ import rebuild_
from lip_fast.backends.default.refit import refit
from lip_fast.backends.default.sgd import sgd_project, sgd_rebuild_, sgd_sketch_
from lip_fast.backends.default.sgd_one_read_ import sgd_one_read_
from lip_fast.backends.default.sketch import sketch
from lip_fast.backends.default.small_svd import small_svd
from lip_fast.backends.default.start_basis import start_basis
from lip_fast.backends.default.tail_svd import tail_svd
from lip_fast.backends.default.warm_svd import warm_svd
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native import library
from lip_fast.backends.native.front_door import on_its_device
from lip_fast.backends.native.kernels import KERNELS as NATIVE
from lip_fast.backends.native.sketch import is_cached
from lip_fast.backends.triton.kernels import KERNELS as TRITON

__all__ = [
    "BACKENDS",
    "Served",
    "backend_of",
    "environment",
    "forced",
    "reads_once",
    "register",
    "served",
    "triton_problem",
]

BACKENDS = ("default", "native", "triton")

_DEFAULT: dict[str, Callable[..., Any]] = {
    "fresh_columns": fresh_columns,
    "orthonormalize": orthonormalize,
    "sketch": sketch,
    "small_svd": small_svd,
    "warm_svd": warm_svd,
    "start_basis": start_basis,
    "project": project,
    "finish_svd": finish_svd,
    "tail_svd": tail_svd,
    "label_sums": label_sums,
    "label_sums_csr": label_sums_csr,
    "class_sums": class_sums,
    "gram": gram,
    "refit": refit,
    "rebuild_": rebuild_,
    "adamw_sketch_": adamw_sketch_,
    "adamw_project": adamw_project,
    "adamw_rebuild_": adamw_rebuild_,
    "sgd_sketch_": sgd_sketch_,
    "sgd_project": sgd_project,
    "sgd_rebuild_": sgd_rebuild_,
    "adamw_one_read_": adamw_one_read_,
    "sgd_one_read_": sgd_one_read_,
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
    others = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_INTERPRET")
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith("LIP_FAST_") or name in others}


def triton_problem(device: str) -> str | None:
    """Why the Triton kernels do not serve a kind of device; None where they do."""
    if problem := triton.problem():
        return problem
    if _interpreted():
        # Thousands of times slower: for those who ask for it.
        return None if forced() == "triton" else "Triton interprets its kernels (TRITON_INTERPRET)"
    if device == "cpu":
        return "Triton serves CPU tensors in its interpreter alone (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None:
        return "the Triton kernels have not been tried on ROCm"
    # Triton compiles what starts a kernel, and looks for the compiler in these places.
    if os.environ.get("CC") is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton needs a C compiler, and there is none"
    return None


def register(namespace: str) -> None:
    """Register the kernels of every op of ``namespace``.

    Raises:
        RuntimeError: ``LIP_FAST_BACKEND`` names a backend that is not known or not there.
    """
    choice = forced()
    if choice not in ("auto", *BACKENDS):
        raise RuntimeError(f"LIP_FAST_BACKEND must be one of {_known()}, got {choice!r}")
    devices = _devices()
    if choice == "native" and not all(_LIBRARIES[device]() for device in devices):
        raise RuntimeError(
            f"LIP_FAST_BACKEND is 'native', but the native kernels are not all there: {library.problems()}. "
            f"Install with LIP_FAST_EXT=require to see why they are not built, or choose one of {_known()}"
        )
    # Of several kinds of device the last is the fastest: Triton need not serve the host beside it.
    if choice == "triton" and (problem := triton_problem(devices[-1])):
        raise RuntimeError(
            f"LIP_FAST_BACKEND is 'triton', but {problem}. Install lip-fast[triton] on a machine with a CUDA "
            f"device, or choose one of {_known()}"
        )
    for op, kernel in _DEFAULT.items():
        # "default" is one kernel for every device that has none of its own.
        torch.library.register_kernel(f"{namespace}::{op}", "default", kernel)
        for device in devices:
            chosen = kernel
            for candidate in reversed(_candidates(op, device)):
                chosen = _either(candidate.run, candidate.takes, chosen)
            if chosen is not kernel:
                torch.library.register_kernel(f"{namespace}::{op}", device, chosen)


def served() -> list[Served]:
    """Every op on every device that is there."""
    rows = []
    for device in _devices():
        for op in _DEFAULT:
            candidates = _candidates(op, device)
            if candidates:
                rows.append(Served(op, device, candidates[0].backend, candidates[0].reason))
            else:
                rows.append(Served(op, device, "default", _why_default(op, device)))
    return rows


@functools.cache
def backend_of(op: str, device: str) -> str:
    """The backend that serves an op on a kind of device, where it takes the arguments."""
    return next((candidate.backend for candidate in _candidates(op, device)), "default")


def reads_once(M: torch.Tensor) -> bool:
    """Whether a kernel takes the update of a float32 weight and both products in one pass over it."""
    return backend_of("adamw_one_read_", M.device.type) == "native" and not is_cached(M)


class _Candidate(NamedTuple):
    """A kernel that may serve an op on a device, where it takes the arguments."""

    backend: str
    run: Callable[..., Any]
    takes: Callable[..., bool]
    reason: str


def _candidates(op: str, device: str) -> list[_Candidate]:
    """Those that come before "default", best first.

    A native kernel comes before a Triton one: its table lists it only where it is the better choice.
    """
    choice = forced()
    found: list[_Candidate] = []
    if choice == "default":
        return found
    offered: list[tuple[str, Kernel | None, Callable[..., bool]]] = []
    if choice != "triton" and _LIBRARIES[device]() is not None:
        offered.append(("native", NATIVE[device].get(op), library.serves))
    if choice != "native" and triton_problem(device) is None:
        offered.append(("triton", TRITON.get(op), triton.serves))
    for backend, kernel, serves in offered:
        if kernel is None:
            continue
        run, takes = kernel.run, kernel.can if choice == backend else kernel.pays
        if takes is None:
            continue
        if device == "cuda" and not (backend == "triton" and _interpreted()):
            run, takes = on_its_device(run), _where_served(takes, serves)
        reason = f"LIP_FAST_BACKEND={choice}" if choice == backend else kernel.reason
        found.append(_Candidate(backend, run, takes, reason))
    return found


def _why_default(op: str, device: str) -> str:
    choice, native = forced(), NATIVE[device].get(op)
    if choice == "default":
        return "LIP_FAST_BACKEND=default"
    if choice == "triton" or (device == "cuda" and native is None):
        problem = triton_problem(device)
        return "no kernel of its own" if op not in TRITON or problem is None else problem
    if native is None:
        return "no native kernel"
    if _LIBRARIES[device]() is None:
        return "the native kernels are not there"
    return native.reason


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _interpreted() -> bool:
    """Whether Triton will interpret kernels on the host instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _known() -> str:
    return ", ".join(["auto", *BACKENDS])


def _where_served(takes: Callable[..., bool], serves: Callable[[int], bool]) -> Callable[..., bool]:
    """Only on devices that there is code for."""
    return lambda first, *rest: serves(first.device.index) and takes(first, *rest)


def _either(
    run: Callable[..., Any], takes: Callable[..., bool], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    def chosen(*arguments: Any) -> Any:
        return run(*arguments) if takes(*arguments) else otherwise(*arguments)

    return chosen
