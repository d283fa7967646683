"""Time of one-shot LIP in a process of its own: ``python -m benchmarks.fresh_process ROUNDS``.

Prints the seconds of each variant, round by round, as JSON. A one-shot function is called once, in a process
that has not done the same thing before. That matters here: memory that a benchmark's other work has left with
the allocator saves the reference, whose temporaries are a hundred megabytes, a third of its time.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import lip_fast
from benchmarks.rows import row
from lip_fast import reference
from lip_fast.bench.problems import one_shot

__all__ = ["one_shot_seconds"]

ROOT = Path(__file__).resolve().parents[1]


def one_shot_seconds(rounds: int) -> dict[str, list[float]]:
    """Seconds of "ours", "reference" and "floor", taken in turn, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.fresh_process", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, list[float]] = json.loads(done.stdout)
    return seconds


def _measure(rounds: int) -> dict[str, list[float]]:
    size = row("one-shot")
    problem = one_shot(size)
    W, X, y = problem.W, problem.X, problem.y
    # No way around projecting the features on the refitted directions: that product alone is the floor.
    basis = torch.linalg.svd(W, full_matrices=False)[0][:, size.k :].contiguous()
    projections = torch.empty(size.n, basis.shape[1])
    variants: dict[str, Callable[[], object]] = {
        "ours": lambda: lip_fast.lip(W, X, y, size.k),
        # The form it is published in wants the label matrix: forming it is part of the price.
        "reference": lambda: reference.lip(W, X, reference.one_hot(y, size.l, X.dtype), size.k),
        "floor": lambda: torch.mm(X, basis, out=projections),
    }
    for call in variants.values():
        call()  # thread pools and libraries are loaded
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
