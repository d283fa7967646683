"""What goes into the results beside the timings: the machine without its name, the commit measured."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# What decides the numbers. A README or a result written after a run does not make the tree dirty.
MEASURED = ("lip_fast", "csrc", "benchmarks", "setup.py", "pyproject.toml")
RESULTS = "benchmarks/results"


_tree_at_start: tuple[str, bool] | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _tree_at_start
    path = config.getoption("benchmark_json", None)
    if path is not None:
        # The result is written at the very end: too late to notice a missing folder.
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _tree_at_start = _tree()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    # Results are published: what describes the machine is taken over, what names it is not.
    cpu = machine_info.get("cpu", {})
    info = {
        "cpu": cpu.get("brand_raw", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    machine_info.clear()
    machine_info.update(info)


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    # pytest-benchmark looks at the end of the run: a commit made meanwhile is not what was measured.
    tree = _tree()
    known = tree is not None and tree == _tree_at_start
    info = {
        "id": tree[0] if tree is not None and known else "unknown",
        "time": commit_info.get("time"),
        "dirty": tree is None or not known or tree[1],
    }
    commit_info.clear()
    commit_info.update(info)


def _tree() -> tuple[str, bool] | None:
    """The commit checked out and whether what is measured differs from it; None where git cannot tell."""
    paths = [path for path in MEASURED if (ROOT / path).exists()]
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", *paths, f":(exclude){RESULTS}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit, bool(changes)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
