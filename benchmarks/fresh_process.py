"""Time of one-shot LIP in a process of its own: ``python -m benchmarks.fresh_process ROW ROUNDS SECONDS``.

Prints the seconds of each variant, round by round, as JSON. A one-shot function is called in a process that
has done little else. That matters here: memory that a benchmark's other work has left with the allocator
saves the reference, whose temporaries are a hundred megabytes, a third of its time.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rows import row
from lip_fast.bench.one_shot import one_shot_calls
from lip_fast.bench.problems import one_shot
from lip_fast.bench.rows import Row

__all__ = ["LEAST_ROUNDS", "one_shot_seconds"]

ROOT = Path(__file__).resolve().parents[1]
# A median of fewer is one measurement.
LEAST_ROUNDS = 3


def one_shot_seconds(size: Row, rounds: int, limit: float = math.inf) -> dict[str, list[float]]:
    """Seconds of "ours" and of the row's peers, taken in turn, in a fresh process.

    Args:
        size: one of the benchmarks' rows, with the sizes of a one-shot problem.
        rounds: how often at most.
        limit: seconds after which no further round begins, once there are :data:`LEAST_ROUNDS`.
    """
    command = [sys.executable, "-m", "benchmarks.fresh_process", size.key, str(rounds), str(limit)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, list[float]] = json.loads(done.stdout)
    return seconds


def _measure(key: str, rounds: int, limit: float) -> dict[str, list[float]]:
    size = row(key)
    ours, *others = one_shot_calls(one_shot(size), size.k)
    variants = {"ours": ours.run, **{peer.name: peer.run for peer in others if peer.name in size.peers}}
    for call in variants.values():
        call()  # thread pools and libraries are loaded
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    begin = time.perf_counter()
    for i in range(rounds):
        if i >= LEAST_ROUNDS and time.perf_counter() - begin > limit:
            break
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
