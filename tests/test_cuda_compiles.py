"""Every CUDA source compiles for every architecture, without spills and within the shared memory there is."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from csrc import build_native

ROOT = Path(__file__).parents[1]
OPTIONS = build_native.Options.read({"PATH": os.environ.get("PATH", ""), "MAX_JOBS": "2"})
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(build_native.CUDA.kernels))
ARCHS = ("80", "90a", "100", "120")
# What a block may have, in bytes (CUDA Programming Guide, technical specifications); 48 kB of it statically.
SHARED = {"80": 163 * 1024, "90a": 227 * 1024, "100": 227 * 1024, "120": 99 * 1024}
STATIC_SHARED = 48 * 1024
# The least dynamic shared memory that a launch at the largest m can do with, as the sources count it: values.
DYNAMIC = {
    "csrc/cuda/apply.cu": ("core/tall.h", "apply_shared(kMaxColumns)"),
    "csrc/cuda/gram.cu": ("core/tall.h", "tile_size(kMaxColumns)"),
    "csrc/cuda/pass.cu": ("core/tall.h", "pass_shared(kMaxColumns)"),
    "csrc/cuda/small_svd.cu": ("core/small_svd.h", "small_svd_shared(kMaxColumns, false)"),
    "csrc/cuda/solve.cu": ("core/warm_svd.h", "solve_shared(kMaxColumns, false)"),
}


def _nvcc() -> str | None:
    try:
        return build_native.find_nvcc(OPTIONS)
    except build_native.BuildError:
        return None


NVCC = _nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not there")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a function for one architecture, in bytes."""

    name: str
    arch: str
    stack: int
    spilled: int
    shared: int


def _compile(source: str, folder: Path) -> list[Kernel]:
    gencode = [flag for arch in ARCHS for flag in build_native.Arch(arch).flags()]
    # Device code alone: what g++ makes of the host's half is the build's own business.
    command = [str(NVCC), "-fatbin", *build_native.NVCC_FLAGS, "-Icsrc", "-Xptxas=-v", *gencode, source]
    output = folder / f"{Path(source).stem}.fatbin"
    result = _started([*command, "-o", str(output)])
    assert result.returncode == 0, result.stderr
    return _kernels(result.stderr)


def _started(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a compiler; a machine short of memory may refuse to start it, and do so a moment later."""
    for seconds in (1, 5, 25):
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        except OSError as error:
            print(f"{command[0]} was not started, once more in {seconds} s: {error}", file=sys.stderr)
            time.sleep(seconds)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def _kernels(report: str) -> list[Kernel]:
    found = []
    # Functions that were not inlined are listed too, each after the kernel that calls them.
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", report)[1:]:
        head = re.search(r"entry function '(\S+)' for 'sm_(\w+)'", part)
        sizes = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        assert head is not None, part
        assert sizes, part
        shared = re.search(r"(\d+) bytes smem", part)
        stack = max(int(size[0]) for size in sizes)
        spilled = max(int(size[1]) + int(size[2]) for size in sizes)
        found.append(Kernel(head[1], head[2], stack, spilled, int(shared[1]) if shared else 0))
    return found


@pytest.fixture(scope="module")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, "Future[list[Kernel]]"]]:
    """The sources of the tests that were asked for, two compilations at a time."""
    asked = {
        item.callspec.params["source"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    folder = tmp_path_factory.mktemp("cuda")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {source: pool.submit(_compile, source, folder) for source in SOURCES if source in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.process
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(source: str, arch: str, compiled: dict[str, "Future[list[Kernel]]"]) -> None:
    kernels = [kernel for kernel in compiled[source].result() if kernel.arch == arch]
    assert kernels or "__global__" not in (ROOT / source).read_text(), "the report names no kernel"
    wrong = [kernel for kernel in kernels if kernel.spilled or kernel.stack]
    assert not wrong
    assert all(kernel.shared <= STATIC_SHARED for kernel in kernels)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not there")
@pytest.mark.parametrize("source", DYNAMIC)
def test_the_largest_launch_fits_every_device(
    source: str, compiled: dict[str, "Future[list[Kernel]]"], tmp_path: Path
) -> None:
    header, values = DYNAMIC[source]
    (tmp_path / "size.cpp").write_text(
        f'#include <cstdio>\n#include "core/small_svd.h"\n#include "{header}"\nusing namespace lip_fast;\n'
        f'int main() {{ std::printf("%lld", 4LL * ({values})); }}\n'
    )
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc'}", "size.cpp", "-o", "size"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    program = subprocess.run([tmp_path / "size"], capture_output=True, text=True, check=True, timeout=60)
    dynamic = int(program.stdout)
    assert dynamic > 0
    for kernel in compiled[source].result():
        assert kernel.shared + dynamic <= SHARED[kernel.arch], kernel


def test_every_source_with_dynamic_shared_memory_is_counted() -> None:
    # one_read takes its plan from the device's own limit and refuses where there is none.
    using = [source for source in SOURCES if "shared_memory<" in (ROOT / source).read_text()]
    assert using == sorted(DYNAMIC)
