"""Which kernel serves which op: decided once, when the ops are defined.

This is the only module that reads the environment. ``LIP_FAST_BACKEND`` forces a backend for all it can do;
unset or ``auto`` takes, op by op and device by device, the one that is there and was faster when measured, or
the one that alone does not wait for the device.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import torch

from lip_fast.backends import triton
from lip_fast.backends.kernel import Kernel, never
from lip_fast.backends.native import library

__all__ = [
    "BACKENDS",
    "LIBRARIES",
    "Candidate",
    "Served",
    "backend_of",
    "candidates",
    "check_choice",
    "declare",
    "declared",
    "devices",
    "environment",
    "forced",
    "kernel",
    "kernels",
    "served",
    "triton_problem",
]

BACKENDS = ("default", "native", "triton")
LIBRARIES = {"cpu": library.cpu, "cuda": library.cuda}
"""The extension module of each kind of device; None where it is not there."""

_declared: dict[str, tuple[Kernel, ...]] = {}


class Served(NamedTuple):
    """Who serves an op on a device, and why."""

    op: str
    device: str
    backend: str
    reason: str


class Candidate(NamedTuple):
    """A kernel that may serve an op on a device, where it takes the arguments."""

    kernel: Kernel
    takes: Callable[..., bool]
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


def check_choice() -> None:
    """Refuse a ``LIP_FAST_BACKEND`` that is not known or not there.

    Raises:
        RuntimeError: it is not; the message lists what is known.
    """
    choice = forced()
    if choice not in ("auto", *BACKENDS):
        raise RuntimeError(f"LIP_FAST_BACKEND must be one of {_known()}, got {choice!r}")
    if choice == "native" and not all(LIBRARIES[device]() for device in devices()):
        raise RuntimeError(
            f"LIP_FAST_BACKEND is 'native', but the native kernels are not all there: {library.problems()}. "
            f"Install with LIP_FAST_EXT=require to see why they are not built, or choose one of {_known()}"
        )
    # Of several kinds of device the last is the fastest: Triton need not serve the host beside it.
    if choice == "triton" and (problem := triton_problem(devices()[-1])):
        raise RuntimeError(
            f"LIP_FAST_BACKEND is 'triton', but {problem}. Install lip-fast[triton] on a machine with a CUDA "
            f"device, or choose one of {_known()}"
        )


def declare(op: str, kernels: tuple[Kernel, ...]) -> None:
    """Take note of the kernels of an op, the default one first."""
    _declared[op] = kernels


def declared() -> dict[str, tuple[Kernel, ...]]:
    """The kernels of every op, the default one first."""
    return dict(_declared)


def kernels(op: str, backend: str, device: str) -> list[Kernel]:
    """The kernels that a backend has of an op for a kind of device, first the one of a forced backend."""
    return [each for each in _declared[op] if each.backend == backend and each.device in (device, None)]


def kernel(op: str, backend: str, device: str) -> Kernel | None:
    """The first of these kernels, if there is one."""
    return next(iter(kernels(op, backend, device)), None)


def candidates(op: str, device: str) -> list[Candidate]:
    """The kernels that come before the default one on a kind of device, best first.

    A native kernel comes before a Triton one: an op lists it only where it is the better choice.
    """
    choice = forced()
    there: dict[str, Callable[[int], bool]] = {}
    if choice in ("auto", "native") and LIBRARIES[device]() is not None:
        there["native"] = library.serves
    if choice in ("auto", "triton") and triton_problem(device) is None:
        there["triton"] = triton.serves
    found = []
    for backend, serves in there.items():
        for each in kernels(op, backend, device):
            takes = each.can if choice == backend else each.pays
            if takes is never:
                continue
            if device == "cuda" and not (backend == "triton" and _interpreted()):
                takes = _where_served(takes, serves)
            found.append(
                Candidate(each, takes, f"LIP_FAST_BACKEND={choice}" if choice == backend else each.reason)
            )
    return found


def served() -> list[Served]:
    """Every op on every device that is there."""
    rows = []
    for device in devices():
        for op in _declared:
            first = next(iter(candidates(op, device)), None)
            if first is not None:
                rows.append(Served(op, device, first.kernel.backend, first.reason))
            else:
                rows.append(Served(op, device, "default", _why_default(op, device)))
    return rows


@functools.cache
def backend_of(op: str, device: str) -> str:
    """The backend that serves an op on a kind of device, where it takes the arguments."""
    return next((candidate.kernel.backend for candidate in candidates(op, device)), "default")


def devices() -> list[str]:
    """The kinds of devices that are there."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _why_default(op: str, device: str) -> str:
    choice, native = forced(), kernel(op, "native", device)
    if choice == "default":
        return "LIP_FAST_BACKEND=default"
    if choice == "triton" or (device == "cuda" and native is None):
        problem = triton_problem(device)
        has_none = problem is None or kernel(op, "triton", device) is None
        return "no kernel of its own" if has_none else str(problem)
    if native is None:
        return "no native kernel"
    if LIBRARIES[device]() is None:
        return "the native kernels are not there"
    return native.reason


def _interpreted() -> bool:
    """Whether Triton will interpret kernels on the host instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _known() -> str:
    return ", ".join(["auto", *BACKENDS])


def _where_served(takes: Callable[..., bool], serves: Callable[[int], bool]) -> Callable[..., bool]:
    """Only on devices that there is code for."""
    return lambda first, *rest: serves(first.device.index) and takes(first, *rest)
