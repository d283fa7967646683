"""The timings of ``benchmarks.device``: ``python -m benchmarks.gpu.rows PART --result FILE``.

Each row has checks, which come first: one that fails voids the row, and nothing of it is timed. What is
found goes to FILE, a line of JSON a row, as soon as it is there: a row that ends the process leaves the
others.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import decompositions, ops, optim, sketch, solver, step, update, warm
from lip_fast.bench.cases import Cases, run_cases
from lip_fast.bench.timing import Timer, spin_up

__all__ = ["PARTS", "main"]

PARTS: dict[str, Cases] = {
    "solver": solver.cases,
    "sketch": sketch.cases,
    "update": update.cases,
    "warm": warm.cases,
    "step": step.cases,
    "optim": optim.cases,
    "decompositions": decompositions.cases,
    "ops": ops.cases,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one part; 1 where a row is void."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.rows", description=main.__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--result", type=Path, required=True, help="takes a line of JSON a row")
    parser.add_argument("--seconds", type=float, default=60, help="for all rows together")
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="only rows whose names match it")
    parser.add_argument("--dry", action="store_true", help="small rows, on the CPU")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.dry else "cuda")
    if not options.dry and not torch.cuda.is_available():
        print("no CUDA device: --dry runs small rows on the CPU")
        return 2
    spin_up(device)
    timer = Timer(device, sample_seconds=1e-4, most_rounds=3) if options.dry else Timer(device)
    with options.result.open("a") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        cases = PARTS[options.part](device, options.dry)
        chosen = [(key, make) for key, make in cases if fnmatch.fnmatchcase(key, options.rows)]
        if not chosen:
            print(f"no row of {options.part} matches {options.rows!r}")
        sound = run_cases(chosen, timer, options.seconds, write)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
