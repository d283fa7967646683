"""``lip-fast doctor``: what is installed, which backend serves which op and why, what does not fit together.

It looks and changes nothing. What it finds wrong is said in one line each, with what to do about it.
"""

import argparse
import ctypes
import importlib
import importlib.util
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

import lip_fast
from lip_fast import backends
from lip_fast.backends import triton
from lip_fast.backends.native import library
from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.cli.table import aligned
from lip_fast.cli.version import installed

__all__ = ["main"]

EXTENSIONS = ("_native_cpu", "_native_cuda")
# The oldest driver of each CUDA, by NVIDIA's compatibility table.
DRIVERS = {12: 525, 13: 580}
# Rows of the batches for which it says what LIP costs beside the head's own work.
_BATCHES = (128, 1024)
_AGAIN = "install lip_fast again (LIP_FAST_EXT=require shows what its compilers say)"


class Extension(NamedTuple):
    """One extension module as it was found: its file, what it says of itself and what is wrong with it."""

    name: str
    path: str | None
    module: ModuleType | None
    state: str
    problems: list[str]


def main(arguments: Sequence[str]) -> int:
    """Print the report.

    Returns:
        0, or 1 where something does not fit together.
    """
    given = _parse(arguments)
    costs = None if given.head is None else _costs(*given.head, rank=given.rank)
    driver = _driver()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # torch tells by a warning that a driver does not suit it.
        has_device = torch.cuda.is_available()
    extensions = [_examine(name, has_device) for name in EXTENSIONS]
    problems = _torch_problems(driver, has_device, [str(item.message) for item in caught])
    problems += [problem for extension in extensions for problem in extension.problems]
    served, failed = _served()
    problems += failed

    _print_section("versions", _versions())
    system = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    _print_section("machine", [("platform", system), *_devices(driver, has_device)])
    rows = [row for extension in extensions for row in _describe(extension)]
    _print_section("extensions", [*rows, *_triton(served)])
    variables = backends.environment()
    _print_section("environment", variables.items() or [("none of the variables that are heeded is set",)])
    _print_section("ops", [("op", "device", "backend", "why"), *served])
    if costs is not None:
        l, q = given.head
        _print_section(f"what LIP costs on a head of {l} x {q}", costs)
    if not problems:
        print("no problem found")
        return 0
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    _print_section(count, [(problem,) for problem in problems])
    return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="lip-fast doctor", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--head",
        type=_shape,
        metavar="LxQ",
        help="say what a step costs on a head of l classes and q features",
    )
    parser.add_argument(
        "--rank", type=_rank, default="auto", help='of that step: an int, a fraction or "auto" (the default)'
    )
    return parser.parse_all(arguments)


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise argparse.ArgumentTypeError(f"expected classes x features, as 1000x2048, got {text!r}")
    return int(found[1]), int(found[2])


def _rank(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _costs(l: int, q: int, *, rank: int | float | str) -> list[tuple[str, ...]]:
    """A line for each way to set the tail; UserError where the rank does not fit the head."""
    # Not where it is not asked for: the report is also of an installation whose ops cannot be had.
    from lip_fast.cost import cost
    from lip_fast.settings import Settings

    rows = [
        (
            "tail_rank",
            "path",
            "rank",
            "refitted",
            "GFLOP",
            "MB",
            *(f"of the head, {n} rows" for n in _BATCHES),
        )
    ]
    for tail_rank in (None, "all"):
        try:
            costs = [cost(l, q, Settings(rank=rank, tail_rank=tail_rank), n) for n in _BATCHES]
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from None
        of = costs[0]
        sizes = (f"{of.flops / 1e9:.3g}", f"{of.bytes / 1e6:.3g}")
        ratios = (f"{each.ratio:.2g}x" for each in costs)
        rows.append((str(tail_rank), of.path, str(of.rank), str(of.refitted), *sizes, *ratios))
    return rows


def _versions() -> list[tuple[str, str]]:
    cuda = torch.version.cuda
    return [
        ("lip_fast", installed() or "not installed: run from a source folder"),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, " + (f"for CUDA {cuda}" if cuda else "without CUDA")),
        ("numpy", installed("numpy") or "not installed"),
        ("triton", triton.version() or "not installed"),
    ]


def _devices(driver: int | None, has_device: bool) -> list[tuple[str, str]]:
    path = Path("/proc/driver/nvidia/version")
    version = re.search(r"Kernel Module\D*(\d[\d.]*)", path.read_text() if path.exists() else "")
    knows = f"knows CUDA {_cuda(driver)}" if driver is not None else "none"
    rows = [("NVIDIA driver", f"{version[1]}, {knows}" if version is not None else knows)]
    for index in range(torch.cuda.device_count() if has_device else 0):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        rows.append((f"GPU {index}", f"{device.name}, sm_{device.major}{device.minor}, {memory}"))
    return rows if has_device else [*rows, ("GPU", "none that torch can use")]


def _driver() -> int | None:
    """The newest CUDA that the driver knows, e.g. 13000; None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _torch_problems(driver: int | None, has_device: bool, said: list[str]) -> list[str]:
    """The problem of a driver that is too old for the CUDA that this torch is built for."""
    if has_device or torch.version.cuda is None or driver is None:
        return []
    major = int(torch.version.cuda.partition(".")[0])
    if driver // 1000 >= major:
        return []
    reason = f" ({' '.join(said[0].split())})" if said else ""
    return [
        f"torch is for CUDA {torch.version.cuda}, the driver knows {_cuda(driver)}{reason}: "
        f"{_newer_driver(major)}, or install torch for CUDA {driver // 1000}"
    ]


def _newer_driver(major: int) -> str:
    return f"update the driver to {DRIVERS[major]} or newer" if major in DRIVERS else "update the driver"


def _examine(name: str, has_device: bool) -> Extension:
    """Find an extension module and load it, which needs neither a device nor a driver."""
    loaded = (library.cuda() if name == "_native_cuda" else library.cpu()) is not None
    said = library.problems().get(name)
    spec = importlib.util.find_spec(f"lip_fast.{name}")
    if spec is None:
        return Extension(name, None, None, "not built", [])
    try:
        module = importlib.import_module(f"lip_fast.{name}")
    except Exception as error:  # of any kind: the report says what it was
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        problem = f"lip_fast.{name} is there and does not load ({reason}): {_AGAIN}"
        return Extension(name, spec.origin, None, "broken", [problem])
    problems = []
    built, present = getattr(module, "__version__", "unknown"), installed()
    if present is not None and built != present:
        problems = [f"lip_fast.{name} was built for lip_fast {built}, installed is {present}: {_AGAIN}"]
    if name == "_native_cuda" and has_device:
        problems += _device_problems(module)
        if not loaded and not problems:
            problems.append(f"lip_fast.{name} is not used ({said or 'no reason given'}): {_AGAIN}")
    idle = said or ("torch sees no CUDA device" if name == "_native_cuda" else "no reason given")
    return Extension(name, spec.origin, module, "loaded" if loaded else f"not loaded: {idle}", problems)


def _device_problems(module: ModuleType) -> list[str]:
    """Why the CUDA extension cannot serve the devices that torch can use."""
    driver, runtime = module.driver_version(), module.CUDART_VERSION
    if driver // 1000 < runtime // 1000:
        return [
            f"lip_fast._native_cuda was built for CUDA {_cuda(runtime)}, the driver knows {_cuda(driver)}, "
            f"so that plain torch serves the GPU: {_newer_driver(runtime // 1000)}, "
            f"or install lip_fast again with nvcc {driver // 1000}"
        ]
    problems = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if library.covers(module.CUDA_ARCHS, capability) is False:
            number = f"{capability[0]}{capability[1]}"
            problems.append(
                f"lip_fast._native_cuda holds code for {module.CUDA_ARCHS}, GPU {index} is sm_{number}: "
                f"install lip_fast again with LIP_FAST_CUDA_ARCHS={number}"
            )
    return problems


def _describe(extension: Extension) -> list[tuple[str, str]]:
    rows = [(extension.name, extension.state)]
    if extension.module is not None:
        details = [f"version {getattr(extension.module, '__version__', 'unknown')}"]
        if hasattr(extension.module, "CUDART_VERSION"):
            details.append(f"CUDA {_cuda(extension.module.CUDART_VERSION)}")
        if hasattr(extension.module, "CUDA_ARCHS"):
            details.append(f"code for {extension.module.CUDA_ARCHS}")
        rows.append(("", ", ".join(details)))
    return rows if extension.path is None else [*rows, ("", extension.path)]


def _triton(served: Sequence[backends.Served]) -> list[tuple[str, str]]:
    """Whether Triton is used, and for what."""
    device = served[-1].device if served else "cuda"
    if problem := backends.triton_problem(device):
        return [("triton", f"not used: {problem}")]
    ops = sorted({row.op for row in served if row.backend == "triton"})
    return [("triton", "used"), ("", f"serves {', '.join(ops)}" if ops else "serves no op")]


def _served() -> tuple[list[backends.Served], list[str]]:
    """Which backend serves which op on which device, and the problems that keep a backend from it."""
    # A backend that is forced and not there: the import of lip_fast kept the error for this command alone.
    error = lip_fast.import_error
    problems = [] if error is None else [str(error)]
    served: list[backends.Served] = []
    try:
        served = backends.served()
    except RuntimeError as refused:
        problems.append(str(refused))
    advice = "unset LIP_FAST_BACKEND, or install what it names"
    return served, [f"{' '.join(problem.split())}: {advice}" for problem in dict.fromkeys(problems)]


def _print_section(title: str, rows: Iterable[Sequence[str]]) -> None:
    print(f"{title}\n{aligned(list(rows), indent='  ')}\n")
