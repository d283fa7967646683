"""The extension modules: loaded when first asked for, with what was said where one could not be.

The CUDA module is not loaded where torch sees no device.
"""

import functools
import importlib
import importlib.metadata
import re
from types import ModuleType

import torch
from torch import Tensor

__all__ = [
    "MAX_COLUMNS",
    "MODULES",
    "MOST_AT_ONCE",
    "MOST_FRESH",
    "VECTOR_BYTES",
    "addresses",
    "covers",
    "cpu",
    "cuda",
    "decomposes_at_once",
    "fits_at_once",
    "problems",
    "quickly_in_range",
    "serves",
    "stream_of",
    "wide_vectors",
]

# Widest small problem of the solver: kMaxColumns in csrc/core/small_svd.h.
MAX_COLUMNS = 128

# Widest small problem of a step in one call on a host, kMostSmall in csrc/cpu/room.h, and the fresh columns
# of a truncated one, as many as F in csrc/cpu/truncated_stages.h has.
MOST_AT_ONCE, MOST_FRESH = 128, 16

# Small side of a weight up to which an exact step in one call is faster than LAPACK, by 2 to 10 times.
_MOST_EXACTLY, _MOST_EXACTLY_NARROW = 64, 24

# Vectors of such a step, as wide as the processor has them.
VECTOR_BYTES = 64

_problems: dict[str, str] = {}


@functools.cache
def cpu() -> ModuleType | None:
    """The CPU module, or None where it is not there or cannot be loaded."""
    return _load("_native_cpu")


@functools.cache
def cuda() -> ModuleType | None:
    """The CUDA module, or None where it is not there, cannot be loaded, or has no device to serve."""
    if not torch.cuda.is_available():
        return None
    module = _load("_native_cuda")
    if module is None:
        return None
    # A runtime needs a driver of its own CUDA major version, or a newer one.
    driver, runtime = module.driver_version(), module.CUDART_VERSION
    if driver // 1000 < runtime // 1000:
        _problems["_native_cuda"] = (
            f"built for CUDA {runtime // 1000}, the driver knows CUDA {driver // 1000}"
        )
        return None
    return module


@functools.cache
def wide_vectors() -> bool:
    """Whether vectors on this host are wide enough to be faster than a library's products."""
    return bool(MODULES["cpu"].vector_bytes(VECTOR_BYTES) >= 32)


def fits_at_once(followed: int, fresh: int) -> bool:
    """Whether a truncated step with so many columns is one call here, and is faster so."""
    return fresh <= MOST_FRESH and 1 <= followed <= MOST_AT_ONCE - fresh and wide_vectors()


def decomposes_at_once(small: int) -> bool:
    """Whether an exact step of a weight with such a small side is one call here, and is faster so."""
    return small <= (_MOST_EXACTLY if wide_vectors() else _MOST_EXACTLY_NARROW)


def quickly_in_range(y: Tensor, classes: int) -> bool:
    """Whether these class indices (n,) on a host are in 0..classes - 1; False too where that takes longer."""
    module = cpu()
    if module is None or not y.is_contiguous():
        return False
    return bool(module.indices_in_range(y.data_ptr(), y.shape[0], classes))


@functools.cache
def serves(index: int) -> bool:
    """Whether the CUDA module holds code for this device; asked when the first tensor of it comes.

    At import nothing is asked of a device: processes that are forked later could not use it.
    """
    module = cuda()
    return (
        module is not None and covers(module.CUDA_ARCHS, torch.cuda.get_device_capability(index)) is not False
    )


def covers(archs: str, capability: tuple[int, int]) -> bool | None:
    """Whether code for ``archs`` runs on a device.

    Args:
        archs: as the CUDA extension lists them, e.g. ``80;90a;120+PTX``.
        capability: of the device, e.g. (9, 0).

    Returns:
        None where the list cannot be read.
    """
    number = 10 * capability[0] + capability[1]
    for entry in archs.split(";"):
        match = re.fullmatch(r"(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            return None
        held = int(match[1])
        # Machine code runs within its major version, from its minor one on; with a suffix, on that device
        # ("a") or family ("f") alone. PTX without a suffix is compiled for whatever is newer.
        same_major = held // 10 == number // 10 and held <= number
        if (
            held == number
            or (same_major and match[2] != "a")
            or (match[3] and not match[2] and held <= number)
        ):
            return True
    return False


def problems() -> dict[str, str]:
    """Why a module that is there, or was expected, has not been loaded, by its name."""
    return dict(_problems)


def _load(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(f"lip_fast.{name}")
        installed = importlib.metadata.version("lip-fast")
    except importlib.metadata.PackageNotFoundError:
        return module  # from a source folder: built from what lies there
    except ImportError as error:
        _problems[name] = str(error)
        return None
    built = getattr(module, "__version__", "unknown")
    if built != installed:
        # Left from another version: its functions may take other arguments, and they take addresses.
        _problems[name] = f"built for lip_fast {built}, installed is {installed}"
        return None
    return module


class _Modules(dict[str, ModuleType]):
    """By the kind of device, each loaded when it is first asked for."""

    def __missing__(self, kind: str) -> ModuleType:
        module = cuda() if kind == "cuda" else cpu()
        if module is None:
            raise RuntimeError(f"expected the native kernels for {kind}, got none: {problems()}")
        self[kind] = module
        return module


MODULES = _Modules()
"""The modules for the launchers, which hand them addresses.

What a launcher is given fits: the check of its op and what the op says of the kernel have seen shapes, dtypes
and devices, and the launcher makes contiguous what must be. The modules refuse null and misaligned addresses.
"""


def addresses(*arrays: Tensor) -> list[int]:
    """Where each of them begins."""
    return [X.data_ptr() for X in arrays]


def stream_of(device: torch.device) -> int:
    """The address of the stream that work for a device is queued on."""
    return 0 if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream
