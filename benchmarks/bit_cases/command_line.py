"""What ``lip-fast train`` writes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["train"]

_SETTINGS = (
    "--samples 200 --seeds 1 --epochs 3 --hidden 32 24 --rank-afterwards 5 --threads 1 --device cpu "
    "--methods plain in-step per-epoch post-hoc ridge auto"
)


def train() -> dict[str, Any]:
    """The files of a run, and the numbers in them that are no times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lip_fast", "train", *_SETTINGS.split()]
        command += ["--out", folder, "--name", "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"lip-fast train ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        run = Path(folder) / "run"
        return {
            "files": sorted(path.relative_to(run).as_posix() for path in run.rglob("*")),
            "metrics": _without_times(json.loads((run / "metrics.json").read_text())),
            "labels": (run / "labels.npz").read_bytes().hex(),
        }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(of) for key, of in value.items() if not key.endswith("seconds")}
    return [_without_times(of) for of in value] if isinstance(value, list) else value
