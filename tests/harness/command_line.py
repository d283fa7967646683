"""``lip-fast`` in processes of its own, and what runs leave behind."""

import json
import os
from pathlib import Path
from typing import Any

from warm import Running, Warm, python

REPOSITORY = Path(__file__).parents[2]
# Times, and what tells how they were taken: all else of a run is the same, however it was run.
MEASURED = ("seconds", "sessions", "step_seconds", "lip_seconds", "repair_seconds")


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def interpreter() -> Warm:
    """With what the harness imports of others, which takes seconds, and torch where an optimizer is made."""
    of_others = ("sklearn.datasets", "scipy.stats", "matplotlib.pyplot", "jsonargparse", "tqdm", "yaml")
    return python("torch", "torch._dynamo", *of_others)


def start(folder: Path, *arguments: str) -> Running:
    """Begin ``lip-fast`` in a folder and in a process group of its own."""
    return interpreter().start("-m", "lip_fast", *arguments, cwd=folder, env=environment())


def members(group: int) -> set[int]:
    """The processes of a group that are not dead; Linux."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def workers(group: int) -> set[int]:
    """Those of them that are processes of a sweep."""
    found = set()
    for pid in members(group):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.add(pid)
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in MEASURED}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a run, but for the times."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["metrics.json"] = json.dumps(without_times(json.loads(files["metrics.json"]))).encode()
    return files
