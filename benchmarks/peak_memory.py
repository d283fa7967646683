"""Extra peak memory of one-shot LIP, in a process of its own: ``python -m benchmarks.peak_memory ROW``.

Prints the bytes of each variant as JSON. The kernel's high-water mark is set back just before each call:
``ru_maxrss`` alone would not do, since a process inherits the mark of the one that started it.
"""

import json
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
from lip_fast.bench.rows import Row

__all__ = ["LEAST_SEEN", "VARIANTS", "extra_peaks"]

VARIANTS = ("ours", "reference")
ROOT = Path(__file__).resolve().parents[1]
# Larger blocks go straight back to the system when they are freed. Without a fixed limit, glibc raises
# its own and a call may be served from memory that setting up the problem left behind. The label matrix of
# the smallest problem that is measured has 0.4 MB.
MMAP_THRESHOLD = 1 << 16
# What is less may have been served from smaller blocks that were there: it cannot be told from nothing.
LEAST_SEEN = 4 * MMAP_THRESHOLD


def extra_peaks(size: Row) -> dict[str, int]:
    """Bytes by which the resident size rose during a call of each variant, measured in a fresh process.

    At least :data:`LEAST_SEEN`.

    Args:
        size: one of the benchmarks' rows, with the sizes of a one-shot problem.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    command = [sys.executable, "-m", "benchmarks.peak_memory", size.key]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


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


def _measure(key: str) -> dict[str, int]:
    size = row(key)
    problem = one_shot(size)
    few = 10_000  # more than one block of rows, so that buffers of every shape are there
    start = OneShot(problem.W, problem.X[:few], problem.y[:few])
    peaks = {}
    for variant in VARIANTS:
        # Start the thread pool and the linear algebra library: their memory belongs to neither variant.
        _call(variant, start, size.k)
        if _status("VmHWM") is not None:
            Path("/proc/self/clear_refs").write_text("5")  # sets the mark back to the current size
        before = _high_water_mark()
        _call(variant, problem, size.k)
        peaks[variant] = max(_high_water_mark() - before, LEAST_SEEN)
    return peaks


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
