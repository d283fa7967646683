"""What a result was measured on, without what names the machine: ``python -m lip_fast.bench.environment``."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe", "main", "versions"]

_PACKAGES = (
    "numpy",
    "triton",
    "torchao",
    "scipy",
    "scikit-learn",
    "ninja",
    "pybind11",
    "setuptools",
    "pytest",
    "pytest-benchmark",
)
_SMI = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "persistence_mode",
)


def describe() -> dict[str, Any]:
    """Versions, processor and, where there is one, the GPU."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        **versions(),
        "nvcc": _release("nvcc", "--version"),
        "compute-sanitizer": _release("compute-sanitizer", "--version"),
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": _gpu(),
    }
    return facts


def versions() -> dict[str, str | None]:
    """Versions of the packages that a measurement depends on; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(*command: str) -> str | None:
    """The version that a tool prints; None where the tool is not installed."""
    if shutil.which(command[0]) is None:
        return None
    said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    found = re.search(r"V(\d[\d.]*)|[Vv]ersion (\d[\d.]*)", said.stdout)
    return (found[1] or found[2]) if found else "unknown"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": list(torch.cuda.get_device_capability(0)),
        "count": torch.cuda.device_count(),
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "L2": getattr(properties, "L2_cache_size", None),
        "nvidia-smi": _smi(),
    }


def _smi() -> dict[str, str] | None:
    """Driver, clocks, temperature and power of the GPU, as nvidia-smi tells them now."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    values = [value.strip() for value in said.stdout.strip().split(",")]
    return dict(zip(_SMI, values, strict=True)) if len(values) == len(_SMI) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, as JSON, and write it as a line of the result."""
    parser = argparse.ArgumentParser(prog="python -m lip_fast.bench.environment", description=main.__doc__)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    facts = describe()
    with options.result.open("a") as file:
        file.write(json.dumps({"kind": "environment", **facts}) + "\n")
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
