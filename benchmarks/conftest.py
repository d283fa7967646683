"""What goes into the results beside the timings: the machine without its name, the commit measured."""

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkout import tree

_tree_at_start: tuple[str, bool] | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _tree_at_start
    path = config.getoption("benchmark_json", None)
    if path is not None:
        # The result is written at the very end: too late to notice a missing folder.
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _tree_at_start = tree()


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
    found = tree()
    known = found is not None and found == _tree_at_start
    info = {
        "id": found[0] if found is not None and known else "unknown",
        "time": commit_info.get("time"),
        "dirty": found is None or not known or found[1],
    }
    commit_info.clear()
    commit_info.update(info)
