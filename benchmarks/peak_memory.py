"""Extra peak memory of one-shot LIP, in a process of its own: ``python -m benchmarks.peak_memory ours``.

Prints the bytes as one line. The kernel's high-water mark is set back just before the call:
``ru_maxrss`` alone would not do, since a process inherits the mark of the one that started it.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

import lip_fast
from benchmarks.rows import row
from lip_fast import reference
from lip_fast.bench.problems import OneShot, one_shot

__all__ = ["VARIANTS", "extra_peak"]

VARIANTS = ("ours", "reference")
ROOT = Path(__file__).resolve().parents[1]
# Larger blocks go straight back to the system when they are freed. Without a fixed limit, glibc raises
# its own and a call may be served from memory that setting up the problem left behind.
MMAP_THRESHOLD = 1 << 20


def extra_peak(variant: str) -> int:
    """Bytes by which the resident size rose during the call, measured in a fresh process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    command = [sys.executable, "-m", "benchmarks.peak_memory", variant]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def _call(variant: str, problem: OneShot, k: int) -> torch.Tensor:
    W, X, y = problem.W, problem.X, problem.y
    if variant == "ours":
        return lip_fast.lip(W, X, y, k)
    return reference.lip(W, X, reference.one_hot(y, W.shape[1], X.dtype), k)


def _status(field: str) -> int | None:
    """A size from /proc/self/status in bytes; None where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _high_water_mark() -> int:
    mark = _status("VmHWM")
    if mark is not None:
        return mark
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _measure(variant: str) -> int:
    size = row("one-shot")
    problem = one_shot(size)
    # Start the thread pool and the linear algebra library: their memory belongs to neither variant.
    few = 10_000  # more than one block of rows, so that buffers of every shape are there
    _call(variant, OneShot(problem.W, problem.X[:few], problem.y[:few]), size.k)
    if _status("VmHWM") is not None:
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark back to the current size
    before = _high_water_mark()
    _call(variant, problem, size.k)
    return _high_water_mark() - before


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
