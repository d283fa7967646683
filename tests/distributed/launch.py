"""Starting several processes from a test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Of a process of a test: one thread, and the modules of the tests beside the package."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(world: int, target: str, folder: Path, *arguments: str, timeout: float = 240) -> Any:
    """What ``target`` ("module:function") returns in the first of ``world`` gloo processes of torchrun.

    Raises:
        AssertionError: a process failed; with what it printed.
    """
    out = folder / f"{target.split(':')[1]}-{world}.json"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"),
            *(str(TESTS / "distributed" / "program.py"), target, str(out), *arguments),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, _first_error(run.stderr)
    return json.loads(out.read_text())


def _first_error(text: str) -> str:
    """What the processes printed before torchrun's own report."""
    return text.split("torch/distributed/elastic/multiprocessing/api.py")[0][-6000:]
