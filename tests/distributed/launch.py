"""Starting several processes from a test."""

import json
import os
from pathlib import Path
from typing import Any

from warm import Warm, python

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Of a process of a test: one thread, and the modules of the tests beside the package."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def interpreter() -> Warm:
    """With what the programs of the tests import of torch, and torch itself where an optimizer is made."""
    if "TRITON_INTERPRET" in os.environ:
        # Triton decides when it is imported whether it interprets, and these modules import it.
        return python("torch")
    return python(
        "torch.distributed.nn", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo"
    )


def launch(world: int, target: str, folder: Path, *arguments: str, timeout: int = 240) -> Any:
    """What ``target`` ("module:function") returns in the first of ``world`` gloo processes.

    Raises:
        AssertionError: a process failed; with what it printed.
    """
    out = folder / f"{target.split(':')[1]}-{world}.json"
    program = str(TESTS / "distributed" / "program.py")
    ended = interpreter().group(
        world, program, target, str(out), *arguments, env=environment(), timeout=timeout
    )
    # Others are ended where one fails.
    failed = [f"rank {rank}: {run.stderr[-6000:]}" for rank, run in enumerate(ended) if run.returncode > 0]
    assert not any(run.returncode for run in ended), failed or [run.returncode for run in ended]
    return json.loads(out.read_text())
